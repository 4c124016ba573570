"""What is usual in a stream: how likely a negative message is in the next window, and how far that is known."""

from __future__ import annotations

__all__ = ["Usual", "log_ratio", "usual"]

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LEAST_MESSAGES = 30
"""Below this nothing is known of a series."""
_PHASES_DIFFER = 0.1
"""Standard deviation of the log odds between the windows of a week, which is assumed where none is seen."""
_LARGEST_CORRELATION = 0.5


@dataclass(frozen=True)
class Usual:
    """A beta-binomial law for the negatives among the messages of a window, for several series.

    Attributes:
        rate: float64 [series], the expected share.
        correlation: float64 [series], between two messages of a window: what days differ by beyond chance, and what
            the past leaves open.
        known: bool [series], whether the past has enough messages to say.
    """

    rate: Floats
    correlation: Floats
    known: NDArray[np.bool_]

    def half_width(self, messages: NDArray[np.int64]) -> Floats:
        """Of the interval that 95 % of shares lie in (normal approximation), float64 [series]."""
        count = np.maximum(messages, 1)
        variance = self.rate * (1 - self.rate) * (1 + (count - 1) * self.correlation) / count
        return np.asarray(1.96 * np.sqrt(variance), dtype=np.float64)


def usual(messages: NDArray[np.int64], negatives: NDArray[np.int64], phases: NDArray[np.int64], phase: int) -> Usual:
    """The law of the next window, from past ones.

    Each phase of the week has a rate of its own, drawn towards the common one as far as the phases are alike: the
    variance between them is DerSimonian and Laird's (1986, eq. 9). What windows of one phase differ by beyond chance
    is taken from Pearson's statistic.

    Args:
        messages: int64 [windows, series].
        negatives: likewise.
        phases: int64 [windows], which window of its week each is.
        phase: of the next window.
    """
    total = messages.sum(axis=0)
    mean = (negatives.sum(axis=0) + 0.5) / (total + 1)
    unit = mean * (1 - mean)
    shape = (int(max(phases.max(initial=0), phase)) + 1, messages.shape[1])
    asked, bad = np.zeros(shape), np.zeros(shape)
    np.add.at(asked, phases, messages)
    np.add.at(bad, phases, negatives)
    share = np.where(asked > 0, bad / np.maximum(asked, 1), mean)
    heterogeneity = (asked * (share - mean) ** 2).sum(axis=0) / unit
    surplus = heterogeneity - ((asked > 0).sum(axis=0) - 1)
    between = np.maximum(surplus / np.maximum(total - (asked**2).sum(axis=0) / np.maximum(total, 1), 1), 0) * unit
    between = np.maximum(between, (_PHASES_DIFFER * unit) ** 2)
    strength = np.maximum(unit / between - 1, 1.0)
    rates = (bad + strength * mean) / (asked + strength)

    expected = messages * rates[phases]
    chi_square = ((negatives - expected) ** 2 / np.maximum(expected * (1 - rates[phases]), 1e-12)).sum(axis=0)
    free = (messages > 0).sum(axis=0) - (asked / (asked + strength)).sum(axis=0)
    dispersion = np.maximum(chi_square / np.maximum(free, 1), 1.0)
    typical = (messages**2).sum(axis=0) / np.maximum(total, 1)
    own = (dispersion - 1) / np.maximum(typical - 1, 1)
    weight = np.minimum(asked[phase] + strength, np.maximum(total, 1))
    correlation = np.minimum(own + dispersion / (weight + 1), _LARGEST_CORRELATION)
    return Usual(rates[phase], correlation, total >= _LEAST_MESSAGES)


def log_ratio(law: Usual, odds: Floats, messages: NDArray[np.int64], negatives: NDArray[np.int64]) -> Floats:
    """log of how much likelier a window's counts are where the odds of a negative are multiplied: [series, odds].

    Args:
        law: what is usual.
        odds: the factors, float64 [odds].
        messages: int64 [series].
        negatives: likewise.
    """
    from scipy.special import betaln

    usual_odds = (law.rate / (1 - law.rate))[:, None]
    raised = usual_odds * odds / (1 + usual_odds * odds)
    size = (1 / law.correlation - 1)[:, None]
    count, bad = messages[:, None], negatives[:, None]

    def log_likelihood(rate: Floats) -> Floats:
        first, second = rate * size, (1 - rate) * size
        return np.asarray(betaln(bad + first, count - bad + second) - betaln(first, second), dtype=np.float64)

    found = log_likelihood(raised) - log_likelihood(law.rate[:, None])
    return np.where(law.known[:, None], found, 0.0)
