"""Rows of unequal length as one array, what of it is no padding, and batches put together again."""

from __future__ import annotations

__all__ = ["equally_long", "padded_rows", "real_tokens", "reunited"]

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def padded_rows(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Rows of unequal length [tokens, ...] as one array [rows, longest, ...], zeros behind their ends."""
    padded = np.zeros((len(rows), max(map(len, rows)), *rows[0].shape[1:]), dtype=rows[0].dtype)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return padded


def real_tokens(values: NDArray[Any], mask: NDArray[np.int64]) -> NDArray[Any]:
    """What a model gives for each token, with zeros where there is only padding: the same in whatever batch.

    Args:
        values: [messages, tokens, ...].
        mask: [messages, tokens], 1 for real tokens.
    """
    if mask.all():
        return values
    return np.where(mask.reshape(*mask.shape, *(1,) * (values.ndim - 2)) > 0, values, np.zeros((), values.dtype))


def equally_long(*arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Arrays [messages, tokens, ...] with as many tokens as the longest, zeros behind the end; others as they are."""
    if any(each.ndim < 3 or each.shape[2:] != arrays[0].shape[2:] for each in arrays):
        return arrays
    longest = max(each.shape[1] for each in arrays)
    room = [[(0, 0), (0, longest - each.shape[1]), *[(0, 0)] * (each.ndim - 2)] for each in arrays]
    return tuple(np.pad(each, pads) if pads[1][1] else each for each, pads in zip(arrays, room, strict=True))


def reunited(groups: Sequence[Sequence[int]], parts: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The outputs of all messages in their order, of outputs by group.

    Args:
        groups: the numbers of the messages in each group, each of them once.
        parts: the outputs of each group.
    """
    order = np.argsort(np.concatenate([np.asarray(group, dtype=np.int64) for group in groups]), kind="stable")
    return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
