"""Ratios and their verdict: known slow-downs in made-up noise, and what no data can pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from deploykit.errors import LatencyError
from deploykit.latency.ratios import Metric, Ratio, Round, ratios, statistics_of
from deploykit.latency.regression import Rule, judge

LENGTHS = np.random.default_rng(9).gamma(4, 0.25, 400)


def rounds(
    seed: int, *, count: int = 60, size: int = 40, slower: float = 0.0, tail: float = 0.0, noise: float = 0.1
) -> list[Round]:
    """Messages of unequal length on a machine that drifts from round to round, with bursts that hit single calls."""
    random = np.random.default_rng(seed)

    def side(base: np.ndarray, drift: float) -> np.ndarray:
        burst = np.where(random.random(size) < 0.1, random.exponential(4, size), 0)
        return base * drift * np.exp(random.normal(0, noise, size)) + burst

    found = []
    for number in range(count):
        base, drift = 0.5 + LENGTHS[random.integers(0, 400, size)], float(np.exp(random.normal(0, 0.3)))
        new = side(base, drift) * (1 + slower) + 20 * (random.random(size) < tail)
        found.append(Round(4 * number // count, side(base, drift), new))
    return found


def outcome(found: list[Round], rule: Rule) -> str:
    return judge(ratios(found), rule).outcome


def test_a_planted_slow_down_is_measured_though_the_machine_drifts_by_30_percent() -> None:
    found = ratios(rounds(1, slower=0.10))
    assert found["p50"].value == pytest.approx(1.10, abs=0.02)
    assert found["p50"].error < 0.02
    assert {ratio.pairs for ratio in found.values()} == {4}


def test_a_tail_shows_in_p99_and_not_in_p50() -> None:
    found = ratios(rounds(2, tail=0.03))
    assert found["p99"].value > 1.5
    assert found["p50"].value == pytest.approx(1, abs=0.05)


def test_throughput_is_the_time_per_message() -> None:
    one = [Round(0, np.full(4, 2.0), np.full(4, 3.0))] * 3
    found = ratios(one)["throughput"]
    assert (found.old, found.new, found.value) == pytest.approx((500, 1000 / 3, 1.5))


def test_the_error_is_that_of_repetitions() -> None:
    """The bootstrap's standard error against the spread of 60 independent experiments."""
    found = [ratios(rounds(seed, count=30))["p50"] for seed in range(100, 160)]
    assert np.std([each.log for each in found], ddof=1) == pytest.approx(np.median([f.error for f in found]), rel=0.4)


@pytest.mark.parametrize(
    ("planted", "margin", "expected"),
    [
        ({}, 0.10, "pass"),
        ({"slower": 0.10}, 0.05, "fail"),
        ({"slower": 0.25}, 0.10, "fail"),
        ({"tail": 0.03}, 0.10, "fail"),
        ({"slower": -0.2}, 0.05, "pass"),
    ],
)
def test_verdicts(planted: dict[str, float], margin: float, expected: str) -> None:
    assert {outcome(rounds(seed, **planted), Rule(margin=margin)) for seed in range(8)} == {expected}


def test_a_slow_down_above_the_margin_never_passes() -> None:
    assert "pass" not in {outcome(rounds(seed, slower=0.05), Rule(margin=0.03)) for seed in range(20)}


def test_the_same_twice_seldom_fails() -> None:
    outcomes = [outcome(rounds(seed, count=24), Rule(margin=0.05)) for seed in range(200, 300)]
    assert outcomes.count("fail") <= 4  # designed at 1 %


def ratio(metric: Metric, value: float, error: float, n: int = 5000, count: int = 100) -> Ratio:
    return Ratio(metric, 1.0, value, float(np.log(value)), error, n, count, 4)


def quiet(**changed: Ratio) -> Mapping[Metric, Ratio]:
    names: tuple[Metric, ...] = ("p50", "p95", "p99", "throughput")
    return {name: changed.get(name, ratio(name, 1.0, 0.002)) for name in names}


