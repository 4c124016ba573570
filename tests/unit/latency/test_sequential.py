"""The spending rule: published boundaries, and the error it promises."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from deploykit.errors import LatencyError
from deploykit.latency.sequential import boundaries, spent


def test_boundaries_are_those_published_for_five_equal_looks() -> None:
    """Lan and DeMets' O'Brien-Fleming type, one-sided 0.025 (Jennison and Turnbull, 2000, and every program since)."""
    found = boundaries([0.2, 0.4, 0.6, 0.8, 1.0], 0.025)
    assert found == pytest.approx([4.877, 3.357, 2.680, 2.290, 2.031], abs=2e-3)


def test_one_look_is_the_plain_test() -> None:
    assert boundaries([1.0], 0.05) == pytest.approx([norm.isf(0.05)], abs=1e-6)


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_looking_often_errs_no_more_than_promised(alpha: float) -> None:
    looks = np.array([0.25, 0.5, 0.75, 1.0])
    steps = np.random.default_rng(1).normal(size=(200_000, 4)) * np.sqrt(np.diff(looks, prepend=0))
    z = steps.cumsum(axis=1) / np.sqrt(looks)
    crossed = (z > np.array(boundaries(list(looks), alpha))).any(axis=1).mean()
    assert crossed == pytest.approx(alpha, rel=0.1)
    assert (z > norm.isf(alpha)).any(axis=1).mean() > 1.5 * alpha  # what looking without a rule does


def test_a_boundary_does_not_depend_on_later_looks() -> None:
    assert boundaries([0.3, 0.7], 0.02) == pytest.approx(boundaries([0.3, 0.7, 1.0], 0.02)[:2])


def test_all_error_is_spent_at_the_end() -> None:
    assert spent(1.0, 0.03) == pytest.approx(0.03)
    assert spent(0.25, 0.03) < 1e-4


@pytest.mark.parametrize(("fractions", "alpha"), [([], 0.05), ([0.0, 1.0], 0.05), ([0.5, 0.5], 0.05), ([1.0], 0.6)])
def test_looks_that_can_not_be_are_refused(fractions: list[float], alpha: float) -> None:
    with pytest.raises(LatencyError):
        boundaries(fractions, alpha)
