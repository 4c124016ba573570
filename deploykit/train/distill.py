"""Distillation: a small model learns from a large one's answers, which are computed once and kept on disk.

The loss is that of Hinton, Vinyals and Dean 2015 (softened logits, at temperature T, times T squared) beside the
labels, and the mean squared difference of the last hidden states over real tokens, as in Jiao et al. 2020 (TinyBERT).
"""

from __future__ import annotations

__all__ = ["Distillation", "Teacher", "distillation_loss", "teach", "with_teacher"]

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.artifacts.atomic import write_atomic
from deploykit.artifacts.digest import digest_json
from deploykit.events import Listener, Progress, ignore
from deploykit.tasks.base import Section
from deploykit.train.rows import sections_of

_BATCH = 32


@dataclass(frozen=True)
class Teacher:
    """What a teacher answers to the training rows.

    Attributes:
        logits: float32 [rows, labels]; of a task by token [tokens, labels], one row after the other.
        hidden: the last hidden states of all rows' tokens, float16 [tokens, width], one row after the other; None
            where nothing learns from them.
        starts: where each row's tokens begin, int64 [rows + 1].
    """

    logits: NDArray[np.float32]
    hidden: NDArray[np.float16] | None
    starts: NDArray[np.int64]

    @property
    def per_token(self) -> bool:
        """Whether there are logits for each token."""
        return len(self.logits) != len(self.starts) - 1

    def logits_of(self, rows: Sequence[int], length: int) -> NDArray[np.float32]:
        """The logits of rows as one batch: [rows, labels], or [rows, length, labels], zeros behind a row's end."""
        if not self.per_token:
            return self.logits[list(rows)]
        batch = np.zeros((len(rows), length, self.logits.shape[1]), dtype=np.float32)
        for place, row in enumerate(rows):
            tokens = self.logits[self.starts[row] : self.starts[row + 1]]
            batch[place, : len(tokens)] = tokens
        return batch

    def hidden_of(self, rows: Sequence[int], length: int) -> NDArray[np.float32]:
        """The hidden states of rows as one batch, [rows, length, width], zeros behind a row's end."""
        assert self.hidden is not None
        batch = np.zeros((len(rows), length, self.hidden.shape[1]), dtype=np.float32)
        for place, row in enumerate(rows):
            states = self.hidden[self.starts[row] : self.starts[row + 1]]
            batch[place, : len(states)] = states
        return batch


@dataclass(frozen=True)
class Distillation:
    """What to learn from a teacher.

    Attributes:
        teacher: its answers to the training rows, in their order.
        temperature: that softens the logits.
        soft_weight: of the teacher's answers; the labels have the rest of 1.
        hidden_weight: of the hidden states; 0 leaves them out.
    """

    teacher: Teacher
    temperature: float
    soft_weight: float
    hidden_weight: float


