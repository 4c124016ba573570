"""Which levels to prune to: dynamic programming under a budget of milliseconds. Pure functions.

The problem and its solution are those of SPDY (Frantar and Alistarh 2022) as ZipLM uses it: a layer's options have a
time and an error; errors are weighed by layer, and the weights found by random search on the real loss.
"""

from __future__ import annotations

__all__ = [
    "LatencyTable",
    "LayerChoice",
    "Option",
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
        fixed_ms: everything but the layers.
        heads_ms: attention by the heads that stay.
        columns_ms: the FFN by the columns that stay.
        reference_ms: the unpruned model in PyTorch, in the same run.
    """

    fixed_ms: float
    heads_ms: Mapping[int, float]
    columns_ms: Mapping[int, float]
    reference_ms: float

    def layer_ms(self, choice: LayerChoice) -> float:
        """A layer's time; between the levels that were measured, the straight line."""
        if choice is None:
            return 0.0
        return _between(self.heads_ms, choice[0]) + _between(self.columns_ms, choice[1])

    def model_ms(self, choice: Sequence[LayerChoice]) -> float:
        """A whole model's time."""
        return self.fixed_ms + sum(self.layer_ms(layer) for layer in choice)


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

    rows = []
    for choice, ms in timed:
        layers = [shares(heads, layer[0]) + shares(columns, layer[1]) for layer in choice if layer is not None]
        rows.append(np.array([1.0, *np.sum(layers, axis=0)]) / ms)
    # Attention and FFN at their lowest levels are always there together: a hint of a ridge divides them.
    ridge = 1e-3 * np.eye(len(rows[0]))
    parts, _ = nnls(np.vstack([*rows, ridge]), np.concatenate([np.ones(len(rows)), np.zeros(len(ridge))]))
    added = np.cumsum(parts[1 : 1 + len(heads)]), np.cumsum(parts[1 + len(heads) :])
    return LatencyTable(
        fixed_ms=float(parts[0]),
        heads_ms=dict(zip(heads, added[0].tolist(), strict=True)),
        columns_ms=dict(zip(columns, added[1].tolist(), strict=True)),
        reference_ms=reference_ms,
    )


@dataclass(frozen=True)
class Option:
    """What one layer can become, with its time in milliseconds and its error."""

    choice: LayerChoice
    ms: float
    error: float


def layer_options(heads: Mapping[int, float], columns: Mapping[int, float], table: LatencyTable) -> tuple[Option, ...]:
    """The options of one layer: errors by heads and by columns that stay; a part that is gone has error 1."""
    options = [Option(None, 0.0, 2.0)]
    options += [
        Option((h, c), table.layer_ms((h, c)), heads[h] + columns[c]) for h in sorted(heads) for c in sorted(columns)
    ]
    return tuple(options)


def cheapest(
    layers: Sequence[Sequence[Option]],
    weights: Sequence[float],
    budget_ms: float,
    fits: Callable[[Sequence[LayerChoice]], bool] = lambda choice: True,
) -> tuple[LayerChoice, ...] | None:
    """The choice with the least weighted error that takes at most `budget_ms`; None where nothing with a layer does.

    Times are rounded up to a two-thousandth of the budget, so what is found never takes longer. Where that choice does
    not fit (in size), the budget falls until one does: size goes with time.
    """
    choice = _cheapest(layers, weights, budget_ms)
    while choice is not None and not fits(choice):
        chosen = zip(layers, choice, strict=True)
        taken = sum(next(option.ms for option in options if option.choice == kept) for options, kept in chosen)
        budget_ms = min(taken, budget_ms) * _TIGHTER
        choice = _cheapest(layers, weights, budget_ms)
    return choice


def _cheapest(
    layers: Sequence[Sequence[Option]], weights: Sequence[float], budget_ms: float
) -> tuple[LayerChoice, ...] | None:
    if budget_ms <= 0:
        return None
    step = budget_ms / _BINS
    best = np.full(_BINS + 1, np.inf)
    best[0] = 0.0
    taken = []
    for options, weight in zip(layers, weights, strict=True):
        after = np.full(_BINS + 1, np.inf)
        how = np.full(_BINS + 1, -1)
        for number, option in enumerate(options):
            bins = int(np.ceil(option.ms / step - 1e-9))
            if bins > _BINS:
                continue
            reached = best[: _BINS + 1 - bins] + weight * option.error
            better = reached < after[bins:]
            after[bins:][better] = reached[better]
            how[bins:][better] = number
        taken.append(how)
        best = after
    choice: list[LayerChoice] = []
    at = int(best.argmin())
    if not np.isfinite(best[at]):
        return None
    for options, how in zip(reversed(layers), reversed(taken), strict=True):
        option = options[how[at]]
        choice.append(option.choice)
        at -= int(np.ceil(option.ms / step - 1e-9))
    choice.reverse()
    return None if all(layer is None for layer in choice) else tuple(choice)


def spaced(
    layers: Sequence[Sequence[Option]],
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
            [option for option in options if (option.choice is None) == (number not in kept)]
            for number, options in enumerate(layers)
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
