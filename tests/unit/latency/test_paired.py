"""Rounds in turn until a rule says stop, and the verdict on programs whose speed is known."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from deploykit.errors import LatencyError
from deploykit.latency import paired as module
from deploykit.latency.baseline import Baseline
from deploykit.latency.comparison import compare_live, compare_with_baseline
from deploykit.latency.paired import measure_rounds
from deploykit.latency.regression import Rule
from deploykit.runners import Target

OLD, NEW = Target("onnxruntime", "old"), Target("onnxruntime", "new")
MESSAGES = [f"message {number}" for number in range(300)]


class FakeWorkers:
    """Processes in simulated time: starting takes `starting_s`, each message 10 ms times the target's factor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, factors: Mapping[str, float], starting_s: float = 0.1) -> None:
        self.now, self.asked, self.started, self.open = 0.0, list[tuple[str, tuple[str, ...]]](), list[str](), 0
        self.factors, self.starting_s = factors, starting_s
        self.random = np.random.default_rng(0)
        monkeypatch.setattr(module, "open_worker", self.worker)
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)

    @contextlib.contextmanager
    def worker(self, name: str, target: Target, command: object) -> Iterator[Any]:
        fake = self

        class Worker:
            def ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
                seconds = 0.01 * fake.factors[name] * fake.random.lognormal(0, 0.05, len(order["messages"]))
                fake.now += float(seconds.sum())
                fake.asked.append((name, tuple(order["messages"])))
                return {"seconds": seconds.tolist()}

        self.now += self.starting_s
        self.started.append(name)
        self.open += 1
        try:
            yield Worker()
        finally:
            self.open -= 1


def test_a_round_is_there_and_back_on_the_same_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWorkers(monkeypatch, {"a": 1, "b": 1})
    measured = measure_rounds({"a": OLD, "b": NEW}, MESSAGES, lambda _: True, budget_s=10)
    rounds = fake.asked[4:]  # after the warming up
    assert [name for name, _ in rounds[:8]] == [*"abba", *"baab"]
    assert rounds[0][1] == rounds[1][1] != rounds[2][1] == rounds[3][1]
    assert {len(times) for _, round in measured.rounds for times in round.values()} == {2 * len(rounds[0][1])}
    assert measured.fractions == (0.25,)
    assert fake.open == 0


def test_it_goes_on_to_the_budget_and_starts_anew_in_turned_order(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWorkers(monkeypatch, {"a": 1, "b": 1})
    measured = measure_rounds({"a": OLD, "b": NEW}, MESSAGES, lambda _: False, budget_s=20)
    assert measured.fractions == (0.25, 0.5, 0.75, 1.0)
    assert measured.seconds == pytest.approx(20, abs=0.5)
    assert fake.started == [*"abbaabba"]
    assert {pair for pair, _ in measured.rounds} == {0, 1, 2, 3}


@pytest.mark.parametrize(("starting_s", "pairs"), [(0.1, 4), (1.0, 2), (5, 1)])
def test_slow_starters_are_started_less_often(monkeypatch: pytest.MonkeyPatch, starting_s: float, pairs: int) -> None:
    fake = FakeWorkers(monkeypatch, {"a": 1, "b": 1}, starting_s)
    measure_rounds({"a": OLD, "b": NEW}, MESSAGES, lambda _: False, budget_s=20)
    assert len(fake.started) == 2 * pairs


@pytest.mark.parametrize(("factor", "outcome"), [(1.0, "pass"), (1.3, "fail"), (0.8, "pass")])
def test_a_clear_case_ends_early(monkeypatch: pytest.MonkeyPatch, factor: float, outcome: str) -> None:
    FakeWorkers(monkeypatch, {"old": 1, "new": factor})
    found = compare_live(OLD, NEW, MESSAGES, Rule(margin=0.1), budget_s=60)
    assert found.regression.outcome == outcome
    assert found.measured.seconds < 46
    assert found.needed_s is None


def test_a_drifting_baseline_is_inconclusive_where_a_quiet_one_is_not(
    monkeypatch: pytest.MonkeyPatch, baseline: Baseline
) -> None:
    FakeWorkers(monkeypatch, {"new": 1})
    values = {"p50": 10.0, "p95": 10.86, "p99": 11.24, "throughput": 99.9}  # of the fake's lognormal times
    figures = {
        name: figure.model_copy(update={"value": values[name], "error": 0.001, "drift": 0.001})
        for name, figure in baseline.metrics.items()
    }
    quiet = baseline.model_copy(update={"metrics": figures})
    drifting = quiet.model_copy(
        update={"metrics": {name: figure.model_copy(update={"drift": 0.2}) for name, figure in figures.items()}}
    )
    rule = Rule(margin=0.1)
    assert compare_with_baseline(quiet, NEW, MESSAGES, rule, budget_s=20).regression.outcome == "pass"
    found = compare_with_baseline(drifting, NEW, MESSAGES, rule, budget_s=20)
    assert (found.regression.outcome, found.live) == ("inconclusive", False)


def test_nothing_to_time_is_an_error() -> None:
    for targets, messages, budget_s in (({}, MESSAGES, 5.0), ({"a": OLD}, [], 5.0), ({"a": OLD}, MESSAGES, 0.0)):
        with pytest.raises(LatencyError, match="nothing to time"):
            measure_rounds(targets, messages, lambda _: True, budget_s=budget_s)


def test_real_processes(exported: Callable[[str], Any]) -> None:
    target = Target("onnxruntime", str(exported("bert").folder), threads=1)
    found = compare_live(target, dataclasses.replace(target), MESSAGES, Rule(), budget_s=1)
    assert found.regression.metrics[0].ratio.n > 0
    assert found.measured.fractions[0] == 0.25
