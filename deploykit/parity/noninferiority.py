"""Whether a candidate's share of right answers fell by less than a margin."""

from __future__ import annotations

__all__ = [
    "discordant_counts",
    "items_needed",
    "judge_drop",
    "judge_score_drop",
    "pass_probability",
    "score_drop_bounds",
    "score_interval",
]

import math

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import ParityError
from deploykit.parity.intervals import (
    clopper_pearson,
    drop_is_below,
    paired_drop_bootstrap,
    paired_drop_lower,
    paired_drop_upper,
    ratio_drop_bounds,
    ratio_interval,
)
from deploykit.parity.verdict import Outcome, Verdict, about, fewest, paired_count
from deploykit.tasks import Scores

_NEGLIGIBLE = 1e-10
_ENOUGH_FOR_BOOTSTRAP = 20
"""Discordant pairs from which on the bootstrap has a say; below it collapses."""


def judge_drop(
    reference_correct: NDArray[np.bool_],
    candidate_correct: NDArray[np.bool_],
    margin: float,
    confidence: float = 0.95,
    *,
    metric: str = "accuracy",
) -> Verdict:
    """Judge the drop of a share of right answers on the same items, as a non-inferiority test.

    pass when the upper score bound of the drop is below the margin, with the correction of `drop_is_below`, so that few
    discordant pairs err as rarely as many; fail when the lower one is above it; otherwise inconclusive, with the number
    of items that would do at the rates seen. No significant difference is not parity. From 20 discordant pairs on the
    paired bootstrap has to come to the same, else it is inconclusive.

    Args:
        reference_correct: bool [n], whether the reference has the item right.
        candidate_correct: bool [n], the same for the candidate, in the same order.
        margin: the drop that is too much, a fraction in [0, 1).
        confidence: of each one-sided bound.
        metric: what the share is called.

    Raises:
        ParityError: no items, unequal lengths, arrays that are not bool [n], or a margin or confidence out of range.
    """
    if not 0 <= margin < 1:
        raise ParityError(f"margin {margin} is not a fraction in [0, 1)", "one point is 0.01")
    b, c, n = discordant_counts(reference_correct, candidate_correct)
    drop = (b - c) / n
    upper = paired_drop_upper(b, c, n, confidence)
    lower = paired_drop_lower(b, c, n, confidence)
    outcome = _outcome(lower, upper, margin)
    if outcome == "pass" and not drop_is_below(margin, b, c, n, confidence):
        outcome = "inconclusive"
    if outcome == "fail" and not drop_is_below(-margin, c, b, n, confidence):
        outcome = "inconclusive"
    details = [
        f"{b} right to wrong, {c} wrong to right of {n}",
        f"one-sided {100 * confidence:g} % bounds of the drop: {_points(lower)} and {_points(upper)}",
    ]
    next_step = _next_step(outcome, drop, margin, n, items_needed(b, c, n, margin, confidence))
    if outcome != "inconclusive" and b + c >= _ENOUGH_FOR_BOOTSTRAP:
        low, high = paired_drop_bootstrap(b, c, n, confidence)
        second = _outcome(low, high, margin)
        details.append(f"by the paired bootstrap: {_points(low)} and {_points(high)}")
        if second != outcome:
            details.append(f"the score bound says {outcome}, the bootstrap {second}")
            outcome = "inconclusive"
            next_step = "The two bounds lie on both sides of the margin: it is too close to call on these items."
    return Verdict(
        check=f"{metric} drop",
        outcome=outcome,
        figure=drop,
        bound=upper,
        limit=margin,
        n=n,
        unit="fraction",
        next_step=next_step,
        details=tuple(details),
    )


def judge_score_drop(
    reference: Scores, candidate: Scores, margin: float, confidence: float = 0.95, *, metric: str
) -> Verdict:
    """Judge the drop of any task's metric on the same items: as `judge_drop`, by the bounds of `score_drop_bounds`.

    Raises:
        ParityError: no items, unequal lengths, or a margin or confidence out of range.
    """
    if reference.is_share and candidate.is_share:
        return judge_drop(reference.correct, candidate.correct, margin, confidence, metric=metric)
    if not 0 <= margin < 1:
        raise ParityError(f"margin {margin} is not a fraction in [0, 1)", "one point is 0.01")
    lower, upper = score_drop_bounds(reference, candidate, confidence)
    n, drop = len(reference.earned), reference.value - candidate.value
    outcome = _outcome(lower, upper, margin)
    # The bound's distance shrinks with the square root of n while the items stay alike.
    needed = None if drop >= margin else math.floor(n * ((upper - drop) / (margin - drop)) ** 2) + 1
    b, c, _ = discordant_counts(reference.correct, candidate.correct)
    return Verdict(
        check=f"{metric} drop",
        outcome=outcome,
        figure=drop,
        bound=upper,
        limit=margin,
        n=n,
        unit="fraction",
        next_step=_next_step(outcome, drop, margin, n, needed),
        details=(
            f"{reference.value:.2%} against {candidate.value:.2%}",
            f"{b} items not wholly right any more, {c} wholly right now, of {n}",
            f"one-sided {100 * confidence:g} % bounds of the drop (bootstrap): {_points(lower)} and {_points(upper)}",
        ),
    )


