"""Which settings to measure next: few trials, most of the best rate."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from deploykit.errors import LatencyError
from deploykit.latency.surrogate import propose

FEATURES = np.array(list(product([0.0, 1.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [3.0, 4.0, 6.0], [0.0, 0.5, 1.2])))


def rate(x: np.ndarray, noise: float = 0.0) -> float:
    """One setting doubles the rate, two are traded for each other, one does not matter."""
    return float(400 * (1 + x[0]) * np.exp(-0.3 * (x[1] + x[2] - 2) ** 2 - 0.2 * x[4]) * np.exp(noise))


@pytest.mark.parametrize("seed", range(5))
def test_a_dozen_of_162_find_nearly_the_best(seed: int) -> None:
    random = np.random.default_rng(seed)
    measured: dict[int, float] = {}
    for _ in range(12):
        proposal = propose(FEATURES, measured)
        assert proposal is not None
        assert proposal.index not in measured
        measured[proposal.index] = rate(FEATURES[proposal.index], random.normal(0, 0.05))
    best = max(rate(x) for x in FEATURES)
    found = max(measured, key=lambda index: measured[index])
    assert rate(FEATURES[found]) > 0.85 * best


def test_those_in_use_come_first_and_the_next_are_far_off() -> None:
    first = propose(FEATURES, {})
    assert first is not None
    assert (first.index, first.gain) == (0, None)
    second = propose(FEATURES, {0: 100.0})
    assert second is not None
    assert (FEATURES[second.index] == FEATURES.max(axis=0)).all()


def test_where_all_is_alike_little_is_expected() -> None:
    measured = dict.fromkeys(range(0, len(FEATURES), 8), 100.0)
    proposal = propose(FEATURES, measured)
    assert proposal is not None
    assert proposal.gain is not None
    assert 0 <= proposal.gain < 0.05


def test_a_search_ends_when_all_are_measured_and_nothing_is_no_search() -> None:
    assert propose(FEATURES[:3], {0: 1.0, 1: 1.0, 2: 1.0}) is None
    for features, measured in ((FEATURES[:0], {}), (FEATURES, {0: 0.0})):
        with pytest.raises(LatencyError):
            propose(features, measured)
