"""Confidence bounds for paired drops and for rates."""

from __future__ import annotations

__all__ = [
    "bootstrap_drop_upper",
    "clopper_pearson",
    "clopper_pearson_lower",
    "clopper_pearson_upper",
    "drop_is_below",
    "normal_quantile",
    "paired_drop_bootstrap",
    "paired_drop_lower",
    "paired_drop_upper",
    "paired_drop_variance",
    "ratio_drop_bounds",
    "ratio_interval",
]

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import ParityError

Metric = Callable[[NDArray[Any], NDArray[Any]], float]

_CORRECTION = 0.25
"""Pairs that are added against the claim before the score statistic is taken.

Without it a drop of just the margin passes in up to 6.0 % of cases where few pairs are discordant, all for the worse.
With a quarter of a pair and the reserve below it is at most 4.4 %, computed exactly for 462 settings: 50 to 3,080
items, margins of 0.5 to 5 points, 0.5 to 10 % discordant. `benchmarks/parity_statistics.py` simulates the whole gate.
"""
_RESERVE = 0.9
"""The share of the error that the gate spends: what is designed at just 5 % is above it in half of the trials."""


def drop_is_below(margin: float, b: float, c: float, n: float, confidence: float = 0.95) -> bool:
    """Whether the score statistic shows the drop to be below the margin: a quarter of a pair and a reserve against it.

    A little stricter than `paired_drop_upper` < margin, whose error is above its nominal rate for few discordant pairs.
    Counts need not be whole, for planning; a negative margin with b and c exchanged asks whether the drop is above it.

    Raises:
        ParityError: counts that don't fit, or a confidence out of range.
    """
    b = min(b + _CORRECTION, n - c)
    _check_counts(b, c, n)
    room = margin - (b - c) / n
    z = normal_quantile(1 - _RESERVE * (1 - confidence))
    return room > 0 and room * math.sqrt(n) > z * math.sqrt(paired_drop_variance(b / n, c / n, margin))


def paired_drop_upper(b: float, c: float, n: float, confidence: float = 0.95) -> float:
    """The one-sided upper score bound of drop = (b - c) / n on the same n items.

    The bound is the drop at which Tango's score statistic equals minus the normal quantile (Tango 1998, Statistics in
    Medicine 17, 891-908, section 4). It does not collapse when b = c = 0, where it is z**2 / (n + z**2). It is
    asymptotic: a 95 % bound covers 93.4 % at worst where a handful of items change and all for the worse (computed for
    3,080 items), and about 95 % elsewhere.

    Args:
        b: items that the reference has right and the candidate wrong. Need not be whole, for planning.
        c: items that the reference has wrong and the candidate right.
        n: all items, those that did not change included.
        confidence: of the one-sided bound, above 0.5 and below 1.

    Returns:
        A fraction in [-1, 1], never below (b - c) / n.

    Raises:
        ParityError: n not positive, negative counts, b + c above n, or a confidence out of range.
    """
    from scipy.optimize import brentq

    _check_counts(b, c, n)
    z = normal_quantile(confidence)
    if b == n:
        return 1.0
    if c == n:  # The variance vanishes at the estimate, where a bracketed search would stop.
        return (z * z - n) / (n + z * z)
    if b + c == 0:
        return z * z / (n + z * z)
    drop = (b - c) / n

    def excess(delta: float) -> float:
        # The score equation without its division: positive below the bound, negative above it.
        return drop - delta + z * math.sqrt(paired_drop_variance(b / n, c / n, delta) / n)

    return float(brentq(excess, drop, 1.0, xtol=1e-13))


def paired_drop_lower(b: float, c: float, n: float, confidence: float = 0.95) -> float:
    """The one-sided lower score bound of drop = (b - c) / n; see `paired_drop_upper`, whose mirror image it is."""
    return -paired_drop_upper(c, b, n, confidence)