def score_drop_bounds(reference: Scores, candidate: Scores, confidence: float = 0.95) -> tuple[float, float]:
    """The one-sided bounds of a metric's drop: score bounds of a share of right answers, else bootstrap bounds.

    Raises:
        ParityError: no items, unequal lengths, or a confidence out of range.
    """
    if reference.is_share and candidate.is_share:
        b, c, n = discordant_counts(reference.correct, candidate.correct)
        return paired_drop_lower(b, c, n, confidence), paired_drop_upper(b, c, n, confidence)
    paired_count("scores", reference.earned, candidate.earned)
    ours, theirs = (np.stack([side.earned, side.possible], axis=1) for side in (reference, candidate))
    return ratio_drop_bounds(ours, theirs, confidence=confidence)


def score_interval(scores: Scores, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided interval of a metric: exact for a share of right answers, else by the bootstrap.

    Raises:
        ParityError: no items, nothing that could be earned, or a confidence out of range.
    """
    if scores.is_share:
        return clopper_pearson(int(scores.correct.sum()), len(scores.correct), confidence)
    return ratio_interval(np.stack([scores.earned, scores.possible], axis=1), confidence=confidence)


def pass_probability(lost: float, won: float, n: int, margin: float, confidence: float = 0.95) -> float:
    """The power: how often n items pass where the true rates are these, summed over all outcomes.

    The second opinion of the bootstrap, which takes a pass away now and then, is not in it.

    Args:
        lost: the true rate of right to wrong.
        won: the true rate of wrong to right.
        n: items.
        margin: the drop that is too much.
        confidence: of the bound.

    Raises:
        ParityError: rates that are none, or a confidence out of range.
    """
    from scipy.stats import binom

    if not (lost >= 0 and won >= 0 and lost + won <= 1 and n > 0):
        raise ParityError(f"rates {lost} and {won} over {n} items are none")
    total = 0.0
    for c in range(int(binom.isf(_NEGLIGIBLE, n, won)) + 2):
        weight = float(binom.pmf(c, n, won))
        if weight < _NEGLIGIBLE:
            continue
        most, too_many = -1, min(n - c, math.ceil(n * margin) + c + 1)
        while too_many - most > 1:  # a larger b never passes where a smaller one does not
            middle = (most + too_many) // 2
            if drop_is_below(margin, middle, c, n, confidence):
                most = middle
            else:
                too_many = middle
        if most >= 0:
            total += weight * float(binom.cdf(most, n - c, lost / (1 - won) if won < 1 else 0.0))
    return total


def _outcome(lower: float, upper: float, margin: float) -> Outcome:
    return "pass" if upper < margin else "fail" if lower > margin else "inconclusive"


def discordant_counts(
    reference_correct: NDArray[np.bool_], candidate_correct: NDArray[np.bool_]
) -> tuple[int, int, int]:
    """Right to wrong (b), wrong to right (c) and all items (n).

    Raises:
        ParityError: no items, unequal lengths, or arrays that are not bool [n].
    """
    n = paired_count("right answers", reference_correct, candidate_correct)
    for side, correct in (("reference", reference_correct), ("candidate", candidate_correct)):
        if correct.dtype != np.bool_ or correct.ndim != 1:
            raise ParityError(f"{side}: right answers are {correct.dtype} {list(correct.shape)}, not bool [n]")
    b = int(np.count_nonzero(reference_correct & ~candidate_correct))
    c = int(np.count_nonzero(~reference_correct & candidate_correct))
    return b, c, n


def items_needed(b: int, c: int, n: int, margin: float, confidence: float = 0.95) -> int | None:
    """How many items would pass at the rates seen; None when the drop is not below the margin, so that none would.

    Raises:
        ParityError: counts that don't fit, or a confidence out of range.
    """
    if (b - c) / n >= margin:
        return None

    def passes(items: int) -> bool:
        return drop_is_below(margin, b * items / n, c * items / n, items, confidence)

    return fewest(passes, 1)


def _next_step(outcome: Outcome, drop: float, margin: float, n: int, needed: int | None) -> str:
    if outcome == "pass":
        return ""
    if outcome == "fail":
        return "Compress less, distil longer, or keep the layers that changed most in float."
    if needed is None:
        return (
            f"The drop seen, {_points(drop)}, is not below the margin of {_points(margin)}: "
            "no number of items will pass it unless the true drop is smaller. Improve the model."
        )
    return (
        f"Needs about {about(needed)} items at these rates, {about(needed - n)} more: "
        "add labelled test messages, or accept a wider margin."
    )


def _points(fraction: float) -> str:
    return f"{100 * fraction:.2f} points"
