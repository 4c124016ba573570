"""Which levels to prune to: dynamic programming under a budget of milliseconds. Pure functions.

The problem and its solution are those of SPDY (Frantar and Alistarh 2022) as ZipLM uses it: a layer's options have a
time and an error; errors are weighed by layer, and the weights found by random search on the real loss.
"""

from __future__ import annotations

__all__ = [
    "LatencyTable",
    "LayerChoice",
    "Option",
    "Options",
    "Sizes",
    "cheapest",
    "choice_of",
    "fit_table",
    "layer_options",
    "name_of",
    "spaced",
]

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LayerChoice = tuple[int, int] | None
"""Heads and FFN columns that stay in a layer; None where the layer goes."""

_BINS = 2000
_TIGHTER = 0.97
"""The next budget, where a choice does not fit."""


def name_of(choice: Sequence[LayerChoice]) -> str:
    """A choice as part of a file's name: `4.64-x` keeps 4 heads and 64 columns of the first of two layers."""
    return "-".join("x" if layer is None else f"{layer[0]}.{layer[1]}" for layer in choice)


def choice_of(name: str) -> list[LayerChoice]:
    """The choice of a name."""
    parts = [part.partition(".") for part in name.split("-")]
    return [None if heads == "x" else (int(heads), int(columns)) for heads, _, columns in parts]


@dataclass(frozen=True)
class LatencyTable:
    """What the parts of a model take on the target, in milliseconds at p50.

    Attributes:
        fixed_ms: everything but the layers; with it the last layer's FFN at its least, which is always there.
        heads_ms: attention by the heads that stay.
        columns_ms: the FFN by the columns that stay.
        last_columns_ms: that of the last layer that stays, which works for the first token alone where the head reads
            no other.
        reference_ms: the unpruned model in PyTorch, in the same run.
    """

    fixed_ms: float
    heads_ms: Mapping[int, float]
    columns_ms: Mapping[int, float]
    last_columns_ms: Mapping[int, float]
    reference_ms: float

    def layer_ms(self, choice: LayerChoice, *, last: bool = False) -> float:
        """A layer's time; between the levels that were measured, the straight line."""
        if choice is None:
            return 0.0
        return _between(self.heads_ms, choice[0]) + _between(
            self.last_columns_ms if last else self.columns_ms, choice[1]
        )

    def model_ms(self, choice: Sequence[LayerChoice]) -> float:
        """A whole model's time."""
        *before, last = [layer for layer in choice if layer is not None]
        return self.fixed_ms + sum(self.layer_ms(layer) for layer in before) + self.layer_ms(last, last=True)


@dataclass(frozen=True)
class Sizes:
    """What the parts of a model take on disk, in megabytes (10^6 bytes).

    Attributes:
        fixed_mb: everything but the layers, the tokenizer's files with it.
        head_mb: one attention head.
        column_mb: one FFN column.
    """

    fixed_mb: float
    head_mb: float
    column_mb: float

    def model_mb(self, choice: Sequence[LayerChoice]) -> float:
        """A whole model's size."""
        return self.fixed_mb + sum(
            layer[0] * self.head_mb + layer[1] * self.column_mb for layer in choice if layer is not None
        )


def fit_table(
    timed: Sequence[tuple[Sequence[LayerChoice], float]],
    heads: Sequence[int],
    columns: Sequence[int],
    reference_ms: float,
) -> LatencyTable:
    """The table that explains the times of whole models best: least squares of the relative errors.

    Times of the parts are sums of what each level adds to the one below, and nothing adds less than nothing, so that
    noise can't make more cost less.

    Args:
        timed: what each model kept of its layers, and its milliseconds; one that counts more stands there more often.
        heads: the levels of attention to give a time.
        columns: the levels of the FFN.
        reference_ms: the unpruned model in PyTorch.
    """
    from scipy.optimize import nnls

    heads, columns = sorted(heads), sorted(columns)

    def shares(levels: Sequence[int], level: int) -> list[float]:
        below = [0, *levels[:-1]]
        return [min(max((level - low) / (high - low), 0.0), 1.0) for low, high in zip(below, levels, strict=True)]

    least, most = columns[0], columns[-1]  # at which the last layer's FFN is timed
    rows = []
    for choice, ms in timed:
        kept = [layer for layer in choice if layer is not None]
        attention = np.sum([shares(heads, layer[0]) for layer in kept], axis=0)
        inner = np.sum([[0.0] * len(columns), *(shares(columns, layer[1]) for layer in kept[:-1])], axis=0)
        last = shares([least, most], kept[-1][1])[1] if most > least else 0.0
        rows.append(np.array([1.0, *attention, *inner, last]) / ms)
    # Attention and FFN at their lowest levels are always there together, and so is the last layer with what is fixed:
    # a hint of a ridge divides them. No model's time depends on how.
    ridge = 1e-3 * np.eye(len(rows[0]))
    parts, _ = nnls(np.vstack([*rows, ridge]), np.concatenate([np.ones(len(rows)), np.zeros(len(ridge))]))
    by_heads, by_columns = np.cumsum(parts[1 : 1 + len(heads)]), np.cumsum(parts[1 + len(heads) : -1])
    return LatencyTable(
        fixed_ms=float(parts[0]),
        heads_ms=dict(zip(heads, by_heads.tolist(), strict=True)),
        columns_ms=dict(zip(columns, by_columns.tolist(), strict=True)),
        last_columns_ms={least: 0.0, most: float(parts[-1])} if most > least else {most: 0.0},
        reference_ms=reference_ms,
    )


