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
    alive = list(range(count))
    total = float(((original @ exact) * original).sum()) or 1.0
    found: dict[int, Level] = {}

    def columns_of(structures: Sequence[int]) -> torch.Tensor:
        return torch.tensor([structure * size + part for structure in structures for part in range(size)])

    wanted = set(levels)
    gone: list[int] = []  # places among those alive
    for remaining in range(count, 0, -1):
        if remaining in wanted:
            places = [place for place in range(len(alive)) if place not in set(gone)]
            alive, gone = [alive[place] for place in places], []
            columns = columns_of(places)  # what is left is all that is worked on from here
            left, inverse = left[:, columns].contiguous(), inverse[columns][:, columns].contiguous()
            change = -original
            change[:, columns_of(alive)] += left.double()
            error = float(((change @ exact) * change).sum()) / total
            found[remaining] = Level(tuple(alive), left.clone(), max(error, 0.0))
        if remaining <= min(wanted):
            break
        if size == 1:
            scores = left.square().sum(0) / inverse.diagonal().clamp_min(1e-12)
        else:
            starts = range(0, len(alive) * size, size)
            blocks = torch.stack([inverse[start : start + size, start : start + size] for start in starts])
            parts = left.reshape(len(left), len(alive), size).permute(1, 2, 0)
            scores = (torch.linalg.solve(blocks, parts) * parts).sum((1, 2))
        scores[gone] = torch.inf
        worst = int(scores.argmin())
        part = slice(worst * size, worst * size + size)
        strip = torch.linalg.solve(inverse[part, part], inverse[part])  # [size, inputs]
        left.addmm_(left[:, part].clone(), strip, alpha=-1)
        inverse.addmm_(inverse[:, part].clone(), strip, alpha=-1)
        gone.append(worst)
        left[:, part] = 0
        inverse[part] = 0
        inverse[:, part] = 0
        inverse[part, part] = torch.eye(size)
    return found
