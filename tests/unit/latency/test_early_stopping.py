"""How many samples a percentile takes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from deploykit.errors import LatencyError
from deploykit.latency.early_stopping import claimed_quantile, samples_needed


def test_the_counts_are_those_of_mlperf() -> None:
    assert [samples_needed(0.99, over) for over in (0, 1, 10)] == [459, 662, 2010]


@given(st.floats(0.5, 0.995), st.integers(0, 12), st.floats(0.8, 0.995))
def test_one_sample_less_would_not_do(q: float, over: int, confidence: float) -> None:
    needed = samples_needed(q, over, confidence)
    assert binom.cdf(over, needed, 1 - q) <= 1 - confidence < binom.cdf(over, needed - 1, 1 - q)


def test_row_60_too_few_samples_claim_nothing() -> None:
    assert claimed_quantile(np.arange(458.0), 0.99) is None
    assert claimed_quantile(np.arange(459.0), 0.99) == 458
    assert claimed_quantile(np.arange(662.0), 0.99) == 660  # one may lie above


def test_a_claim_is_right_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    truth = -np.log(0.01)  # p99 of the exponential distribution
    held = [(claimed_quantile(random.exponential(size=1000), 0.99) or 0.0) >= truth for _ in range(1500)]
    assert np.mean(held) >= 0.985


@pytest.mark.parametrize(("q", "over", "confidence"), [(0.0, 0, 0.9), (1.0, 0, 0.9), (0.9, -1, 0.9), (0.9, 0, 1.0)])
def test_what_has_no_number_is_refused(q: float, over: int, confidence: float) -> None:
    with pytest.raises(LatencyError):
        samples_needed(q, over, confidence)
