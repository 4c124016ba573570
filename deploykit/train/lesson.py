"""What a model learns from a teacher: the rows that it answers, those without labels too, and its answers to them."""

from __future__ import annotations

__all__ = ["Lesson", "check_teaches", "lesson_from_teacher", "taught", "unlabelled_rows"]

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.artifacts.digest import digest_json, digest_tree
from deploykit.errors import ModelError
from deploykit.events import Listener
from deploykit.recipe import Finetune
from deploykit.runners.labels import labels_from_folder
from deploykit.runners.untrusted import check_checkpoint
from deploykit.tasks import Task
from deploykit.train.distill import Distillation, teach
from deploykit.train.processes import on_cpu, processes
from deploykit.train.rows import Row, training_rows, unlabelled


@dataclass(frozen=True)
class Lesson:
    """A teacher, and how to learn from it.

    Attributes:
        teacher: the checkpoint folder of a model of the same task, labels and tokenizer.
        temperature: that softens the logits.
        soft_weight: of the teacher's answers; the labels have the rest of 1.
        hidden_weight: of its last hidden states, which must be as wide; 0 leaves them out.
        cache: the folder to keep its answers in; the workspace unless told.
        others: more checkpoint folders like it; what is learned is the mean of all logits, and the first one's states.
        unlabelled: messages that only the teacher answers. With them an epoch still is as many rows as have labels.
        copies: altered copies of each row, labelled and not, that only the teacher answers.
        seed: of the copies.
    """

    teacher: Path
    temperature: float = 2.0
    soft_weight: float = 0.9
    hidden_weight: float = 5.0
    cache: Path | None = None
    others: Sequence[Path] = ()
    unlabelled: Sequence[str] = ()
    copies: int = 0
    seed: int = 0


def lesson_from_teacher(settings: Finetune, teacher: Path, model: Path, labels: Sequence[str]) -> Lesson:
    """What a model learns from `finetune.teacher`, its answers softened.

    Args:
        settings: the recipe's `finetune` section.
        teacher: the checkpoint folder of the larger model, fine-tuned.
        model: the checkpoint folder of the model that learns.
        labels: that it learns, in index order.

    Raises:
        ModelError: the teacher cuts text into other pieces, or knows other labels.
    """
    check_teaches(teacher, model, labels)
    return Lesson(teacher, settings.teacher_temperature, settings.teacher_weight, hidden_weight=0.0)


def check_teaches(teacher: Path, model: Path, labels: Sequence[str]) -> None:
    """Refuse a teacher that a model can't learn from.

    Args:
        teacher: a checkpoint folder.
        model: the checkpoint folder of the model that learns.
        labels: that it learns, in index order.

    Raises:
        ModelError: the teacher cuts text into other pieces, or knows other labels.
    """
    from transformers import AutoTokenizer

    pieces = [AutoTokenizer.from_pretrained(each, trust_remote_code=False).get_vocab() for each in (teacher, model)]
    if pieces[0] != pieces[1]:
        raise ModelError(
            f"the teacher {teacher} cuts text into other pieces than {model}", "use a teacher with the same vocabulary"
        )
    known = labels_from_folder(teacher)
    if tuple(known) != tuple(labels):
        raise ModelError(
            f"the teacher {teacher} knows {len(known)} labels in its order, and the data has {len(labels)} others",
            "fine-tune the teacher on this data first: deploykit finetune",
        )


def taught(
    lesson: Lesson, rows: Any, task: Task, pad: Any, workspace: Path, *, stage: str, listener: Listener
) -> Distillation:
    """The answers of the teacher, or the mean of several ones', to the rows in their order, and what of them to learn.

    Raises:
        ModelError: a teacher is damaged, unsafe or of another kind.
    """
    import torch

    device = "cpu" if on_cpu() else processes().device
    found = []
    for number, checkpoint in enumerate((lesson.teacher, *lesson.others)):
        check_checkpoint(checkpoint)
        model = task.load_model(checkpoint, attn_implementation="sdpa", dtype=torch.float32)
        folder = (lesson.cache or workspace) / (f"other-{number}" if number else "")
        folder.mkdir(parents=True, exist_ok=True)
        answers = teach(
            model.to(device), rows, task.output, pad, folder, identity=digest_json(dict(digest_tree(checkpoint))),
            hidden=bool(lesson.hidden_weight) and not number, stage=stage, listener=listener,
        )  # fmt: skip
        found.append(answers)
    logits: NDArray[np.float32] = np.stack([each.logits for each in found]).mean(axis=0)
    return Distillation(replace(found[0], logits=logits), lesson.temperature, lesson.soft_weight, lesson.hidden_weight)


def unlabelled_rows(lesson: Lesson, tokenizer: Any, network: Any, task: Task, rows: Sequence[Row]) -> list[Row]:
    """Rows that only the teacher answers: messages without labels, and altered copies of all."""
    names = tuple(map(str, range(network.config.num_labels)))
    found = list(training_rows(tokenizer, network, lesson.unlabelled, task, None, names))
    if lesson.copies:
        from deploykit.train.augment import altered_rows, nearest_pieces

        plain = [list(row["input_ids"]) for row in (*rows, *found)]
        used = sorted({piece for row in plain for piece in row})
        nearest = nearest_pieces(network.get_input_embeddings().weight.detach(), used, tokenizer.all_special_ids)
        others = [name for name in rows[0] if name not in ("input_ids", "attention_mask", "labels")]
        lead = tokenizer.num_special_tokens_to_add() - 1
        for ids in altered_rows(plain, nearest, lesson.copies, lesson.seed, lead):
            row: Row = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": unlabelled(ids, task, len(names))}
            found.append(row | {name: [0] * len(ids) for name in others})
    return found
