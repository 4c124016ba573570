"""Retrieval: one message in, the entries of a FAQ that answer it out, nearest first, each with its score."""

from __future__ import annotations

__all__ = ["Retrieval", "Retrieved", "ranked_rows", "ranks"]

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit.data.labels import Label
from deploykit.tasks.base import Answer, Loss, Outputs, ServedOutput
from deploykit.tasks.checkpoint import check_known, load_checkpoint
from deploykit.tasks.entry import entry_files
from deploykit.tasks.pooling import ANSWERS_KEY, SCALE
from deploykit.tasks.sentence import SentenceAuto
from deploykit.tasks.text_classification import TextClassification

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Retrieved:
    """The nearest entry to a message, its cosine, its text where it has one, and the next nearest ones."""

    entry: str
    score: float = field(default=1.0, compare=False)
    answer: str = field(default="", compare=False)
    alternatives: tuple[Retrieved, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return self.entry

    def as_json(self, text: str) -> dict[str, Any]:
        """`entry`, `score` (a cosine), `answer` (its text, empty where it has none), and `alternatives` of them."""
        return {**self._fields(), "alternatives": [other._fields() for other in self.alternatives]}

    def line(self, text: str) -> str:
        """The entry with its score and text, the next ones, then the message."""
        others = "".join(f", {other.entry} {other.score:.3f}" for other in self.alternatives)
        said = f": {self.answer}" if self.answer else ""
        return f"{self.entry} ({self.score:.3f}{others}){said}  {text}"

    def _fields(self) -> dict[str, Any]:
        return {"entry": self.entry, "score": self.score, "answer": self.answer}


class Retrieval(TextClassification):
    """FAQ retrieval: the index is the last product of the graph, so that one call goes from text to entry.

    A logit is `SCALE` times the cosine of a message and the nearest text of an entry. The search is exact.
    """

    name = "retrieval"
    metric = "recall@1"
    losses: tuple[Loss, ...] = ("contrastive",)
    entries = True
    served = (
        ServedOutput("entry", "BYTES", (-1,)),
        ServedOutput("answer", "BYTES", (-1,)),
        ServedOutput("score", "FP32", (-1,)),
    )

    def load_model(self, folder: Path, labels: Sequence[str] | None = None, **settings: Any) -> PreTrainedModel:
        """The sentence model of a checkpoint folder; see `load_checkpoint`."""
        settings.pop("pooling", None)
        return load_checkpoint(folder, SentenceAuto, self.name, labels, **settings)

    def metrics(
        self, predictions: NDArray[Any], targets: NDArray[Any], label_names: Sequence[str]
    ) -> Mapping[str, float]:
        """Recall at 1 and 5, and the mean reciprocal rank, as fractions."""
        found = ranks(predictions, targets)
        return {
            self.metric: float(np.mean(found == 1)),
            "recall@5": float(np.mean(found <= 5)),
            "mrr": float(np.mean(1 / found)),
        }

    def answers(self, outputs: Outputs, label_names: Sequence[str], top_k: int = 1) -> list[Answer]:
        """The `top_k` nearest entries of each message with their cosines; ties go to the lower index."""
        cosines = outputs[self.output].astype(np.float64) / SCALE
        order = np.argsort(-cosines, axis=-1, kind="stable")[:, :top_k]
        return [
            _ranked([Retrieved(label_names[index], float(cosines[row, index])) for index in best])
            for row, best in enumerate(order)
        ]

    def right_answers(self, labels: Sequence[Label], label_names: Sequence[str]) -> list[Answer]:
        """The entries.

        Raises:
            DataError: an entry that the model does not know.
        """
        check_known(map(str, labels), label_names)
        return [Retrieved(str(label)) for label in labels]

    def entry(self) -> tuple[Path, ...]:
        """The text model's source files."""
        return entry_files("retrieval")

    def served_settings(self, folder: Path) -> Mapping[str, Any]:
        """How a text model ranks and tells entries.

        `scale`, that a cosine is multiplied by to be a logit; `answers`, the entries' texts by name; `depth`, how many
        are answered unless a request says so.
        """
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return {"scale": SCALE, "answers": config.get(ANSWERS_KEY) or {}, "depth": 1}

    def served_answers(self, found: Outputs) -> list[Answer]:
        """The entries, their texts and scores that the text model sent, each [messages, k].

        Raises:
            ValueError: that is not what it sends.
        """
        return [_ranked([Retrieved(*each) for each in row]) for row in ranked_rows(found, "entry")]


def ranked_rows(found: Outputs, name: str) -> list[list[tuple[str, float, str]]]:
    """Name, score and text of what a text model ranked, for each message, best first.

    Args:
        found: `name`, `answer` and `score`, each [messages, k].
        name: the output that names them.

    Raises:
        ValueError: that is not what it sends.
    """
    names, answers, scores = found[name], found["answer"], found["score"]
    readable = names.dtype == answers.dtype == np.object_ and scores.dtype.kind == "f"
    if not readable or not names.shape == answers.shape == scores.shape or names.ndim != 2 or not names.size:
        raise ValueError(f"{name} {names.shape}, answers {answers.shape}, scores {scores.dtype} {scores.shape}")
    return [
        [
            (each.decode("utf-8", "replace"), float(score), answer.decode("utf-8", "replace"))
            for each, answer, score in zip(*row, strict=True)
        ]
        for row in zip(names, answers, scores, strict=True)
    ]


def ranks(logits: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.int64]:
    """The rank of each message's own entry, from 1: int64 [messages]. Of equal logits the lower index comes first.

    What is not a number comes before all others, so that a broken model ranks nothing well.

    Args:
        logits: [messages, entries].
        targets: the right entry of each, an index.
    """
    own = logits[np.arange(len(targets)), targets][:, np.newaxis]
    before = ~(logits <= own) | ((logits == own) & (np.arange(logits.shape[1]) < np.asarray(targets)[:, np.newaxis]))
    found: NDArray[np.int64] = 1 + before.sum(axis=1)
    return found


def _ranked(found: Sequence[Retrieved]) -> Retrieved:
    first, *others = found
    return Retrieved(first.entry, first.score, first.answer, tuple(others))