def paired_drop_variance(b_rate: float, c_rate: float, delta: float) -> float:
    """The variance of one pair's difference where the true drop is delta, at the likeliest rates that allow it.

    It is 2q + delta * (1 - delta), q the maximum likelihood estimate of the rate of wrong to right under that drop
    (Tango 1998, section 2). Only the rates matter, so it also says what more items would give.
    """
    linear = delta * (2 - b_rate + c_rate) - b_rate - c_rate
    constant = c_rate * delta * (1 - delta)
    root = math.sqrt(max(0.0, linear * linear + 8 * constant))
    # Two forms of one root: each avoids subtracting nearly equal numbers on its side.
    q = (root - linear) / 4 if linear <= 0 else 2 * constant / (root + linear)
    return max(0.0, 2 * q + delta * (1 - delta))


def clopper_pearson(k: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of a rate, k of n (Clopper and Pearson 1934, Biometrika 26, 404-413).

    Raises:
        ParityError: n not positive, k outside [0, n], or a confidence out of range.
    """
    one_sided = (1 + confidence) / 2
    return clopper_pearson_lower(k, n, one_sided), clopper_pearson_upper(k, n, one_sided)


def clopper_pearson_upper(k: float, n: float, confidence: float = 0.95) -> float:
    """The exact one-sided upper bound of a rate, k of n; 1 - (1 - confidence) ** (1 / n) when k is 0."""
    from scipy.special import betaincinv

    _check_counts(k, 0, n)
    _check_confidence(confidence)
    return 1.0 if k >= n else float(betaincinv(k + 1, n - k, confidence))


def clopper_pearson_lower(k: float, n: float, confidence: float = 0.95) -> float:
    """The exact one-sided lower bound of a rate, k of n."""
    from scipy.special import betaincinv

    _check_counts(k, 0, n)
    _check_confidence(confidence)
    return 0.0 if k <= 0 else float(betaincinv(k, n - k + 1, 1 - confidence))


def bootstrap_drop_upper(
    metric: Metric,
    reference: NDArray[Any],
    candidate: NDArray[Any],
    labels: NDArray[Any],
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> float:
    """The one-sided upper bound of a metric's drop, by the paired percentile bootstrap.

    Items are drawn with both answers and the label together (Efron and Tibshirani 1993, chapter 13). With few changed
    answers the bootstrap collapses (with none its bound is 0), so it is for reporting macro F1 and the like;
    `paired_drop_upper` is what accuracy is judged by.

    Args:
        metric: called as metric(answers, labels) on resampled arrays; higher is better.
        reference: answers, first axis the items.
        candidate: answers to the same items.
        labels: what is right, for the same items.
        confidence: of the one-sided bound.
        resamples: how many times to draw.
        seed: equal seeds give equal bounds.

    Raises:
        ParityError: no items, unequal lengths, a confidence out of range, or a metric that is not finite.
    """
    _check_confidence(confidence)
    n = len(labels)
    if not n or len(reference) != n or len(candidate) != n:
        raise ParityError(f"bootstrap over {len(reference)} and {len(candidate)} answers and {n} labels")
    generator = np.random.default_rng(seed)
    drops = np.empty(resamples)
    for draw in range(resamples):
        chosen = generator.integers(0, n, n)
        truth = labels[chosen]
        drops[draw] = metric(reference[chosen], truth) - metric(candidate[chosen], truth)
    if not np.isfinite(drops).all():
        raise ParityError("the metric was not finite on a resample", "use a metric that is defined on any subset")
    return float(np.quantile(drops, confidence))


def paired_drop_bootstrap(
    b: int, c: int, n: int, confidence: float = 0.95, *, resamples: int = 20_000, seed: int = 0
) -> tuple[float, float]:
    """The one-sided lower and upper bounds of drop = (b - c) / n by the paired percentile bootstrap.

    Drawing n items with both answers together is drawing how many of each kind of pair, from a multinomial. It
    collapses where few pairs are discordant: it is a second opinion on `paired_drop_upper`, never the judge.

    Raises:
        ParityError: counts that don't fit, or a confidence out of range.
    """
    _check_counts(b, c, n)
    _check_confidence(confidence)
    drawn = np.random.default_rng(seed).multinomial(n, [b / n, c / n, (n - b - c) / n], resamples)
    drops = (drawn[:, 0] - drawn[:, 1]) / n
    return float(np.quantile(drops, 1 - confidence)), float(np.quantile(drops, confidence))


def ratio_drop_bounds(
    reference: NDArray[np.float64],
    candidate: NDArray[np.float64],
    *,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> tuple[float, float]:
    """The one-sided lower and upper bounds of the drop of a metric that is a ratio of sums, such as micro F1.

    A paired percentile bootstrap over items, with as many items more as the score bound has for one that saw no change
    (z**2, see `paired_drop_upper`): for the upper bound average ones that the reference has right and the candidate
    wrong, for the lower one the other way round. So it does not collapse where few answers changed, as the plain
    bootstrap does, and is on the safe side.

    Args:
        reference: [n, 2], what each item earned and what it could have.
        candidate: the same for the candidate.
        confidence: of each bound.
        resamples: how many times to draw.
        seed: equal seeds give equal bounds.

    Raises:
        ParityError: no items, unequal shapes, nothing that could be earned, or a confidence out of range.
    """
    n = len(reference)
    if not n or reference.shape != (n, 2) or candidate.shape != (n, 2):
        raise ParityError(f"scores {list(reference.shape)} and {list(candidate.shape)}", "score both on the same items")
    possible = reference[:, 1].mean(), candidate[:, 1].mean()
    if not possible[0] > 0:
        raise ParityError("no item could earn anything, so there is no drop", "label the data")
    extra = normal_quantile(confidence) ** 2
    both = np.concatenate([reference, candidate], axis=1)
    generator = np.random.default_rng(seed)
    sums = np.concatenate(
        [both[generator.integers(0, n, (min(50, resamples), n))].sum(axis=1) for _ in range(0, resamples, 50)]
    )

    def drops(added: tuple[float, float]) -> NDArray[np.float64]:
        """With items more, of which the reference earns the first share and the candidate the second."""
        ours, theirs = (
            (sums[:, 2 * side] + extra * possible[side] * added[side])
            / np.maximum(sums[:, 2 * side + 1] + extra * possible[side], 1e-12)
            for side in (0, 1)
        )
        return np.asarray(ours - theirs, dtype=np.float64)

    return (
        float(np.quantile(drops((0.0, 1.0)), 1 - confidence)),
        float(np.quantile(drops((1.0, 0.0)), confidence)),
    )


def ratio_interval(
    scores: NDArray[np.float64], *, confidence: float = 0.95, resamples: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """The two-sided interval of a ratio of sums, such as micro F1, by the percentile bootstrap over items.

    Args:
        scores: [n, 2], what each item earned and what it could have.
        confidence: of the interval.
        resamples: how many times to draw.
        seed: equal seeds give equal intervals.

    Raises:
        ParityError: no items, nothing that could be earned, or a confidence out of range.
    """
    _check_confidence(confidence)
    if not len(scores) or not scores[:, 1].sum() > 0:
        raise ParityError("no item could earn anything, so there is no interval", "label the data")
    n, generator = len(scores), np.random.default_rng(seed)
    sums = np.concatenate(
        [scores[generator.integers(0, n, (min(50, resamples), n))].sum(axis=1) for _ in range(0, resamples, 50)]
    )
    values = sums[:, 0] / np.maximum(sums[:, 1], 1e-12)
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def normal_quantile(confidence: float) -> float:
    """The standard normal quantile of a one-sided confidence: 1.645 for 0.95."""
    from scipy.special import ndtri

    _check_confidence(confidence)
    return float(ndtri(confidence))


def _check_confidence(confidence: float) -> None:
    if not 0.5 < confidence < 1:
        raise ParityError(f"confidence {confidence} is not between 0.5 and 1", "0.95 is the usual choice")


def _check_counts(b: float, c: float, n: float) -> None:
    if not n > 0:
        raise ParityError(f"a bound over {n} items", "give at least one item")
    if not (b >= 0 and c >= 0 and b + c <= n):
        raise ParityError(f"counts {b} and {c} don't fit into {n} items")
