"""Rows of unequal length as one array, and what of it is no padding."""

from __future__ import annotations

__all__ = ["padded_rows", "real_tokens"]

from collections.abc import Sequence
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
