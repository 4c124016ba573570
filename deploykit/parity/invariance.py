"""Whether an answer depends on what it should not: other messages in its batch, their order, padding, chance."""

from __future__ import annotations

__all__ = ["INVARIANCE", "judge_invariance"]

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deploykit.parity.verdict import Part, Verdict, paired_count

INVARIANCE: Final = 1e-5
"""The largest difference of a logit, as a share of the largest logit (or absolute, where that is below 1).

Sums in another order explain it in float32: 9e-6 was seen between single messages and padded batches in PyTorch where
logits reach 14, and none at all in onnxruntime, float32 or static int8 (MiniLM-L6, 600 BANKING77 messages, x86-64).
"""
_SHOWN = 3


def judge_invariance(
    alone: NDArray[Any],
    others: Sequence[tuple[str, Sequence[int], NDArray[Any]]],
    *,
    limit: float = INVARIANCE,
    check: str = "answers alone and among others",
    part: Part = "batching",
) -> Verdict:
    """Judge whether messages get the numbers that they get alone when they are given in other ways.

    Args:
        alone: float [n, ...], the output of each message given by itself.
        others: how else they were given, as words; the indices of the messages; and their outputs, in that order.
        limit: the largest difference that passes, as a share of the largest absolute value of `alone`, or absolute
            where that is below 1.
        check: what the verdict is called.
        part: what is at fault when it fails.

    Raises:
        ParityError: no messages, or not an output for each of them.
    """
    scale = max(1.0, float(np.max(np.abs(alone), initial=0.0, where=np.isfinite(alone))))
    largest, details, total, finite = 0.0, [], 0, True
    for words, indices, found in others:
        total += paired_count(words, indices, found)
        expected = alone[list(indices)]
        if found.shape != expected.shape:
            finite = False
            details.append(f"{words}: shape {list(found.shape[1:])}, alone {list(expected.shape[1:])}")
            continue
        rows = np.abs(found.astype(np.float64) - expected.astype(np.float64)).reshape(len(found), -1)
        known = np.isfinite(rows).all(axis=1)
        # What is no number alone either does not depend on company: the numbers themselves are held to the reference.
        lost = ~known & np.isfinite(expected).reshape(len(found), -1).all(axis=1)
        if lost.any():
            finite = False
            bad = [indices[row] for row in np.flatnonzero(lost)[:_SHOWN]]
            details.append(f"{words}: NaN, infinity or no answer for {np.count_nonzero(lost)} messages, first {bad}")
        worst = rows[known].max(axis=1) / scale if known.any() else np.zeros(1)
        largest = max(largest, float(worst.max()))
        if worst.max() > limit:
            at = indices[int(np.flatnonzero(known)[worst.argmax()])]
            beyond = int(np.count_nonzero(worst > limit))
            details.append(f"{words}: {beyond} of {len(rows)} messages differ by up to {worst.max():.3g}, most {at}")
    failed = not finite or largest > limit
    return Verdict(
        check=check,
        outcome="fail" if failed else "pass",
        figure=largest,
        bound=None,
        limit=limit,
        n=max(1, total),
        unit="share of the largest logit",
        next_step="Check the attention mask on padded rows, dropout, and scales that are taken over the batch."
        if failed
        else "",
        details=tuple(details or (f"also: {'; '.join(words for words, _, _ in others)}",)),
        part=part,
    )
