"""Which settings to measure next: a Gaussian process over those measured, and the expected improvement. Pure."""

from __future__ import annotations

__all__ = ["Proposal", "propose"]

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import LatencyError

_FIRST = 4
"""Measured far from each other before there is a model."""
_NOISE = 0.05
"""Of a measured rate, as a share: what a search to 10 % leaves."""


@dataclass(frozen=True)
class Proposal:
    """What to measure next.

    Attributes:
        index: of the candidate.
        gain: by how much, as a share, it is expected to beat the best; None while there is no model yet.
    """

    index: int
    gain: float | None


def propose(features: NDArray[np.float64], measured: Mapping[int, float]) -> Proposal | None:
    """The candidate to measure next; None where all are measured.

    The first few are those farthest from all before. Then a Gaussian process (Matern 5/2, a length for each feature)
    predicts the logarithm of the rate, and the candidate with the greatest expected improvement is next (Jones,
    Schonlau, Welch: Efficient global optimization, J. Global Optimization 13, 1998, equation 15).

    Args:
        features: of the candidates, [candidates, features].
        measured: the rate of each measured candidate, a second, above 0.

    Raises:
        LatencyError: a rate is not above 0, or no candidate is given.
    """
    if not len(features) or any(rate <= 0 for rate in measured.values()):
        raise LatencyError("there is no rate to model")
    left = np.array([index for index in range(len(features)) if index not in measured], dtype=np.intp)
    if not len(left):
        return None
    spread = np.ptp(features, axis=0)
    scaled = (features - features.min(axis=0)) / np.where(spread > 0, spread, 1.0)
    if not measured:
        return Proposal(0, None)
    known = np.array(sorted(measured), dtype=np.intp)
    if len(known) < _FIRST:
        nearest = np.linalg.norm(scaled[left, np.newaxis] - scaled[known], axis=2).min(axis=1)
        return Proposal(int(left[np.argmax(nearest)]), None)
    values = np.log([measured[index] for index in known])
    mean, error = _predict(scaled[known], values, scaled[left])
    gain = _expected_improvement(mean, error, float(values.max()))
    best = int(np.argmax(gain))
    return Proposal(int(left[best]), float(np.expm1(gain[best])))


def _predict(
    known: NDArray[np.float64], values: NDArray[np.float64], asked: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean and the standard error at the points asked for."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    lengths = np.ones(known.shape[1])
    scale = max(float(np.std(values)), _NOISE)
    # With few points the likelihood alone would call differences noise: the noise is known, the rest is kept in bounds.
    noise = WhiteKernel((_NOISE / scale) ** 2, "fixed")
    kernel = ConstantKernel(1.0, (0.5, 4.0)) * Matern(lengths, (0.5, 4.0), nu=2.5) + noise
    process = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0)
    with warnings.catch_warnings():
        # A length at its bound says that a feature does not matter.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(known, (values - values.mean()) / scale)
    mean, error = process.predict(asked, return_std=True)
    # What is predicted is the rate, not a measurement of it.
    error = np.sqrt(np.maximum(error**2 - noise.noise_level, 0.0))
    return mean * scale + values.mean(), error * scale


def _expected_improvement(mean: NDArray[np.float64], error: NDArray[np.float64], best: float) -> NDArray[np.float64]:
    from scipy.stats import norm

    error = np.maximum(error, 1e-9)
    z = (mean - best) / error
    found: NDArray[np.float64] = (mean - best) * norm.cdf(z) + error * norm.pdf(z)
    return found