def teach(
    model: Any, features: Sequence[Mapping[str, Any]], output: str, pad: Callable[..., Any], folder: Path,
    *, identity: str, hidden: bool = True, stage: str = "prune", listener: Listener = ignore,
) -> Teacher:  # fmt: skip
    """A teacher's answers to the rows; computed once, then read from `folder`.

    Args:
        model: the teacher, which answers in evaluation mode.
        features: tokenized rows with `input_ids`.
        output: the name of the logits in its output.
        pad: makes a batch of rows, as PyTorch tensors.
        folder: where the answers are kept, as NumPy files that are read as memory maps.
        identity: of the teacher and of the rows' texts; answers of another are not used.
        hidden: whether the last hidden states count too.
        stage: what progress is reported as.
        listener: hears of progress.
    """
    import torch

    lengths = np.array([len(row["input_ids"]) for row in features], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    note = {
        "identity": identity,
        "hidden": hidden,
        "rows": digest_json([list(map(int, row["input_ids"])) for row in features]),
    }
    files = {name: folder / f"teacher-{name}.npy" for name in ("logits", "hidden")}
    done = folder / "teacher.json"
    kept_note = json.loads(done.read_text(encoding="utf-8")) if done.is_file() else None
    if kept_note not in (note, note | {"hidden": True}):
        done.unlink(missing_ok=True)
        logits = np.empty((0, 0), np.float32)
        states: Any = None
        if hidden:
            width = model.config.hidden_size
            states = np.lib.format.open_memmap(
                files["hidden"], mode="w+", dtype=np.float16, shape=(int(starts[-1]), width)
            )
        order = np.argsort(lengths, kind="stable")
        model.eval()
        device = next(model.parameters()).device
        for begin in range(0, len(order), _BATCH):
            rows = order[begin : begin + _BATCH]
            batch = pad([{key: features[row][key] for key in features[row] if key != "labels"} for row in rows])
            with torch.inference_mode():
                found = model(**{key: value.to(device) for key, value in batch.items()}, output_hidden_states=hidden)
            answers = found[output].float().cpu().numpy()
            last = found.hidden_states[-1].half().cpu().numpy() if hidden else None
            by_token = answers.ndim == 3
            if not logits.size:
                logits = np.empty((int(starts[-1]) if by_token else len(order), answers.shape[-1]), np.float32)
            if not by_token:
                logits[rows] = answers
            for place, row in enumerate(rows):
                if by_token:
                    logits[starts[row] : starts[row + 1]] = answers[place, : lengths[row]]
                if last is not None:
                    states[starts[row] : starts[row + 1]] = last[place, : lengths[row]]
            listener(Progress(stage, min(begin + _BATCH, len(order)), len(order), "taught message"))
        if hidden:
            states.flush()
        np.save(files["logits"], logits)
        write_atomic(done, json.dumps(note).encode())
    kept = np.load(files["hidden"], mmap_mode="r") if hidden else None
    return Teacher(np.load(files["logits"]), kept, starts)


def distillation_loss(
    outputs: Any, batch: Mapping[str, Any], output: str, settings: Distillation, sections: Sequence[Section] = ()
) -> Any:
    """The loss of one batch, a scalar tensor: the mean over its messages, or over real tokens where each has logits.

    Args:
        outputs: the student's, with hidden states where they count.
        batch: with `attention_mask`, `labels` (-100 where there is none; floats where a message may have several
            classes, each then judged by itself), `teacher_logits` and `teacher_hidden` (padded
            to the batch's length).
        output: the name of the logits.
        settings: what to learn.
        sections: the parts of the logits that are decided on apart, their weighted losses added; none for one part.
    """
    from torch.nn import functional

    heat = settings.temperature
    logits, wanted, labels = outputs[output].float(), batch["teacher_logits"], batch["labels"]
    if labels.is_floating_point():  # each label a question of its own
        soft = functional.binary_cross_entropy_with_logits(logits / heat, (wanted / heat).sigmoid(), reduction="none")
        real = (labels[:, :1] >= 0).float()
        costs = functional.binary_cross_entropy_with_logits(logits, labels.clamp_min(0.0), reduction="none") * real
        loss = settings.soft_weight * heat**2 * soft.mean() + (1 - settings.soft_weight) * costs.mean()
        return loss + _hidden_loss(outputs, batch, settings)
    loss = 0.0
    for part, taught in zip(sections_of(logits, labels, sections), sections_of(wanted, labels, sections), strict=True):
        found, expected, own = part.logits, taught.logits, part.labels
        if found.ndim == 3:  # an answer for each token: those of the padding teach nothing
            real = batch["attention_mask"].bool()
            found, expected, own = found[real], expected[real], own[real]
        soft = functional.kl_div(
            functional.log_softmax(found / heat, dim=-1),
            functional.log_softmax(expected / heat, dim=-1),
            reduction="batchmean",
            log_target=True,
        )
        hard = functional.cross_entropy(found, own, reduction="sum") / len(own)
        loss += part.weight * (settings.soft_weight * heat**2 * soft + (1 - settings.soft_weight) * hard)
    return loss + _hidden_loss(outputs, batch, settings)


def _hidden_loss(outputs: Any, batch: Mapping[str, Any], settings: Distillation) -> Any:
    """The cost of hidden states that differ over real tokens; 0 where they don't count."""
    if not settings.hidden_weight:
        return 0.0
    mask = batch["attention_mask"].unsqueeze(-1).float()
    difference = (outputs.hidden_states[-1].float() - batch["teacher_hidden"]) * mask
    return settings.hidden_weight * difference.square().sum() / (mask.sum() * difference.shape[-1])


def with_teacher(pad: Callable[..., Any], teacher: Teacher) -> Callable[[Sequence[Mapping[str, Any]]], Any]:
    """A collator that adds the teacher's answers to rows which have their number under `row`."""
    import torch

    def collate(rows: Sequence[Mapping[str, Any]]) -> Any:
        batch = pad([{key: value for key, value in row.items() if key != "row"} for row in rows])
        if "row" in rows[0]:
            numbers = [int(row["row"]) for row in rows]
            length = batch["input_ids"].shape[1]
            batch["teacher_logits"] = torch.from_numpy(teacher.logits_of(numbers, length))
            if teacher.hidden is not None:
                batch["teacher_hidden"] = torch.from_numpy(teacher.hidden_of(numbers, length))
        return batch

    return collate
