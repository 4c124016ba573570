"""Two towers over one encoder: each message near the text of its entry, far from the texts of other entries.

The entries of the other rows of a batch are the negatives. They come as often as they are asked for, so cosines over
the temperature learn how much likelier than usual an entry is with a message, and the logarithm of how often it is
asked for is added to them afterwards (Yi et al. 2019, Sampling-bias-corrected neural modeling for large corpus item
recommendations, section 3; Menon et al. 2021, Long-tail learning via logit adjustment, section 4).
"""

from __future__ import annotations

__all__ = [
    "TowerSampler", "head_fitting", "popularity_bias", "popularity_figures", "tower_order", "tower_rows",
    "tower_splits", "towers_loss",
]  # fmt: skip

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.data.dataset import LabelledData
from deploykit.data.entries import Entries
from deploykit.errors import UsageError
from deploykit.recipe import Finetune
from deploykit.tasks import Task
from deploykit.tasks.base import Loss
from deploykit.tasks.pooling import SCALE
from deploykit.train.heads import Fitting
from deploykit.train.rows import Row, training_rows

_MEGABATCH = 50
"""Batches that are sorted by length together."""


def tower_rows(messages: Sequence[Row], entries: Sequence[Row], seed: int) -> list[Row]:
    """Each message and behind it a text of its entry, both with `entry`: 0 for the message, 1 for the text.

    Args:
        messages: with `labels`.
        entries: with `labels`, every label of a message among them; of several texts of one, one is drawn.
        seed: of the drawing.
    """
    texts: dict[int, list[Row]] = {}
    for row in entries:
        texts.setdefault(row["labels"], []).append(row)
    random = np.random.default_rng(seed)
    found: list[Row] = []
    for row in messages:
        own = texts[row["labels"]]
        found += [row | {"entry": 0}, own[int(random.integers(len(own)))] | {"entry": 1}]
    return found


def towers_loss(embeddings: Any, labels: Any, entry: Any, temperature: float) -> Any:
    """The loss of a batch, a scalar tensor: the mean over its messages; 0 where none has the text of its entry.

    Args:
        embeddings: [rows, width], of length one.
        labels: int64 [rows].
        entry: int64 [rows], 1 for the texts of entries.
        temperature: what cosines are divided by.
    """
    from torch.nn import functional

    text = entry == 1
    similar = embeddings[~text].float() @ embeddings[text].float().T / temperature
    same = labels[~text][:, None] == labels[text][None]
    # A batch of one entry has no negatives; a number low enough, as the slope of a sum over nothing is none.
    negatives = similar.masked_fill(same, -1e4).logsumexp(dim=1)
    count = same.sum(dim=1)
    costs = (functional.softplus(negatives[:, None] - similar) * same).sum(dim=1) / count.clamp_min(1)
    return costs.sum() / (count > 0).sum().clamp_min(1)


def popularity_bias(labels: Sequence[int], entries: int, temperature: float) -> NDArray[np.float32]:
    """What is added to the logits of each entry for how often it is asked for: float32 [entries].

    Every entry counts once more than it was asked for, so that a new one can be found.

    Args:
        labels: of the training messages.
        entries: how many there are.
        temperature: what cosines were divided by in the training.
    """
    counts = np.bincount(np.asarray(labels), minlength=entries) + 1
    bias: NDArray[np.float32] = (SCALE * temperature * np.log(counts / counts.sum())).astype(np.float32)
    return bias


def tower_order(lengths: Sequence[int], batch_size: int, random: np.random.Generator) -> NDArray[np.int64]:
    """The rows of an epoch in an order in which a message and the text of its entry stay together.

    Args:
        lengths: of the rows, in tokens: a message and its text in turn.
        batch_size: rows of a batch.
        random: what everything is drawn from.
    """
    longest = np.asarray(lengths).reshape(-1, 2).max(axis=1)
    mixed = random.permutation(len(longest))
    step = _MEGABATCH * max(batch_size // 2, 1)
    parts = [mixed[begin : begin + step] for begin in range(0, len(mixed), step)]
    pairs = np.concatenate([part[np.argsort(-longest[part], kind="stable")] for part in parts])
    found: NDArray[np.int64] = np.stack([2 * pairs, 2 * pairs + 1], axis=1).ravel().astype(np.int64)
    return found


class TowerSampler:
    """Orders each epoch in pairs of a message and the text of its entry, by its seed alone.

    Args:
        rows: as `tower_rows` gives them.
        batch_size: of one step of the optimizer.
        seed: gives the seed of the epoch that begins.
    """

    def __init__(self, rows: Sequence[Row], batch_size: int, seed: Callable[[], int]) -> None:
        self._lengths = [len(row["input_ids"]) for row in rows]
        self._batch_size, self._seed = batch_size, seed

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng(self._seed())
        return iter(tower_order(self._lengths, self._batch_size, random).tolist())


def tower_splits(
    messages: Sequence[Row],
    tokenizer: Any,
    network: Any,
    data: LabelledData,
    task: Task,
    entries: Entries | None,
    seed: int,
    loss: Loss,
) -> dict[str, list[Row]]:
    """The rows to train two towers on, and those of the entries; nothing for another loss.

    Raises:
        UsageError: there are no entries.
    """
    if loss != "two_towers":
        return {}
    if entries is None:
        raise UsageError("two towers need entries, and there are none", "name them: data.entries, or --entries")
    standing = list(training_rows(tokenizer, network, entries.texts, task, entries.labels, data.label_names))
    return {"train": tower_rows(messages, standing, seed), "entries": standing}


def head_fitting(
    network: Any,
    splits: Mapping[str, Sequence[Row]],
    data: LabelledData,
    settings: Finetune,
    task: Task,
    collate: Any,
    seed: int,
) -> Fitting:
    """What fits the head: to the training rows, without their altered copies behind them, or to the entries."""
    if "entries" not in splits:
        return Fitting(network, splits["train"][: len(data.train)], collate, task, seed)
    asked = [row["labels"] for row in splits["train"][: 2 * len(data.train) : 2]]
    bias = popularity_bias(asked, len(data.label_names), settings.temperature)
    return Fitting(network, splits["entries"], collate, task, seed, bias)


def popularity_figures(
    fitting: Fitting | None, rows: Sequence[Row], task: Task, names: Sequence[str]
) -> dict[str, float]:
    """What the task's metric would be if every message were answered with what is asked for most; for two towers."""
    if fitting is None or fitting.bias is None:
        return {}
    targets = np.array([row["labels"] for row in rows])
    found = task.metrics(np.broadcast_to(fitting.bias, (len(rows), len(names))), targets, names)
    return {f"popularity_{task.metric}": found[task.metric]}
