"""Looking at a comparison more than once without raising its error: an alpha-spending rule. Pure."""

from __future__ import annotations

__all__ = ["boundaries", "spent"]

import itertools
from collections.abc import Sequence

import numpy as np

from deploykit.errors import LatencyError

_GRID = 401
_ROOT_2PI = float(np.sqrt(2 * np.pi))
_REACH = 8.0
"""Standard deviations below zero from which on a path is neglected."""


def spent(fraction: float, alpha: float) -> float:
    """The error that may have been spent once this fraction of the budget is used: little early, all at the end.

    The O'Brien-Fleming type of Lan and DeMets, *Discrete sequential boundaries for clinical trials*, Biometrika 70
    (1983), 659-663: 2 - 2 Phi(z / sqrt(t)), with z the 1 - alpha/2 quantile.

    Args:
        fraction: of the budget, above 0; from 1 on everything is spent.
        alpha: one-sided error of the whole comparison.
    """
    from scipy.stats import norm

    return float(2 * norm.sf(norm.isf(alpha / 2) / np.sqrt(min(fraction, 1.0))))


def boundaries(fractions: Sequence[float], alpha: float) -> tuple[float, ...]:
    """What a standard normal statistic must exceed at each look, so that all looks together err with alpha at most.

    By recursive integration over the paths that have not crossed yet (Armitage, McPherson and Rowe, *Repeated
    significance tests on accumulating data*, J. R. Statist. Soc. A 132 (1969), 235-244). A boundary depends on the
    looks up to it alone, so looks need not be planned.

    Args:
        fractions: of the budget used at each look, rising, above 0; the last may be above 1.
        alpha: one-sided error of the whole comparison, in (0, 0.5).

    Raises:
        LatencyError: the fractions do not rise from above 0, or alpha is out of range.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr

    if not fractions or fractions[0] <= 0 or any(b <= a for a, b in itertools.pairwise(fractions)):
        raise LatencyError(f"looks at {list(fractions)} of the budget do not rise from above 0")
    if not 0 < alpha < 0.5:
        raise LatencyError(f"an error of {alpha} is not between 0 and 0.5")
    found: list[float] = []
    before_s, before_t = 0.0, 0.0
    places = np.zeros(1)  # a Brownian path starts at 0, with all the probability there
    weights = np.ones(1)
    for fraction in fractions:
        step = np.sqrt(fraction - before_t)
        wanted = max(spent(fraction, alpha) - before_s, 1e-15)
        top = _REACH * np.sqrt(fraction)

        limit = float(brentq(lambda s, w=weights, u=places, d=step, x=wanted: w @ ndtr((u - s) / d) - x, -top, 2 * top))
        found.append(limit / float(np.sqrt(fraction)))
        onward = np.linspace(-top, limit, _GRID)
        density = np.exp(-(((onward[:, None] - places[None, :]) / step) ** 2) / 2) @ weights / (step * _ROOT_2PI)
        width = onward[1] - onward[0]
        trapezoid = np.full(_GRID, width)
        trapezoid[[0, -1]] = width / 2
        places, weights = onward, density * trapezoid
        before_s, before_t = spent(fraction, alpha), fraction
    return tuple(found)
