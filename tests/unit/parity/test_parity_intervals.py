"""Bounds against published values, the likelihood itself, and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, stats

from deploykit.errors import ParityError
from deploykit.parity.intervals import (
    bootstrap_drop_upper,
    clopper_pearson,
    clopper_pearson_lower,
    clopper_pearson_upper,
    normal_quantile,
    paired_drop_lower,
    paired_drop_upper,
    paired_drop_variance,
)

# (b, c, n), two-sided confidence, lower, upper: Tango's interval by R 4.6.1, PropCIs 0.3-0, scoreci.mp(c, b, n),
# which stops its search at 1e-7.
FROM_R = [
    ((7, 0, 14), 0.95, 0.1770338, 0.7320079),
    ((0, 7, 14), 0.95, -0.7320080, -0.1770339),
    ((0, 0, 14), 0.95, -0.2153108, 0.2153108),
    ((3, 2, 14), 0.95, -0.2610777, 0.3889963),
    ((1, 0, 14), 0.95, -0.1592616, 0.3146871),
    ((5, 5, 16), 0.95, -0.3675070, 0.3675068),
    ((13, 1, 14), 0.95, 0.3706262, 0.9745556),
    ((14, 0, 14), 0.95, 0.5693784, 1.0),
    ((0, 14, 14), 0.95, -1.0, -0.5693784),
    ((2, 9, 20), 0.95, -0.6016316, -0.0274143),
    ((1, 1, 2), 0.95, -0.8109376, 0.8109376),
    ((25, 12, 200), 0.95, 0.0056355, 0.1269411),
    ((0, 0, 14), 0.90, -0.1619549, 0.1619548),
    ((10, 3, 50), 0.90, 0.0233805, 0.2607449),
    ((4, 1, 28), 0.90, -0.0300108, 0.2561974),
    ((1, 1, 2), 0.90, -0.7582674, 0.7582673),
    ((25, 12, 200), 0.90, 0.0154765, 0.1164465),
]


@pytest.mark.parametrize(("counts", "two_sided", "lower", "upper"), FROM_R)
def test_paired_bounds_are_those_of_r(
    counts: tuple[int, int, int], two_sided: float, lower: float, upper: float
) -> None:
    one_sided = (1 + two_sided) / 2
    assert paired_drop_lower(*counts, one_sided) == pytest.approx(lower, abs=5e-7)
    assert paired_drop_upper(*counts, one_sided) == pytest.approx(upper, abs=5e-7)


@pytest.mark.parametrize(
    ("b", "c", "n", "lower", "upper"),
    [
        (1, 7, 21, -0.517, -0.026),  # Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33, airway reactivity
        (6, 16, 161, -0.1240, -0.0054),  # their R package contingencytables, Cavo et al. 2012
    ],
)
def test_paired_bounds_are_the_published_ones(b: int, c: int, n: int, lower: float, upper: float) -> None:
    digits = 3 if n == 21 else 4
    assert round(paired_drop_lower(b, c, n, 0.975), digits) == lower
    assert round(paired_drop_upper(b, c, n, 0.975), digits) == upper


def test_no_discordant_pair_still_leaves_a_bound() -> None:
    assert paired_drop_upper(0, 0, 10) == pytest.approx(0.213, abs=5e-4)
    assert paired_drop_upper(0, 0, 3080) == pytest.approx(0.00088, abs=5e-6)


def test_half_widths_at_3080_items() -> None:
    # 2 % and 4 % discordant: 0.42 and 0.59 points by the plain normal formula, the score bound a little wider.
    for discordant in (0.02, 0.04):
        plain = 1.6449 * math.sqrt(discordant / 3080)
        half = 3080 * discordant / 2
        assert plain < paired_drop_upper(half, half, 3080) < plain + 1e-4


@pytest.mark.parametrize(("b", "c", "n"), [(3, 2, 14), (1, 9, 40), (0, 3, 12), (5, 0, 12), (40, 31, 3080), (1, 0, 1)])
@pytest.mark.parametrize("delta", [-0.3, -0.01, 0.0, 0.02, 0.4, 0.9])
def test_variance_is_at_the_likeliest_rates(b: int, c: int, n: int, delta: float) -> None:
    # The likelihood of the three outcomes, maximised by brute force over the rate of c at a fixed difference.
    def loss(c_rate: NDArray[np.float64]) -> NDArray[np.float64]:
        rates = np.stack([c_rate + delta, c_rate, 1 - delta - 2 * c_rate])
        return -np.tensordot([b, c, n - b - c], np.log(np.maximum(rates, 1e-300)), axes=1)

    low, high = max(0.0, -delta), (1 - delta) / 2
    grid = np.linspace(low, high, 20001)
    best = grid[loss(grid).argmin()]
    step = grid[1] - grid[0]
    bounds = (max(low, best - step), min(high, best + step))
    best = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    assert paired_drop_variance(b / n, c / n, delta) == pytest.approx(2 * best + delta - delta**2, abs=2e-6)


def exact_coverage(n: int, b_rate: float, c_rate: float, confidence: float) -> float:
    """The probability, summed over every outcome, that the upper bound is not below the true drop."""
    coverage = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            if paired_drop_upper(b, c, n, confidence) >= b_rate - c_rate:
                coverage += stats.multinomial.pmf([b, c, n - b - c], n, [b_rate, c_rate, 1 - b_rate - c_rate])
    return coverage


@pytest.mark.parametrize(("b_rate", "c_rate"), [(0.05, 0.05), (0.2, 0.1), (0.1, 0.2), (0.3, 0.3)])
def test_exact_coverage_of_forty_items(b_rate: float, c_rate: float) -> None:
    assert 0.935 <= exact_coverage(40, b_rate, c_rate, 0.95) <= 0.985


@pytest.mark.parametrize(("b_rate", "c_rate"), [(0.01, 0.01), (0.015, 0.005), (0.03, 0.03), (0.004, 0.001)])
def test_simulated_coverage_of_3080_items(b_rate: float, c_rate: float) -> None:
    draws = np.random.default_rng(7).multinomial(3080, [b_rate, c_rate, 1 - b_rate - c_rate], size=6000)
    outcomes, counts = np.unique(draws[:, :2], axis=0, return_counts=True)
    covered = sum(
        int(count)
        for (b, c), count in zip(outcomes.tolist(), counts, strict=True)
        if paired_drop_upper(b, c, 3080) >= b_rate - c_rate
    )
    assert 0.935 <= covered / 6000 <= 0.965


@st.composite
def paired_counts(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 5000))
    b = draw(st.integers(0, n))
    return b, draw(st.integers(0, n - b)), n


@given(paired_counts(), st.sampled_from([0.8, 0.95, 0.999]))
def test_bounds_enclose_the_drop(counts: tuple[int, int, int], confidence: float) -> None:
    b, c, n = counts
    lower, upper = paired_drop_lower(b, c, n, confidence), paired_drop_upper(b, c, n, confidence)
    assert -1 <= lower <= (b - c) / n <= upper <= 1
    assert lower < upper


@given(paired_counts())
def test_bound_solves_the_score_equation(counts: tuple[int, int, int]) -> None:
    b, c, n = counts
    upper = paired_drop_upper(b, c, n)
    if upper < 1:
        spread = math.sqrt(paired_drop_variance(b / n, c / n, upper) / n)
        assert upper - (b - c) / n == pytest.approx(normal_quantile(0.95) * spread, abs=1e-9)


@given(paired_counts())
def test_bound_rises_with_every_item_that_is_lost(counts: tuple[int, int, int]) -> None:
    b, c, n = counts
    if b + c < n:
        assert paired_drop_upper(b + 1, c, n) > paired_drop_upper(b, c, n)
        assert paired_drop_upper(b, c + 1, n) < paired_drop_upper(b, c, n)


@given(paired_counts(), st.integers(2, 10))
def test_bound_tightens_with_more_items_at_the_same_rates(counts: tuple[int, int, int], times: int) -> None:
    b, c, n = counts
    assert paired_drop_upper(b * times, c * times, n * times) <= paired_drop_upper(b, c, n)


@given(paired_counts())
def test_bound_rises_with_confidence(counts: tuple[int, int, int]) -> None:
    b, c, n = counts
    assert paired_drop_upper(b, c, n, 0.9) <= paired_drop_upper(b, c, n, 0.99)


@pytest.mark.parametrize(
    ("b", "c", "n"), [(0, 0, 0), (-1, 0, 5), (0, -1, 5), (3, 3, 5), (math.nan, 0, 5), (0, 0, math.nan)]
)
def test_counts_that_make_no_sense_are_refused(b: float, c: float, n: float) -> None:
    with pytest.raises(ParityError):
        paired_drop_upper(b, c, n)


@pytest.mark.parametrize("confidence", [0.0, 0.5, 1.0, 95, math.nan])
def test_confidence_out_of_range_is_refused(confidence: float) -> None:
    with pytest.raises(ParityError, match="confidence"):
        paired_drop_upper(1, 1, 10, confidence)
    with pytest.raises(ParityError, match="confidence"):
        clopper_pearson_upper(1, 10, confidence)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"), [(13, 16, 0.5435, 0.9595), (10, 10, 0.6915, 1.0), (0, 10, 0.0, 0.3085)]
)
def test_clopper_pearson_is_the_published_interval(k: int, n: int, low: float, high: float) -> None:
    # The R package contingencytables (Ligarden et al. 2010, and its two edges).
    assert clopper_pearson(k, n, 0.95) == pytest.approx((low, high), abs=5e-5)


def test_clopper_pearson_is_that_of_scipy() -> None:
    theirs = stats.binomtest(9, 3080).proportion_ci(0.95, method="exact")
    assert clopper_pearson(9, 3080, 0.95) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


def test_rule_of_three() -> None:
    assert clopper_pearson_upper(0, 3080) == pytest.approx(1 - 0.05 ** (1 / 3080), rel=1e-9)
    assert clopper_pearson_lower(1, 3080) == pytest.approx(1 - 0.95 ** (1 / 3080), rel=1e-9)
    assert clopper_pearson_lower(3080, 3080) == pytest.approx(0.05 ** (1 / 3080), rel=1e-9)


def test_clopper_pearson_never_covers_too_little() -> None:
    k = np.arange(61)
    uppers = np.array([clopper_pearson_upper(int(count), 60) for count in k])
    for rate in np.linspace(0.005, 0.5, 40):
        assert stats.binom.pmf(k[uppers >= rate], 60, rate).sum() >= 0.95


def accuracy(answers: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(answers == labels))


def test_bootstrap_agrees_with_the_score_bound_where_pairs_are_many() -> None:
    labels = np.zeros(2000, dtype=np.int64)
    reference, candidate = labels.copy(), labels.copy()
    candidate[:80] = 1
    reference[80:130] = 1
    bound = bootstrap_drop_upper(accuracy, reference, candidate, labels, seed=3)
    assert bound == pytest.approx(paired_drop_upper(80, 50, 2000), abs=1e-3)


def test_bootstrap_is_seeded() -> None:
    generator = np.random.default_rng(0)
    labels, reference, candidate = (generator.integers(0, 3, 200) for _ in range(3))
    bounds = [bootstrap_drop_upper(accuracy, reference, candidate, labels, seed=seed) for seed in (1, 1, 2)]
    assert bounds[0] == bounds[1] != bounds[2]


def test_bootstrap_refuses_nothing_and_nan() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    with pytest.raises(ParityError):
        bootstrap_drop_upper(accuracy, nothing, nothing, nothing)
    items = np.zeros(5, dtype=np.int64)
    with pytest.raises(ParityError, match="finite"):
        bootstrap_drop_upper(lambda answers, labels: math.nan, items, items, items)
    with pytest.raises(ParityError):
        bootstrap_drop_upper(accuracy, items[:4], items, items)
