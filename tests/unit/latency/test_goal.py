"""Judging a goal: each limit met, missed, or not to be told yet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deploykit.latency.goal import judge_goal
from deploykit.latency.measure import Samples
from deploykit.recipe import Goal


def samples(fast: int, slow: int = 0, fast_ms: float = 1.0, slow_ms: float = 9.0) -> Samples:
    return Samples("a", (np.full(fast, fast_ms), np.full(slow, slow_ms)) if slow else (np.full(fast, fast_ms),))


def judge(goal: dict[str, Any], shipped: Samples, reference: Samples | None = None, size_mb: float = 20.0) -> Any:
    (check,) = judge_goal(Goal(**goal), reference or samples(400, fast_ms=8.0), shipped, size_mb)
    return check


def test_a_goal_without_limits_asks_for_nothing() -> None:
    assert judge_goal(Goal(), samples(1), samples(1), 1.0) == ()


@pytest.mark.parametrize(
    ("goal", "outcome", "reached"),
    [
        ({"speedup": 8.0}, "pass", 8.0),
        ({"speedup": 8.01}, "fail", 8.0),
        ({"p50_ms": 1.0}, "pass", 1.0),
        ({"p50_ms": 0.99}, "fail", 1.0),
        ({"size_mb": 20.0}, "pass", 20.0),
        ({"size_mb": 19.9}, "fail", 20.0),
    ],
)
def test_simple_limits(goal: dict[str, float], outcome: str, reached: float) -> None:
    check = judge(goal, samples(400))
    assert (check.outcome, check.reached) == (outcome, reached)
    assert {check.limit: check.wanted} == goal


def test_every_limit_is_judged() -> None:
    goal = Goal(speedup=2.0, p50_ms=0.5, p99_ms=2.0, size_mb=30.0)
    checks = judge_goal(goal, samples(500, fast_ms=8.0), samples(500), 20.0)
    assert [(check.limit, check.outcome) for check in checks] == [
        ("speedup", "pass"), ("p50_ms", "fail"), ("p99_ms", "pass"), ("size_mb", "pass")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fast", "slow", "confidence", "outcome"),
    [
        # MLPerf's early stopping: at confidence 0.99 it takes 459 with none over the limit, 662 with one.
        (459, 0, 0.99, "pass"),
        (458, 0, 0.99, "inconclusive"),
        (661, 1, 0.99, "pass"),
        (660, 1, 0.99, "inconclusive"),
        # At 0.95: 299 with none.
        (299, 0, 0.95, "pass"),
        (298, 0, 0.95, "inconclusive"),
        (10, 0, 0.95, "inconclusive"),
        # Exactly one in a hundred is no proof in either direction; far more is a failure.
        (396, 4, 0.95, "inconclusive"),
        (380, 20, 0.95, "fail"),
        (0, 10, 0.95, "fail"),
        (9, 1, 0.95, "inconclusive"),
    ],
)
def test_row_60_p99_needs_enough_samples(fast: int, slow: int, confidence: float, outcome: str) -> None:
    found = samples(fast, slow) if fast else Samples("a", (np.full(slow, 9.0),))
    check = judge({"p99_ms": 5.0, "confidence": confidence}, found)
    assert check.outcome == outcome
    assert check.reached == pytest.approx(found.p99_ms)
    assert f"{slow} of {fast + slow} above 5 ms" in check.note
    assert ("set latency.messages to" in check.note) == (outcome == "inconclusive")


def test_row_60_the_advice_is_enough_when_nothing_is_slow() -> None:
    check = judge({"p99_ms": 5.0, "confidence": 0.99}, samples(100))
    advised = int(check.note.rpartition(" ")[2])
    assert judge({"p99_ms": 5.0, "confidence": 0.99}, samples(advised)).outcome == "pass"
