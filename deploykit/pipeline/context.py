"""What every stage of a run is given."""

from __future__ import annotations

__all__ = ["Context", "data_from_artifact"]

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploykit.artifacts.store import Artifact, Store
from deploykit.data.dataset import LabelledData
from deploykit.data.kept import read_table, read_texts
from deploykit.events import Listener
from deploykit.pipeline.plan import Plan
from deploykit.recipe import Recipe
from deploykit.runners.labels import labels_from_folder
from deploykit.tasks import Task, find_task


@dataclass
class Context:
    """A run: its recipe and plan, where it keeps things, and the artefacts that it has so far.

    Attributes:
        study: the storage through which other machines take part in its pruning; None for none.
    """

    recipe: Recipe
    base: Path
    plan: Plan
    store: Store
    listener: Listener
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    study: str | None = None

    @property
    def checkpoint(self) -> Path:
        """The folder of the PyTorch model that is exported: the pruned one, or the whole one."""
        return self.folder(self.recipe.model_stage)

    @property
    def whole(self) -> Path:
        """The folder of the whole PyTorch model: the fine-tuned one, with its entries where there are any."""
        return self.folder(self.recipe.whole_stage)

    @property
    def task(self) -> Task:
        """The recipe's task."""
        return find_task(self.recipe.task)

    def folder(self, stage: str) -> Path:
        """The output folder of a finished stage."""
        return self.artifacts[stage].path

    def info(self, stage: str) -> Mapping[str, object]:
        """What a finished stage noted in its manifest."""
        return self.artifacts[stage].manifest.info

    def data(self) -> LabelledData:
        """The data of the data stage; once the model has entries, the rows that one of them answers."""
        data = data_from_artifact(self.folder("data"))
        return data.with_labels(labels_from_folder(self.folder("index"))) if "index" in self.artifacts else data


def data_from_artifact(folder: Path) -> LabelledData:
    """The data that the data stage wrote."""
    labels = tuple(json.loads((folder / "labels.json").read_text(encoding="utf-8")))
    train, validation, test = (read_table(folder / f"{part}.jsonl") for part in ("train", "validation", "test"))
    return LabelledData(train, validation, test, labels, read_texts(folder / "unlabelled.jsonl"))
