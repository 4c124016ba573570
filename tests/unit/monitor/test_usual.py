"""What is usual is learnt from counts: rates by the window of the week, and how far days differ beyond chance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import betabinom

from deploykit.monitor.usual import log_ratio, usual

WEEKS = 8
PHASES = np.arange(7 * WEEKS) % 7


def drawn(rates: np.ndarray, volume: int, seed: int, spread: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    odds = (rates / (1 - rates))[PHASES] * np.exp(spread * rng.normal(size=len(PHASES)))
    messages = rng.poisson(volume, size=len(PHASES))
    return messages[:, None], rng.binomial(messages, odds / (1 + odds))[:, None]


def test_phases_that_are_alike_share_one_rate() -> None:
    messages, negatives = drawn(np.full(7, 0.2), 100, seed=1)
    raw = [negatives[phase == PHASES].sum() / messages[phase == PHASES].sum() for phase in range(7)]
    rates = np.array([usual(messages, negatives, PHASES, phase).rate[0] for phase in range(7)])
    assert np.ptp(rates) < 0.7 * np.ptp(raw)
    assert abs(rates.mean() - np.mean(raw)) < 0.01


def test_a_day_of_the_week_that_differs_has_a_rate_of_its_own() -> None:
    rates = np.array([0.4, *[0.15] * 6])
    messages, negatives = drawn(rates, 200, seed=2)
    assert usual(messages, negatives, PHASES, 0).rate[0] == pytest.approx(0.4, abs=0.04)
    assert usual(messages, negatives, PHASES, 3).rate[0] == pytest.approx(0.15, abs=0.02)


def test_days_that_differ_beyond_chance_widen_what_is_usual() -> None:
    calm = usual(*drawn(np.full(7, 0.2), 300, seed=3), PHASES, 0)
    restless = usual(*drawn(np.full(7, 0.2), 300, seed=3, spread=0.5), PHASES, 0)
    assert restless.correlation[0] > 3 * calm.correlation[0]
    assert restless.half_width(np.array([300]))[0] > 1.5 * calm.half_width(np.array([300]))[0]


def test_a_short_past_leaves_more_open() -> None:
    messages, negatives = drawn(np.full(7, 0.2), 100, seed=4)
    short = usual(messages[:14], negatives[:14], PHASES[:14], 0)
    assert short.correlation[0] > usual(messages, negatives, PHASES, 0).correlation[0]


def test_nothing_is_known_of_an_empty_past() -> None:
    nothing = np.zeros((14, 1), dtype=np.int64)
    law = usual(nothing, nothing, PHASES[:14], 0)
    assert not law.known[0]
    assert (log_ratio(law, np.array([2.0]), np.array([50]), np.array([40])) == 0).all()


def test_the_ratio_is_that_of_two_beta_binomial_laws_and_is_one_in_the_mean() -> None:
    """The second is what makes the evidence an e-value."""
    law = usual(*drawn(np.full(7, 0.2), 100, seed=5), PHASES, 2)
    odds, count = np.array([1.5, 3.0]), 40
    every = np.arange(count + 1)
    ratios = np.exp([log_ratio(law, odds, np.array([count]), np.array([bad]))[0] for bad in every])
    size = 1 / law.correlation[0] - 1
    rate = law.rate[0]
    null = betabinom.pmf(every, count, rate * size, (1 - rate) * size)
    assert null @ ratios == pytest.approx([1.0, 1.0], abs=1e-6)
    raised = rate / (1 - rate) * 3.0
    other = betabinom.pmf(every, count, raised / (1 + raised) * size, size / (1 + raised))
    assert ratios[:, 1] == pytest.approx(other / null, rel=1e-6)
