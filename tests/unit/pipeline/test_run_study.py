"""A run that shares its pruning, and workers that know from the same recipe what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploykit.errors import UsageError
from deploykit.pipeline import compression
from deploykit.pipeline.run import join_run, run_recipe
from deploykit.recipe import Recipe, load_recipe

RECIPE = Path(__file__).parents[3] / "recipes" / "quickstart.yaml"


@pytest.fixture
def recipe(tiny_checkpoint: Callable[..., Path], toy_data: Any, write_csv: Any, tmp_path: Path) -> Recipe:
    train, test = (write_csv(tmp_path / f"{part}.csv", getattr(toy_data, part)) for part in ("train", "test"))
    settings = ["finetune.epochs=0.1", "prune.epochs=1", "goal={speedup: 20, max_drop: 0.01}", "prune.keep=[]"]
    return load_recipe(
        RECIPE, [f"model={tiny_checkpoint('bert')}", f"data.train={train}", f"data.test={test}", *settings]
    )


@pytest.fixture
def url(tmp_path: Path) -> str:
    pytest.importorskip("optuna")
    return f"sqlite:///{tmp_path}/study.db"


def test_a_worker_is_given_what_the_run_prunes_with(
    recipe: Recipe, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, dict[str, Any]] = {}

    def prune(teacher: Path, out: Path, *, info: Any, workspace: Path, **rest: Any) -> str:
        given["run"] = {"teacher": (teacher / "model.safetensors").read_bytes(), **rest}
        given["worker"] = {}
        assert join_run(recipe, url, workspace=tmp_path / "copied") == 3, "while the run prunes"
        shutil.copytree(teacher, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        return "pruned"

    def join(teacher: Path, *, workspace: Path, **rest: Any) -> int:
        given["worker"] = {"teacher": (teacher / "model.safetensors").read_bytes(), **rest}
        assert tmp_path not in workspace.parents, "nothing is left in the run's workspace"
        return 3

    monkeypatch.setattr(compression, "prune_to_goal", prune)
    monkeypatch.setattr(compression, "join_pruning", join)
    run_recipe(recipe, workspace=tmp_path / "work", until="finetune")
    shutil.copytree(tmp_path / "work", tmp_path / "copied")
    assert run_recipe(recipe, workspace=tmp_path / "work", until="prune", study=url) is None
    studies = [each.pop("study")._study for each in given.values()]
    assert studies[0].study_name == studies[1].study_name
    assert studies[0].user_attrs["closed"], "workers may go"
    for each in given.values():
        each["task"], _ = each["task"].name, each.pop("listener")
    assert given["run"] == given["worker"]


def test_a_worker_with_another_model_or_other_settings_is_refused(recipe: Recipe, url: str, tmp_path: Path) -> None:
    run_recipe(recipe, workspace=tmp_path / "work", until="finetune")
    with pytest.raises(UsageError, match="no study of this model, data and settings"):
        join_run(recipe, url, workspace=tmp_path / "work")  # no run prunes: there is none of any


def test_a_worker_without_the_runs_model_is_refused(recipe: Recipe, url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no finetune of this recipe") as caught:
        join_run(recipe, url, workspace=tmp_path / "empty")
    assert "--workspace" in (caught.value.hint or "")


@pytest.mark.parametrize("change", [{"goal": {"speedup": None}}, {"prune": {"keep": ("0/4/64",)}}])
def test_where_nothing_is_searched_for_nothing_is_shared(
    recipe: Recipe, change: dict[str, Any], url: str, tmp_path: Path
) -> None:
    parts = {name: getattr(recipe, name).model_copy(update=update) for name, update in change.items()}
    fixed = recipe.model_copy(update=parts)
    with pytest.raises(UsageError, match="nothing that machines could share"):
        run_recipe(fixed, workspace=tmp_path / "work", study=url)
    assert not (tmp_path / "work").exists(), "said before anything is done"


def test_a_storage_that_can_not_be_opened_is_said_before_anything_is_done(recipe: Recipe, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    with pytest.raises(UsageError, match="--study can't be opened"):
        run_recipe(recipe, workspace=tmp_path / "work", study=f"sqlite:///{tmp_path}/no/such/folder/study.db")
    assert not (tmp_path / "work").exists()