@dataclass(frozen=True)
class Option:
    """What one layer can become, with its time in milliseconds and its error."""

    choice: LayerChoice
    ms: float
    error: float


@dataclass(frozen=True)
class Options:
    """What one layer can become.

    Attributes:
        inner: where others stay behind it; that it goes is one of them.
        last: where none does.
    """

    inner: tuple[Option, ...]
    last: tuple[Option, ...]


def layer_options(heads: Mapping[int, float], columns: Mapping[int, float], table: LatencyTable) -> Options:
    """The options of one layer: errors by heads and by columns that stay; a part that is gone has error 1."""
    kept = [(h, c) for h in sorted(heads) for c in sorted(columns)]
    inner, last = (
        tuple(
            Option(choice, table.layer_ms(choice, last=is_last), heads[choice[0]] + columns[choice[1]])
            for choice in kept
        )
        for is_last in (False, True)
    )
    return Options((Option(None, 0.0, 2.0), *inner), last)


def cheapest(
    layers: Sequence[Options],
    weights: Sequence[float],
    budget_ms: float,
    fits: Callable[[Sequence[LayerChoice]], bool] = lambda choice: True,
) -> tuple[LayerChoice, ...] | None:
    """The choice with the least weighted error that takes at most `budget_ms`; None where nothing with a layer does.

    Times are rounded up to a two-thousandth of the budget, so what is found never takes longer. Where that choice does
    not fit (in size), the budget falls until one does: size goes with time.
    """
    found = _cheapest(layers, weights, budget_ms)
    while found is not None and not fits([option.choice for option in found]):
        budget_ms = min(sum(option.ms for option in found), budget_ms) * _TIGHTER
        found = _cheapest(layers, weights, budget_ms)
    return None if found is None else tuple(option.choice for option in found)


def _cheapest(layers: Sequence[Options], weights: Sequence[float], budget_ms: float) -> list[Option] | None:
    if budget_ms <= 0:
        return None
    step = budget_ms / _BINS
    gone = [
        Option(None, 0.0, next((each.error for each in layer.inner if each.choice is None), np.inf)) for layer in layers
    ]
    behind = [weight * option.error for weight, option in zip(weights, gone, strict=True)]
    best = np.full(_BINS + 1, np.inf)  # by time, of the layers in front
    best[0] = 0.0
    taken: list[NDArray[np.int64]] = []
    least, end = np.inf, (0, gone[0], 0)
    for number, (layer, weight) in enumerate(zip(layers, weights, strict=True)):
        rest = sum(behind[number + 1 :])
        for option in layer.last:
            bins = _bins(option, step)
            if bins <= _BINS:
                at = int(best[: _BINS + 1 - bins].argmin())
                if (error := best[at] + weight * option.error + rest) < least:
                    least, end = error, (number, option, at)
        after, how = np.full(_BINS + 1, np.inf), np.full(_BINS + 1, -1)
        for place, option in enumerate(layer.inner):
            bins = _bins(option, step)
            if bins <= _BINS:
                reached = best[: _BINS + 1 - bins] + weight * option.error
                better = reached < after[bins:]
                after[bins:][better] = reached[better]
                how[bins:][better] = place
        taken.append(how)
        best = after
    if not np.isfinite(least):
        return None
    last, option, at = end
    found = [option]
    for layer, how in zip(reversed(layers[:last]), reversed(taken[:last]), strict=True):
        found.append(layer.inner[how[at]])
        at -= _bins(found[-1], step)
    return [*reversed(found), *gone[last + 1 :]]


def _bins(option: Option, step: float) -> int:
    return int(np.ceil(option.ms / step - 1e-9))


def spaced(
    layers: Sequence[Options],
    budget_ms: float,
    fits: Callable[[Sequence[LayerChoice]], bool] = lambda choice: True,
) -> list[list[LayerChoice]]:
    """For every number of layers that fits the budget: those evenly spaced from the first to the last, at best levels.

    The first and the last are kept by what is known of cutting encoders (Fan et al. 2020, Sun et al. 2019): the first
    one reads the embeddings, and the last one writes for the head.
    """
    found = []
    for count in range(1, len(layers) + 1):
        kept = {round(number * (len(layers) - 1) / max(count - 1, 1)) for number in range(count)}
        limited = [
            Options(
                tuple(option for option in layer.inner if (option.choice is None) == (number not in kept)),
                layer.last if number == max(kept) else (),
            )
            for number, layer in enumerate(layers)
        ]
        choice = cheapest(limited, [1.0] * len(layers), budget_ms, fits)
        if choice is not None:
            found.append(list(choice))
    return found


def _between(measured: Mapping[int, float], level: int) -> float:
    levels = sorted(measured)
    if level in measured:
        return measured[level]
    if level < levels[0]:
        return measured[levels[0]] * level / levels[0]
    after = bisect.bisect(levels, level)
    if after == len(levels):
        return measured[levels[-1]] * level / levels[-1]
    low, high = levels[after - 1], levels[after]
    share = (level - low) / (high - low)
    return measured[low] * (1 - share) + measured[high] * share
