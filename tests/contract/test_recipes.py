"""Every shipped recipe is valid, for deploykit and for an editor that goes by the schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from deploykit.cli.main import main
from deploykit.pipeline.order import STAGES
from deploykit.pipeline.plan import make_plan
from deploykit.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
ALL = sorted(RECIPES.iterdir())
DATA = ("data.train=sample:support/train", "data.test=sample:support/test")


@pytest.fixture
def validator(capsys: pytest.CaptureFixture[str]) -> Draft202012Validator:
    """Made of what `deploykit schema` prints."""
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_the_folder_has_recipes_and_nothing_else() -> None:
    assert ALL
    assert {path.suffix for path in ALL} == {".yaml"}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_a_recipe_has_a_plan(path: Path) -> None:
    recipe = load_recipe(path, DATA)
    plan = make_plan(recipe, Path(), download=False)
    left_out = {"pretrain", "teachers", "prune"} | (set() if recipe.data.entries else {"index"})
    assert tuple(step.stage for step in plan.steps) == tuple(stage for stage in STAGES if stage not in left_out)


def test_a_limit_on_speed_or_size_prunes() -> None:
    def stages(*settings: str) -> tuple[str, ...]:
        recipe = load_recipe(ALL[0], [*DATA, *settings])
        return tuple(step.stage for step in make_plan(recipe, Path(), download=False).steps)

    for limit in ("speedup", "p50_ms", "p99_ms", "size_mb"):
        left_out = {"index", "teachers"}
        assert stages(f"goal.{limit}=5", "pretrain.epochs=1") == tuple(
            stage for stage in STAGES if stage not in left_out
        )
    assert "teachers" in stages("goal.speedup=5", "prune.teachers=2")
    assert "teachers" not in stages("goal.speedup=5", "prune.teachers=2", "prune.epochs=0"), "none learns from them"
    assert "prune" not in stages("goal.max_drop=0.02")
    assert "prune" not in stages("goal.speedup=5", "prune.strategy=none")


@pytest.mark.parametrize(("name", "trained_on"), [("faq", False), ("recommendation", True)])
def test_other_entries_train_anew_only_what_learns_from_them(name: str, trained_on: bool) -> None:
    plans = [
        make_plan(load_recipe(RECIPES / f"{name}.yaml", [f"data.entries={entries}"]), Path(), download=False)
        for entries in ("sample:faq/entries", "sample:offers/entries")
    ]
    finetune, index = ([plan.step(stage).key for plan in plans] for stage in ("finetune", "index"))
    assert (finetune[0] != finetune[1]) == trained_on
    assert index[0] != index[1]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_a_recipe_says_how_it_is_run_and_names_its_version(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert f"deploykit run recipes/{path.name}" in text.split("version: 1")[0]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_the_schema_takes_a_recipe(path: Path, validator: Draft202012Validator) -> None:
    assert list(validator.iter_errors(yaml.safe_load(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (None, "modle", "x"),
        (None, "version", 2),
        ("finetune", "epoch", 3),
        ("finetune", "epochs", "three"),
        ("finetune", "strategy", "soft"),
        ("goal", "max_drop", 0),
        ("package", "max_batch_size", 0),
        ("serve", "engine", "nginx"),
    ],
)
def test_the_schema_and_deploykit_refuse_the_same(
    section: str | None, key: str, value: Any, validator: Draft202012Validator, tmp_path: Path
) -> None:
    from deploykit.errors import RecipeError

    recipe = yaml.safe_load((RECIPES / "quickstart.yaml").read_text(encoding="utf-8"))
    (recipe if section is None else recipe.setdefault(section, {}))[key] = value
    assert list(validator.iter_errors(recipe))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    with pytest.raises(RecipeError, match=key):
        load_recipe(path)
