"""More messages like those of the data, for a teacher to answer: words left out, swapped, replaced by their like.

The replacement by neighbours in the embedding is that of TinyBERT (Jiao et al. 2020, section 3.3 and appendix), over
token ids; joining the halves of two messages gives what lies between their labels.
"""

from __future__ import annotations

__all__ = ["altered_rows", "nearest_pieces"]

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NEIGHBOURS = 8
_JOIN = 0.3
"""Of the rows are the start of one message and the end of another."""
_DROP, _REPLACE, _SWAP = 0.08, 0.15, 0.05
"""Of the pieces of a row."""


def altered_rows(
    rows: Sequence[Sequence[int]], neighbours: NDArray[np.int64], copies: int, seed: int
) -> list[list[int]]:
    """So many altered copies of each row.

    Args:
        rows: token ids with one special token at the start and one at the end.
        neighbours: [pieces, k], what may stand for a piece; a piece without any has itself.
        copies: for each row.
        seed: of every choice.
    """
    random = np.random.default_rng(seed)
    found = []
    for _ in range(copies):
        partners = random.permutation(len(rows))
        for number, row in enumerate(rows):
            inner = list(row[1:-1])
            if random.random() < _JOIN:
                other = rows[partners[number]][1:-1]
                start = inner[: int(random.integers(1, len(inner) + 1))] if inner else []
                inner = [*start, *other[int(random.integers(0, len(other))) if other else 0 :]]
                inner = inner[: max(len(row), len(rows[partners[number]])) - 2]
            found.append([row[0], *_shaken(inner, neighbours, random), row[-1]])
    return found


def _shaken(pieces: Sequence[int], neighbours: NDArray[np.int64], random: np.random.Generator) -> list[int]:
    draws = random.random((3, len(pieces)))
    kept = [
        int(neighbours[piece, random.integers(0, neighbours.shape[1])]) if replace < _REPLACE else piece
        for piece, drop, replace in zip(pieces, draws[0], draws[1], strict=True)
        if drop >= _DROP
    ] or list(pieces[:1])
    for place in range(len(kept) - 1):
        if draws[2, place] < _SWAP:
            kept[place], kept[place + 1] = kept[place + 1], kept[place]
    return kept


def nearest_pieces(table: Any, used: Sequence[int], fixed: Sequence[int]) -> NDArray[np.int64]:
    """For each piece the pieces nearest to it by the cosine of their embeddings, itself not among them.

    Args:
        table: the embedding, a float tensor [pieces, width].
        used: the pieces that the data has: only they are replaced, and by each other.
        fixed: pieces that stay as they are: special tokens.

    Returns:
        int64 [pieces, k].
    """
    import torch

    like = sorted(set(used) - set(fixed))
    count = min(_NEIGHBOURS, len(like) - 1)
    found = np.repeat(np.arange(len(table))[:, None], max(count, 1), axis=1)
    if count > 0:
        vectors = torch.nn.functional.normalize(table[like].float(), dim=-1)
        alike = vectors @ vectors.T
        alike.fill_diagonal_(-2.0)
        found[like] = np.array(like)[alike.topk(count).indices.numpy()]
    return found
