"""How many samples a claim about a percentile takes, and what a run of some length may claim. Pure."""

from __future__ import annotations

__all__ = ["claimed_quantile", "samples_needed"]

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import LatencyError

CONFIDENCE = 0.99
"""MLPerf Inference's."""


def samples_needed(q: float, over: int = 0, confidence: float = CONFIDENCE) -> int:
    """The fewest samples of which `over` may exceed a limit for the limit to hold at the q-quantile.

    So few would exceed it with a probability of at most 1 - confidence if the true share were 1 - q. The early-stopping
    rule of MLPerf Inference (inference_policies, appendix on early stopping): 459 samples for p99 with none over, 662
    with one.

    Raises:
        LatencyError: q or confidence is not inside (0, 1), or `over` is negative.
    """
    from scipy.stats import binom

    if not 0 < q < 1 or not 0 < confidence < 1 or over < 0:
        raise LatencyError(f"no number of samples holds {over} over the {q:g}-quantile with confidence {confidence:g}")

    def enough(n: int) -> bool:
        return bool(binom.cdf(over, n, 1 - q) <= 1 - confidence)

    low, high = over, max(2 * (over + 1), 2)
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def claimed_quantile(samples: NDArray[np.float64], q: float, confidence: float = CONFIDENCE) -> float | None:
    """The value that the q-quantile is below with this confidence; None where there are too few samples for any.

    MLPerf's early-stopping estimate: the smallest sample that few enough others exceed. Samples are taken as
    independent, which those of one burst of noise are not.

    Args:
        samples: latencies in any order.
        q: inside (0, 1).
        confidence: of the claim.
    """
    from scipy.stats import binom

    n = len(samples)
    if n < samples_needed(q, 0, confidence):
        return None
    over = int(binom.ppf(1 - confidence, n, 1 - q))
    while over > 0 and binom.cdf(over, n, 1 - q) > 1 - confidence:
        over -= 1
    return float(np.sort(samples)[n - 1 - over])
