"""More fine-tunings that teach a cut model: made once for every way to prune, each from a seed of its own."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploykit.errors import ModelError
from deploykit.events import StageFinished
from deploykit.pipeline.alone import prune_alone
from deploykit.pipeline.run import run_recipe
from deploykit.recipe import Goal, Prune, Recipe, load_recipe
from deploykit.runners.labels import labels_from_folder

RECIPES = Path(__file__).parents[3] / "recipes"
SMALL = ["finetune.epochs=1", "prune.teachers=3", "prune.keep=[0/4/16]", "prune.copies=0", "prune.learning_rate=5e-3"]


@pytest.fixture
def data(toy_data: Any, write_csv: Any, tmp_path: Path) -> list[str]:
    return [f"data.{part}={write_csv(tmp_path / f'{part}.csv', getattr(toy_data, part))}" for part in ("train", "test")]


def stages_of(recipe: Recipe, workspace: Path) -> dict[str, bool]:
    """The stages of a run until the model is pruned, and whether each was found."""
    found: dict[str, bool] = {}

    def note(event: Any) -> None:
        if isinstance(event, StageFinished):
            found[event.stage] = event.cached

    assert run_recipe(recipe, workspace=workspace, until="prune", listener=note) is None
    return found


def test_teachers_are_trained_once_and_stay_when_the_pruning_changes(
    data: list[str], tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    settings = [f"model={tiny_checkpoint('bert')}", *data, *SMALL]
    first, second = (
        load_recipe(RECIPES / "quickstart.yaml", [*settings, f"prune.epochs={epochs}"]) for epochs in (0.2, 0.3)
    )
    everything = ("data", "finetune", "teachers", "prune")
    assert stages_of(first, tmp_path / "work") == dict.fromkeys(everything, False)
    weights = [path.read_bytes() for path in (tmp_path / "work" / "store").glob("[ft]*/*/**/model.safetensors")]
    assert len(weights) == len(set(weights)) == 3, "the model and two teachers, no two alike"
    assert stages_of(second, tmp_path / "work") == dict.fromkeys(everything, True) | {"prune": False}


def test_teachers_of_a_model_with_entries_have_them_too(
    toy_data: Any, write_csv: Any, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    train, test = (write_csv(tmp_path / f"{part}.csv", getattr(toy_data, part)) for part in ("train", "test"))
    with (tmp_path / "entries.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "answer"])
        writer.writerows([f"about {label}", label, f"All of {label}."] for label in toy_data.label_names)
    where = {"train": train, "test": test, "label": "label", "entries": tmp_path / "entries.csv"}
    settings = [f"model={tiny_checkpoint('bert')}", *(f"data.{key}={value}" for key, value in where.items()), *SMALL]
    recipe = load_recipe(RECIPES / "faq.yaml", [*settings, "prune.epochs=0.2"])
    assert stages_of(recipe, tmp_path / "work")["prune"] is False
    (model,) = (tmp_path / "work" / "store" / "index").glob("*")
    teachers = sorted((tmp_path / "work" / "store" / "teachers").glob("*/*/config.json"))
    assert len(teachers) == 2
    for teacher in teachers:
        assert labels_from_folder(teacher.parent) == labels_from_folder(model)


@pytest.mark.parametrize(("change", "said"), [("labels", "knows 2 labels"), ("pieces", "into other pieces")])
def test_a_teacher_of_other_labels_or_pieces_is_refused(
    change: str, said: str, trained: Path, tiny_checkpoint: Callable[..., Path], data: list[str], tmp_path: Path
) -> None:
    teacher = tiny_checkpoint("bert", names=("a", "b")) if change == "labels" else tiny_checkpoint("roberta")
    with pytest.raises(ModelError, match=said):
        prune_alone(
            trained, tmp_path / "out", Prune(), Goal(speedup=2.0), train=data[0].partition("=")[2], validation=0.2,
            columns=("text", "label"), task="text-classification", target="triton-25.08", threads=1, seed=0,
            teachers=[teacher],
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
