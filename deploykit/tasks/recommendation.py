"""Recommendation: a customer's history in, the items that come next out, likeliest first, each with its probability."""

from __future__ import annotations

__all__ = ["DEPTH", "Item", "Recommendation", "Recommended"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from deploykit.data.labels import Label
from deploykit.tasks.base import Answer, Loss, Outputs, Scores, ServedOutput
from deploykit.tasks.checkpoint import check_known
from deploykit.tasks.entry import entry_files, entry_source
from deploykit.tasks.retrieval import Retrieval, ranked_rows, ranks
from deploykit.tasks.text_classification import Classified, TextClassification

DEPTH = 10
"""The places of a ranking that count, and that a client is given who does not say how many."""


@dataclass(frozen=True)
class Item:
    """A recommended item, its probability, and its text where it has one."""

    name: str
    score: float = 1.0
    answer: str = ""

    def as_json(self) -> dict[str, Any]:
        """`item`, `score` and `answer`."""
        return {"item": self.name, "score": self.score, "answer": self.answer}


@dataclass(frozen=True)
class Recommended:
    """The items for one history, likeliest first. Two are equal that have the same first item.

    Below the first place items of nearly the same score change places at the last digits of a score.
    """

    first: str
    items: tuple[Item, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return self.first

    def as_json(self, text: str) -> dict[str, Any]:
        """`items`, a list of `item`, `score` (a probability) and `answer` (its text, empty where it has none)."""
        return {"items": [item.as_json() for item in self.items]}

    def line(self, text: str) -> str:
        """The items with their probabilities, then the history."""
        return f"{', '.join(f'{item.name} {item.score:.1%}' for item in self.items)}  {text}"

    def rank(self, name: str) -> int | None:
        """The place of an item, from 1; None where it is not among them."""
        return next((place for place, item in enumerate(self.items, start=1) if item.name == name), None)


class Recommendation(Retrieval):
    """What a user takes next: two towers over one encoder, and what is wanted by everybody added.

    The towers are those of Yi et al. 2019 (Sampling-bias-corrected neural modeling, section 3): the vector of a history
    against those of all items. Trained against the items of other rows in a batch, which come as often as they are
    wanted, cosines say how much likelier than usual an item is; the logarithm of how often it is wanted is the bias of
    the graph's last product, so that the logits are those of a probability.
    """

    name = "recommendation"
    metric = f"ndcg@{DEPTH}"
    losses: tuple[Loss, ...] = ("two_towers",)
    served = (
        ServedOutput("item", "BYTES", (-1,)),
        ServedOutput("answer", "BYTES", (-1,)),
        ServedOutput("score", "FP32", (-1,)),
    )

    def metrics(
        self, predictions: NDArray[Any], targets: NDArray[Any], label_names: Sequence[str]
    ) -> Mapping[str, float]:
        """NDCG and hit rate at 10, and the mean reciprocal rank, as fractions."""
        found = ranks(predictions, targets)
        return {
            self.metric: float(np.mean(_gains(found))),
            f"hit_rate@{DEPTH}": float(np.mean(found <= DEPTH)),
            "mrr": float(np.mean(1 / found)),
        }

    def answers(self, outputs: Outputs, label_names: Sequence[str], top_k: int = DEPTH) -> list[Answer]:
        """The `top_k` likeliest items of each history; ties go to the lower index."""
        found = [cast(Classified, each) for each in TextClassification.answers(self, outputs, label_names, top_k)]
        return [
            _ranked([Item(each.label, each.score), *(Item(name, score) for name, score in each.alternatives)])
            for each in found
        ]

    def right_answers(self, labels: Sequence[Label], label_names: Sequence[str]) -> list[Answer]:
        """The items that were taken.

        Raises:
            DataError: an item that the model does not know.
        """
        check_known(map(str, labels), label_names)
        return [Recommended(str(label), (Item(str(label)),)) for label in labels]

    def scores(self, answers: Sequence[Answer], right: Sequence[Answer]) -> Scores:
        """The discounted gain of the item that was taken, of 1 for the first place: their mean is the NDCG.

        One item is right for each history, so the ideal ranking gains 1 (Järvelin and Kekäläinen 2002, section 2.2).
        """
        places = [cast(Recommended, ours).rank(str(wanted)) for ours, wanted in zip(answers, right, strict=True)]
        earned = _gains(np.array([place or len(right) + DEPTH + 1 for place in places], dtype=np.int64))
        return Scores(earned, np.ones_like(earned))

    def entry(self) -> tuple[Path, ...]:
        """The text model's source files."""
        return entry_files("recommendation", entry_source("retrieval"))

    def served_settings(self, folder: Path) -> Mapping[str, Any]:
        """As for retrieval, and `depth`, how many items are answered unless a request says so."""
        return {**super().served_settings(folder), "depth": DEPTH}

    def served_answers(self, found: Outputs) -> list[Answer]:
        """The items, their texts and scores that the text model sent, each [histories, k].

        Raises:
            ValueError: that is not what it sends.
        """
        return [_ranked([Item(*each) for each in row]) for row in ranked_rows(found, "item")]


def _ranked(items: Sequence[Item]) -> Recommended:
    return Recommended(items[0].name, tuple(items))


def _gains(places: NDArray[np.int64]) -> NDArray[np.float64]:
    """What the right item's place in a ranking earns: 1 over the logarithm (base 2) of 1 + place, 0 behind `DEPTH`."""
    gains: NDArray[np.float64] = np.where(places <= DEPTH, 1 / np.log2(1 + places), 0.0)
    return gains
