"""Structured pruning of one output matrix by the optimal brain surgeon, one structure at a time.

ZipLM (Kurtic, Frantar and Alistarh 2023), section 3: with H = X X^T + lambda I of the matrix's inputs X, removing the
structure S (a set of columns) from W costs sum_i W_iS ((H^-1)_SS)^-1 W_iS^T; the columns that stay are updated so that
W X changes least, and H^-1 is downdated.
"""

from __future__ import annotations

__all__ = ["Level", "prune_levels"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Level:
    """One matrix with so many of its structures left.

    Attributes:
        kept: the structures that stay, ascending.
        weight: [outputs, kept columns], updated for those that went.
        error: squared change of the output over the squared output, on the calibration data.
    """

    kept: tuple[int, ...]
    weight: torch.Tensor
    error: float


def prune_levels(
    weight: torch.Tensor, hessian: torch.Tensor, size: int, levels: Sequence[int], *, damping: float = 0.01
) -> dict[int, Level]:
    """The matrix at every level of pruning asked for.

    Args:
        weight: [outputs, inputs].
        hessian: X X^T of the matrix's inputs, [inputs, inputs].
        size: columns of one structure: the head's width, or 1 for an FFN column. Structures are consecutive columns.
        levels: how many structures stay.
        damping: lambda, as a share of the mean of the diagonal.

    Returns:
        the matrix by the number of structures that stay.
    """
    import torch

    count = weight.shape[1] // size
    original = weight.detach().double()
    exact = hessian.double()
    mean = exact.diagonal().mean().clamp_min(1e-12)
    eye = torch.eye(len(exact), dtype=exact.dtype)
    inverse = torch.linalg.inv(exact + damping * mean * eye).float()
    left = original.float().clone()
    alive = torch.ones(count, dtype=torch.bool)
    total = float(torch.einsum("oi,ij,oj->", original, exact, original)) or 1.0
    found: dict[int, Level] = {}

    def keep() -> None:
        columns = alive.repeat_interleave(size)
        change = left.double() * columns - original
        error = float(torch.einsum("oi,ij,oj->", change, exact, change)) / total
        kept = tuple(int(number) for number in alive.nonzero().flatten())
        found[len(kept)] = Level(kept, left[:, columns].clone(), max(error, 0.0))

    wanted = set(levels)
    for remaining in range(count, 0, -1):
        if remaining in wanted:
            keep()
        if remaining <= min(wanted):
            break
        if size == 1:
            scores = left.square().sum(0) / inverse.diagonal().clamp_min(1e-12)
        else:
            blocks = torch.stack([inverse[s : s + size, s : s + size] for s in range(0, count * size, size)])
            blocks[~alive] = torch.eye(size)
            parts = left.reshape(len(left), count, size).permute(1, 0, 2)
            scores = (torch.linalg.solve(blocks, parts.transpose(1, 2)) * parts.transpose(1, 2)).sum((1, 2))
        scores[~alive] = torch.inf
        worst = int(scores.argmin())
        columns = slice(worst * size, worst * size + size)
        strip = torch.linalg.solve(inverse[columns, columns], inverse[columns])  # [size, inputs]
        left.addmm_(left[:, columns].clone(), strip, alpha=-1)
        inverse.addmm_(inverse[:, columns].clone(), strip, alpha=-1)
        alive[worst] = False
        gone = torch.arange(columns.start, columns.stop)
        left[:, gone] = 0
        inverse[gone] = 0
        inverse[:, gone] = 0
        inverse[gone, gone] = 1
    return found
