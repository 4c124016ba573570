"""Learning by contrast: texts of one label near each other, those of other labels far.

Each row of a batch is drawn to those of its own label, against all rows of other labels in the batch: multiple
negatives ranking (Henderson et al. 2017, section 4.4) with rows of the same label left out of the negatives and every
one of them a positive (Khosla et al. 2020, equation 2).
"""

from __future__ import annotations

__all__ = ["PairSampler", "check_pairs", "contrastive_loss", "paired_order"]

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import DataError

_MEGABATCH = 50
"""Batches that are sorted by length together."""


def contrastive_loss(embeddings: Any, labels: Any, temperature: float) -> Any:
    """The loss of a batch, a scalar tensor: the mean over rows that have another one of their label; 0 where none has.

    Args:
        embeddings: [rows, width], of length one.
        labels: int64 [rows].
        temperature: what cosines are divided by.
    """
    import torch
    from torch.nn import functional

    similar = embeddings.float() @ embeddings.float().T / temperature
    same = labels[:, None] == labels[None]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    # A batch of one label has no negatives; a number low enough, as the slope of a sum over nothing is none.
    negatives = similar.masked_fill(same, -1e4).logsumexp(dim=1)
    costs = functional.softplus(negatives[:, None] - similar) * positive
    count = positive.sum(dim=1)
    paired = count > 0
    return (costs.sum(dim=1)[paired] / count[paired]).sum() / paired.sum().clamp_min(1)


def check_pairs(labels: Sequence[int]) -> None:
    """Refuse rows of which none has another one of its label.

    Raises:
        DataError: says what to do.
    """
    if len(set(labels)) == len(labels):
        raise DataError(
            f"all {len(labels)} training rows have labels of their own: nothing can be drawn together",
            "add a second text to some of them, or train nothing: finetune.epochs=0",
        )


def paired_order(
    labels: Sequence[int], lengths: Sequence[int], batch_size: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """The rows of an epoch in an order in which two by two have the same label, as far as there are two.

    Pairs of like lengths come together, so that batches pad little. Every row is there once.

    Args:
        labels: of the rows.
        lengths: of the rows, in tokens.
        batch_size: rows of a batch.
        random: what everything is drawn from.
    """
    owner, tokens = np.asarray(labels), np.asarray(lengths)
    mixed = random.permutation(len(owner))
    mixed = mixed[np.argsort(owner[mixed], kind="stable")]
    first = np.r_[0, np.flatnonzero(np.diff(owner[mixed])) + 1]
    place = np.arange(len(mixed)) - np.repeat(first, np.diff(np.r_[first, len(mixed)]))
    paired = np.zeros(len(mixed), dtype=bool)
    halves = np.flatnonzero((place[1:] % 2 == 1) & (owner[mixed][1:] == owner[mixed][:-1]))
    paired[halves] = paired[halves + 1] = True
    rest = random.permutation(mixed[~paired])
    odd = rest[len(rest) - len(rest) % 2 :]
    pairs = np.concatenate([mixed[paired], rest[: len(rest) - len(odd)]]).reshape(-1, 2)
    pairs = pairs[random.permutation(len(pairs))]
    longest = tokens[pairs].max(axis=1)
    step = _MEGABATCH * max(batch_size // 2, 1)
    parts = [np.arange(begin, min(begin + step, len(pairs))) for begin in range(0, len(pairs), step)]
    order = [part[np.argsort(-longest[part], kind="stable")] for part in parts]
    found: NDArray[np.int64] = np.concatenate([*(pairs[part].ravel() for part in order), odd]).astype(np.int64)
    return found


class PairSampler:
    """Orders each epoch in pairs, by its seed alone.

    Args:
        rows: with `labels` and `input_ids`.
        batch_size: of one step of the optimizer.
        seed: gives the seed of the epoch that begins.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], batch_size: int, seed: Callable[[], int]) -> None:
        self._labels = [int(row["labels"]) for row in rows]
        self._lengths = [len(row["input_ids"]) for row in rows]
        self._batch_size, self._seed = batch_size, seed

    def __len__(self) -> int:
        return len(self._labels)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng(self._seed())
        return iter(paired_order(self._labels, self._lengths, self._batch_size, random).tolist())
