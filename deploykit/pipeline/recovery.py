"""How a cut model learns from the whole one."""

from __future__ import annotations

__all__ = ["Recovery"]

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploykit.data.dataset import LabelledData
from deploykit.events import Listener
from deploykit.recipe import Finetune, Prune
from deploykit.tasks import Task

if TYPE_CHECKING:
    from deploykit.train.finetune import FinetuneResult

_TRIAL_ROWS = 2000
_TRIAL_EPOCHS = 3.0
"""Of the short recovery that finalists are compared after."""


@dataclass(frozen=True)
class Recovery:
    """How a pruned model learns from the whole one.

    Attributes:
        teacher: the whole model's checkpoint folder.
        task: what both do.
        data: the training rows to learn on, and the validation rows to judge by.
        settings: the recipe's `prune` section.
        finetune: the recipe's `finetune` section, for what both trainings have in common.
        seed: of the order of the rows, and of those for a trial.
        listener: hears of progress.
        freeze_embeddings: whether they stay as they are; those of a trimmed vocabulary cost little to train.
    """

    teacher: Path
    task: Task
    data: LabelledData
    settings: Prune
    finetune: Finetune
    seed: int
    listener: Listener
    freeze_embeddings: bool

    def run(self, pruned: Path, out: Path, workspace: Path, *, trial: bool = False) -> FinetuneResult:
        """Train the checkpoint in `pruned` and write it to `out`; a trial is short, and on some of the rows."""
        from deploykit.train.finetune import finetune
        from deploykit.train.lesson import Lesson

        data, epochs, copies = self.data, self.settings.epochs, self.settings.copies
        if trial:
            rows = np.random.default_rng(self.seed).permutation(len(data.train))[:_TRIAL_ROWS]
            data = replace(data, train=data.train.take(sorted(rows.tolist())), unlabelled=())
            epochs, copies = min(epochs, _TRIAL_EPOCHS), 0
        return finetune(
            pruned,
            data,
            self.finetune.model_copy(
                update={
                    "epochs": epochs,
                    "learning_rate": self.settings.learning_rate,
                    "strategy": "full",
                    "dropout": 0.0,
                    "freeze_embeddings": self.freeze_embeddings,
                }
            ),
            self.task,
            out,
            workspace=workspace,
            seed=self.seed,
            lesson=Lesson(
                self.teacher,
                self.settings.temperature,
                self.settings.soft_weight,
                self.settings.hidden_weight,
                cache=workspace.parent / f"teacher-{len(data.train)}",
                unlabelled=data.unlabelled,
                copies=copies,
            ),
            stage="prune",
            listener=self.listener,
        )
