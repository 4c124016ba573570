"""How a cut model learns from the whole one, and from other fine-tunings of it."""

from __future__ import annotations

__all__ = ["Recovery"]

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.artifacts.atomic import write_atomic
from deploykit.data.dataset import LabelledData
from deploykit.events import Listener, Note
from deploykit.pipeline.clock import read_note
from deploykit.recipe import Finetune, Prune
from deploykit.tasks import Task
from deploykit.tasks.pruned import layer_count

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
        seed: of the order of the rows (of the first recovery; the next ones count on), of altered copies, and of the
            rows for a trial.
        listener: hears of progress.
        freeze_embeddings: whether they stay as they are; those of a trimmed vocabulary cost little to train.
        others: checkpoint folders of more whole models that teach too.
    """

    teacher: Path
    task: Task
    data: LabelledData
    settings: Prune
    finetune: Finetune
    seed: int
    listener: Listener
    freeze_embeddings: bool
    others: Sequence[Path] = ()

    def best(self, pruned: Path, out: Path, workspace: Path) -> dict[str, Any]:
        """Recover `pruned` from as many seeds as the settings say, and write the best on validation to `out`.

        Args:
            pruned: the cut model's checkpoint folder.
            out: the folder to write.
            workspace: keeps every recovered model, so that an interrupted call goes on.

        Returns:
            what the chosen recovery ended with; with several, `seeds` has all of them by seed.
        """
        found: dict[str, dict[str, Any]] = {}
        seeds = range(self.seed, self.seed + self.settings.seeds)
        for number, seed in enumerate(seeds):
            if len(seeds) > 1:
                self.listener(Note(f"recovery {number + 1} of {len(seeds)}"))
            note = workspace / f"recovered-{seed}.json"
            kept = read_note(note)
            if kept is None:
                result = self.run(pruned, workspace / f"recovered-{seed}", workspace / f"recovery-{seed}", seed=seed)
                write_atomic(note, json.dumps(asdict(result)).encode())
                kept = read_note(note)
            assert kept is not None
            found[str(seed)] = kept
        chosen = min(found, key=lambda seed: float(found[seed]["metrics"]["loss"]))
        shutil.copytree(workspace / f"recovered-{chosen}", out, dirs_exist_ok=True)
        return found[chosen] if len(seeds) == 1 else {**found[chosen], "seed": int(chosen), "seeds": found}

    def run(
        self, pruned: Path, out: Path, workspace: Path, *, trial: bool = False, seed: int | None = None
    ) -> FinetuneResult:
        """Train the checkpoint in `pruned` and write it to `out`; a trial is short, and on some of the rows."""
        from deploykit.train.finetune import finetune
        from deploykit.train.lesson import Lesson
        from deploykit.train.processes import on_cpu

        layers = layer_count(pruned)
        data, epochs, copies = self.data, self.settings.epochs_for(layers), self.settings.copies
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
                    "quantized_base": "none",
                    "teacher": None,
                    "layer_decay": 1.0,
                    "augment": (),
                    "dropout": 0.0,
                    # Of one layer, casting the weights costs more than bf16 gains on a CPU.
                    "precision": "fp32" if layers == 1 and on_cpu() else self.finetune.precision,
                    "freeze_embeddings": self.freeze_embeddings,
                }
            ),
            self.task,
            out,
            workspace=workspace,
            seed=self.seed if seed is None else seed,
            lesson=Lesson(
                self.teacher,
                self.settings.temperature,
                self.settings.soft_weight,
                self.settings.hidden_weight_for(layers),
                cache=workspace.parent / f"teacher-{len(data.train)}",
                others=self.others,
                unlabelled=data.unlabelled,
                copies=copies,
                seed=self.seed,
            ),
            rounded_epochs=0.0 if trial else self.settings.qat_epochs,
            stage="prune",
            listener=self.listener,
        )
