"""Whether a served model answers exactly as the same model in process."""

from __future__ import annotations

__all__ = ["Identity", "compare_answers"]

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import ParityError
from deploykit.parity.verdict import Verdict, paired_count

_SHOWN = 5


@dataclass(frozen=True)
class Identity:
    """An exact comparison.

    Attributes:
        verdict: its figure is the number of items that differ in answer or logits.
        answers: indices of the items with another answer.
        logits: indices of the items whose logits are not equal to the last digit; empty when no logits were given.
        max_difference: largest absolute difference of a logit; None without logits, or where it is no number.
    """

    verdict: Verdict
    answers: tuple[int, ...]
    logits: tuple[int, ...]
    max_difference: float | None


def compare_answers(
    reference_answers: Sequence[Hashable],
    candidate_answers: Sequence[Hashable],
    reference_logits: NDArray[Any] | None = None,
    candidate_logits: NDArray[Any] | None = None,
    *,
    check: str = "served against in process",
) -> Identity:
    """Compare answers, and logits where given, for exact identity: one that differs fails it.

    Args:
        reference_answers: answers in process [n].
        candidate_answers: the server's answers to the same messages [n].
        reference_logits: float [n, ...]; compared without tolerance, NaN and infinity failing always.
        candidate_logits: the same of the server.
        check: what the verdict is called.

    Raises:
        ParityError: no items, unequal lengths, or logits on one side only.
    """
    n = paired_count("answers", reference_answers, candidate_answers)
    answers = tuple(item for item in range(n) if reference_answers[item] != candidate_answers[item])
    details = [f"item {item}: {reference_answers[item]!r} -> {candidate_answers[item]!r}" for item in answers[:_SHOWN]]
    logits, max_difference = _compare_logits(reference_logits, candidate_logits, n)
    if logits:
        how = "are not comparable" if max_difference is None else f"differ by up to {max_difference:.3g}"
        details.append(f"logits of {len(logits)} items {how}, first of item {logits[0]}")
    differing = set(answers) | set(logits)
    verdict = Verdict(
        check=check,
        outcome="fail" if differing else "pass",
        figure=float(len(differing)),
        bound=None,
        limit=0.0,
        n=n,
        unit="items",
        next_step=_next_step(answers) if differing else "",
        details=tuple(details),
        part="server",
    )
    return Identity(verdict=verdict, answers=answers, logits=logits, max_difference=max_difference)


def _compare_logits(
    reference: NDArray[Any] | None, candidate: NDArray[Any] | None, n: int
) -> tuple[tuple[int, ...], float | None]:
    if reference is None and candidate is None:
        return (), None
    if reference is None or candidate is None:
        raise ParityError("logits of one side only", "ask both for their logits, or neither")
    if len(reference) != n or not reference.size:
        raise ParityError(f"logits {list(reference.shape)} for {n} answers")
    if reference.shape != candidate.shape or reference.dtype != candidate.dtype:
        return tuple(range(n)), None
    finite = np.isfinite(reference) & np.isfinite(candidate)
    same = ((reference == candidate) & finite).reshape(n, -1).all(axis=1)
    differing = tuple(int(item) for item in np.flatnonzero(~same))
    if not finite.all():
        return differing, None
    return differing, float(np.abs(reference.astype(np.float64) - candidate.astype(np.float64)).max())


def _next_step(answers: tuple[int, ...]) -> str:
    if answers:
        return "Send one of the items by itself to both, and compare the token ids, then the logits."
    return "The answers are equal: use the same threads and onnxruntime on both sides for equal logits."