EXACT = Rule(margin=0.10, floor=0.0)


def test_a_real_slow_down_within_the_margin_passes() -> None:
    verdict = judge(quiet(p50=ratio("p50", 1.03, 0.002)), EXACT)
    assert verdict.outcome == "pass"
    assert verdict.metrics[0].lower > 1


def test_any_metric_can_fail_and_only_required_ones_hold_a_pass_back() -> None:
    assert judge(quiet(p99=ratio("p99", 2.0, 0.05)), EXACT).outcome == "fail"
    unsure = quiet(p99=ratio("p99", 1.05, 0.2))
    assert judge(unsure, EXACT).outcome == "pass"
    assert judge(unsure, replace(EXACT, required=("p50", "p99"))).outcome == "inconclusive"


def test_row_60_too_few_messages_for_a_percentile_are_inconclusive_never_a_pass() -> None:
    few = quiet(p99=ratio("p99", 0.5, 0.001, n=458))
    verdict = judge(few, replace(EXACT, required=("p99",)))
    assert verdict.outcome == "inconclusive"
    assert "459" in verdict.metrics[2].note


def test_inconclusive_says_how_much_longer() -> None:
    """Four times the time halves the error."""
    at = ratio("p50", 1.0, 0.1)
    verdict = judge(quiet(p50=at), EXACT)
    assert verdict.outcome == "inconclusive"
    assert verdict.more is not None
    settled = judge(quiet(p50=replace(at, error=0.1 / np.sqrt(verdict.more * 1.1))), EXACT)
    assert settled.outcome == "pass"


def test_early_looks_ask_for_more() -> None:
    slower = quiet(p50=ratio("p50", 1.12, 0.03))
    assert judge(slower, EXACT, [0.25]).outcome == "inconclusive"
    assert judge(slower, EXACT, [0.25, 0.5, 0.75, 1.0]).outcome == "fail"
    assert judge(quiet(p50=ratio("p50", 1.5, 0.03)), EXACT, [0.25]).final


def test_what_may_yet_be_within_the_margin_is_not_failed_early() -> None:
    near = quiet(p50=ratio("p50", 1.09, 0.012))
    assert not judge(near, EXACT, [0.25, 0.5]).final
    assert judge(near, EXACT, [0.25, 0.5, 1.0]).outcome == "fail"


def test_a_pass_waits_for_a_tail_that_looks_slower() -> None:
    suspected = quiet(p99=ratio("p99", 1.3, 0.2))
    assert not judge(suspected, EXACT, [0.5]).final
    assert judge(quiet(), EXACT, [0.5]).final


def test_few_rounds_widen_the_bounds() -> None:
    many, few = (judge(quiet(p50=ratio("p50", 1.0, 0.02, count=count)), EXACT).metrics[0] for count in (200, 3))
    assert few.upper > many.upper
    assert few.lower < many.lower


@pytest.mark.parametrize(
    "broken",
    [
        [],
        [Round(0, np.ones(3), np.ones(3))],
        [Round(0, np.ones(3), np.ones(2))] * 2,
        [Round(0, np.ones(0), np.ones(0))] * 2,
        [Round(0, np.ones(3), np.zeros(3))] * 2,
        [Round(0, np.ones(3), np.array([1, np.nan, 1]))] * 2,
    ],
)
def test_a_comparison_of_nothing_is_an_error(broken: list[Round]) -> None:
    with pytest.raises(LatencyError):
        ratios(broken)


def test_rules_that_judge_nothing_are_refused() -> None:
    for wrong in ({"margin": 0.0}, {"required": ()}, {"required": ("p98",)}):
        with pytest.raises(LatencyError):
            Rule(**wrong)  # type: ignore[arg-type]
    with pytest.raises(LatencyError, match="p99 was not measured"):
        judge({"p50": ratio("p50", 1, 0.01)}, Rule(required=("p99",)))


def test_one_side_alone() -> None:
    found = statistics_of([np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])])
    assert found["p50"][0] == 2
    assert found["throughput"][0] == pytest.approx(500)
