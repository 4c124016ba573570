"""How sure a model is of its answers, and whether another form of it is as sure."""

from __future__ import annotations

__all__ = ["CALIBRATION_LIMIT", "Calibration", "calibration_error", "compare_calibration", "judge_calibration"]

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import ParityError
from deploykit.parity.intervals import normal_quantile
from deploykit.parity.verdict import Outcome, Verdict, about, paired_count

CALIBRATION_LIMIT: Final[Mapping[str, float]] = MappingProxyType({"int8": 0.05, "int4": 0.1})
"""How far the mean confidence of the same weights may move for a precision, a fraction.

About five times what good int8 forms of MiniLM-L6 moved on BANKING77 (below 0.01). A float form is held to its numbers.
"""
_BINS = 15


@dataclass(frozen=True)
class Calibration:
    """How sure both are: fractions.

    Attributes:
        reference_confidence: mean probability of the reference's best class.
        candidate_confidence: the same for the candidate.
        shift: candidate less reference.
        shift_bound: the bound of the shift's absolute value, from the normal approximation over messages.
        reference_ece: expected calibration error over 15 bins of equal width (Guo et al. 2017); None without labels.
        candidate_ece: the same for the candidate.
    """

    reference_confidence: float
    candidate_confidence: float
    shift: float
    shift_bound: float
    reference_ece: float | None
    candidate_ece: float | None


def compare_calibration(
    reference: NDArray[Any],
    candidate: NDArray[Any],
    correct: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None,
    confidence: float = 0.95,
) -> Calibration:
    """Compare how sure two classifiers are.

    Args:
        reference: logits [n, classes].
        candidate: logits of the same messages.
        correct: which answers are right, of either, bool [n]; None without labels.
        confidence: of the one-sided bound.

    Raises:
        ParityError: no messages, unequal shapes, or logits that are no numbers.
    """
    n = paired_count("logits", reference, candidate)
    if reference.ndim != 2 or reference.shape != candidate.shape:
        raise ParityError(f"logits {list(reference.shape)} and {list(candidate.shape)} can't be compared")
    if not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
        raise ParityError("logits with NaN or infinity have no confidence")
    ours, theirs = _best_probability(reference), _best_probability(candidate)
    moved = theirs - ours
    half = normal_quantile(confidence) * float(moved.std(ddof=1)) / n**0.5 if n > 1 else 1.0
    return Calibration(
        reference_confidence=float(ours.mean()),
        candidate_confidence=float(theirs.mean()),
        shift=float(moved.mean()),
        shift_bound=abs(float(moved.mean())) + half,
        reference_ece=None if correct is None else calibration_error(ours, correct[0]),
        candidate_ece=None if correct is None else calibration_error(theirs, correct[1]),
    )


def calibration_error(confidences: NDArray[Any], correct: NDArray[np.bool_]) -> float:
    """The expected calibration error: how far confidence is from accuracy, over 15 bins of equal width.

    Args:
        confidences: probability of each answer [n].
        correct: which are right, bool [n].
    """
    bins = np.minimum((confidences * _BINS).astype(np.int64), _BINS - 1)
    gaps = np.bincount(bins, weights=confidences - correct, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(confidences))


def judge_calibration(found: Calibration, limit: float, n: int) -> Verdict:
    """Judge whether the mean confidence stayed: pass when the bound of its shift is at most the limit.

    Args:
        found: the comparison.
        limit: the shift that is too much, a fraction.
        n: messages it was made on.
    """
    shift = abs(found.shift)
    half = found.shift_bound - shift
    outcome: Outcome = "pass" if found.shift_bound <= limit else "fail" if shift - half > limit else "inconclusive"
    step = {
        "pass": "",
        "fail": "Look for a factor on the logits; calibrate quantization on messages like those that are served.",
        "inconclusive": f"Needs about {about(round(n * (half / max(limit - shift, 1e-3)) ** 2) + 1)} messages.",
    }
    if outcome == "inconclusive" and shift >= limit:
        step["inconclusive"] = "The shift seen is not below the limit: compare the probabilities of both."
    return Verdict(
        check="calibration shift",
        outcome=outcome,
        figure=shift,
        bound=found.shift_bound,
        limit=limit,
        n=n,
        unit="fraction",
        next_step=step[outcome],
        details=(
            f"mean confidence {found.reference_confidence:.2%} -> {found.candidate_confidence:.2%}",
            *(
                (f"expected calibration error {found.reference_ece:.2%} -> {found.candidate_ece:.2%}",)
                if found.reference_ece is not None and found.candidate_ece is not None
                else ()
            ),
        ),
    )


def _best_probability(logits: NDArray[Any]) -> NDArray[np.float64]:
    from scipy.special import softmax

    best: NDArray[np.float64] = softmax(logits.astype(np.float64), axis=-1).max(axis=-1)
    return best
