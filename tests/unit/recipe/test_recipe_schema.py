"""The schema by itself: defaults, limits, the JSON schema, tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoints
from typing import Any

import pytest
from pydantic import ValidationError

from deploykit.recipe import Data, Finetune, Goal, Package, Prune, Quantize, Recipe, Serve, json_schema
from deploykit.recipe import schema as recipe_schema
from deploykit.recipe.schema import SECTIONS, GoalTarget, Section


def recipe(**changes: Any) -> Recipe:
    given: dict[str, Any] = {"task": "text-classification", "model": "some/model", "data": Data(train="train.csv")}
    return Recipe(**{**given, **changes})


def described(node: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, definition in {"Recipe": node, **node["$defs"]}.items():
        for key, value in definition.get("properties", {}).items():
            yield f"{name}.{key}", {**node["$defs"].get(value.get("$ref", "").rpartition("/")[2], {}), **value}


def test_values_never_change() -> None:
    with pytest.raises(ValidationError):
        recipe().seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        recipe().data.train = "other.csv"  # type: ignore[misc]


def test_every_key_has_a_description_in_the_json_schema() -> None:
    keys = dict(described(json_schema()))
    sections = [*SECTIONS.values(), GoalTarget]
    assert len(keys) == len(Recipe.model_fields) + sum(len(section.model_fields) for section in sections)
    assert [key for key, value in keys.items() if not value.get("description")] == []


def test_the_json_schema_is_json_and_refuses_unknown_keys() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "deploykit recipe"
    assert schema["additionalProperties"] is False
    assert all(section["additionalProperties"] is False for section in schema["$defs"].values())
    assert sorted(schema["required"]) == ["data", "model", "task"]
    assert schema["$defs"]["Data"]["required"] == ["train"]


def test_every_default_is_valid() -> None:
    for section in (section for key, section in SECTIONS.items() if key != "data"):
        assert isinstance(section(), Section)
        assert section.model_validate(section().model_dump()) == section()


def test_a_recipe_comes_back_from_json() -> None:
    original = recipe(package=Package(preferred_batch_size=(4, 8)), finetune=Finetune(early_stopping=2))
    assert Recipe.model_validate_json(original.model_dump_json()) == original


@pytest.mark.parametrize("value", [0, 0.0, -0.1, 0.51, True, None, [], float("nan"), float("inf"), " "])
def test_a_held_out_part_is_a_file_or_a_fraction_up_to_a_half(value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Data(train="train.csv", validation=value)  # type: ignore[arg-type]
    assert caught.value.error_count() == 1
    assert caught.value.errors()[0]["loc"] == ("validation",)


@pytest.mark.parametrize("engine", ["auto", "none", "grpc://localhost:8001", "https://triton.example:8000/path"])
def test_engines(engine: str) -> None:
    assert Serve(engine=engine).engine == engine


@pytest.mark.parametrize("engine", ["", "http://", "ftp://host", "localhost:8001", "Docker"])
def test_other_engines_are_refused(engine: str) -> None:
    with pytest.raises(ValidationError):
        Serve(engine=engine)


@pytest.mark.parametrize("name", ["..", "a/b", " ", "a\nb", "a\0b", ".hidden"])
def test_row_15_names_that_are_no_model_names_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        recipe(name=name)


def test_row_45_the_largest_batch_bounds_the_preferred_ones() -> None:
    assert Package(max_batch_size=8, preferred_batch_size=(8,)).preferred_batch_size == (8,)
    with pytest.raises(ValidationError, match=r"must not be above max_batch_size \(8\): 9"):
        Package(max_batch_size=8, preferred_batch_size=(9,))
    with pytest.raises(ValidationError, match="twice"):
        Package(preferred_batch_size=(4, 4))


def test_without_registered_tasks_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_schema, "entry_points", lambda group: EntryPoints(()))
    with pytest.raises(ValidationError, match="no task is registered"):
        recipe()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (lambda: Quantize(scheme="bf16"), "no bfloat16 products on a CPU"),  # type: ignore[arg-type]
        (lambda: Quantize(scheme="int8_dynamic", smooth="always"), "needs static scales"),
        (lambda: Quantize(scheme="int4_weights", smooth="always"), "which int4_weights has not"),
        (lambda: Prune(epochs=2, qat_epochs=3), r"qat_epochs \(3\) must not be above epochs \(2\)"),
        (
            lambda: recipe(prune=Prune(qat_epochs=2), quantize=Quantize(scheme="fp16"), goal=Goal(speedup=3)),
            "quantize.scheme is fp16",
        ),
    ],
)
def test_what_can_not_be_quantized_so_is_refused_in_one_line(given: Callable[[], object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason) as caught:
        given()
    (problem,) = caught.value.errors()
    assert "\n" not in problem["msg"]


def test_a_prefix_and_a_goal_that_prunes_are_refused_together() -> None:
    prefix = Finetune(strategy="prefix")
    for asked in ({"goal": Goal(speedup=3)}, {"prune": Prune(keep=("0/12/768",))}):  # type: ignore[arg-type]
        with pytest.raises(ValidationError, match="pruning does not cut the prefix"):
            recipe(finetune=prefix, **asked)
    assert not recipe(finetune=prefix, goal=Goal(speedup=3), prune=Prune(strategy="none")).prunes


def test_training_may_round_where_int8_is_left_to_choose() -> None:
    assert recipe(prune=Prune(qat_epochs=2), goal=Goal(speedup=3)).quantize.scheme == "int8"
