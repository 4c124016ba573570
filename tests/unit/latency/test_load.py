"""Load: arrivals, what counts as valid, and the open loop against a target that stalls, in simulated time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from deploykit.errors import LatencyError
from deploykit.latency.generator import Refusal, Sent, closed_loop, open_loop
from deploykit.latency.load import LoadResult, judge_load, next_rate, poisson_arrivals
from deploykit.latency.scenarios import _result
from deploykit.latency.server_facts import ModelTimes, breakdown_between, flags_of


class _Skipping(selectors.DefaultSelector):
    """Waits for nothing: the time that would pass is added to the clock instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now += timeout or 0.0
        return super().select(0)


class SimulatedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.skipping = _Skipping()
        super().__init__(self.skipping)

    def time(self) -> float:
        return self.skipping.now


def simulate(work: Callable[[], Coroutine[Any, Any, list[Sent]]]) -> list[Sent]:
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(work())


def stalling(stall_at: float, stall_s: float, service_s: float = 0.001) -> Callable[[int], Coroutine[Any, Any, None]]:
    """A target that answers one request after the other, and once does nothing for a while."""
    free = 0.0

    async def send(number: int) -> None:
        nonlocal free
        loop = asyncio.get_running_loop()
        begin = max(loop.time(), free)
        if begin <= stall_at < begin + 1.0:
            begin = max(begin, stall_at)
        if stall_at <= begin < stall_at + stall_s:
            begin = stall_at + stall_s
        free = begin + service_s
        await asyncio.sleep(free - loop.time())

    return send


def p99_ms(sent: list[Sent]) -> float:
    return float(np.quantile([each.done - each.due for each in sent], 0.99)) * 1e3


def test_row_58_a_stall_shows_in_the_open_loop_and_hides_in_the_closed_one() -> None:
    """Half a second in twenty: 2.5 % of the requests come meanwhile, whether a client sends them or waits."""
    due = poisson_arrivals(100, 20)
    opened = simulate(lambda: open_loop(stalling(10.0, 0.5), due.tolist()))
    closed = simulate(lambda: closed_loop(stalling(10.0, 0.5), len(due), 1))
    assert len(opened) == len(closed) == len(due)
    assert p99_ms(opened) > 150
    assert p99_ms(closed) < 5


def test_requests_are_sent_when_due() -> None:
    sent = simulate(lambda: open_loop(stalling(99, 0), [0.5, 0.6, 2.0]))
    assert [each.sent for each in sent] == pytest.approx([0.5, 0.6, 2.0])
    assert [each.done - each.sent for each in sent] == pytest.approx([0.001] * 3)


def test_row_59_a_client_that_falls_behind_is_invalid() -> None:
    async def blocking(number: int) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        loop.skipping.now += 0.05  # the client itself is busy

    due = poisson_arrivals(100, 5)
    result = _result(simulate(lambda: open_loop(blocking, due.tolist())), "server", 100)
    verdict = judge_load(result, p99_limit_ms=1e6)
    assert verdict.outcome == "invalid"
    assert "can't keep" in verdict.note


def test_rows_57_and_61_what_is_refused_has_no_latency_and_is_counted_apart() -> None:
    async def refusing(number: int) -> None:
        await asyncio.sleep(0.001)
        if number % 4 == 0:
            raise Refusal("exceeds maximum queue size", rejected=True)
        if number % 4 == 1:
            raise Refusal("broken", rejected=False)

    result = _result(simulate(lambda: open_loop(refusing, [number / 100 for number in range(1000)])), "server", 100)
    assert (len(result.latencies_ms), result.rejected, result.errors) == (500, 250, 250)
    verdict = judge_load(result, p99_limit_ms=1000)
    assert verdict.outcome == "fail"
    assert verdict.note == "250 rejected and 250 failed of 1000: broken"


def load(latencies: np.ndarray) -> LoadResult:
    zeros = np.zeros(len(latencies))
    return LoadResult("server", 100.0, 10.0, latencies, latencies, zeros)


def test_row_60_a_limit_on_p99_takes_enough_answers() -> None:
    assert judge_load(load(np.ones(458)), p99_limit_ms=2).outcome == "inconclusive"
    assert judge_load(load(np.ones(459)), p99_limit_ms=2).outcome == "pass"
    near = np.r_[np.ones(990), np.full(9, 3.0)]
    assert judge_load(load(near), p99_limit_ms=2).outcome == "inconclusive"
    assert judge_load(load(np.r_[np.ones(900), np.full(100, 3.0)]), p99_limit_ms=2).outcome == "fail"


def test_no_request_is_no_verdict() -> None:
    with pytest.raises(LatencyError):
        judge_load(load(np.array([])))
    with pytest.raises(LatencyError):
        poisson_arrivals(0, 10)


def test_arrivals_are_poisson() -> None:
    due = poisson_arrivals(200, 100, seed=4)
    gaps = np.diff(due)
    assert len(due) == pytest.approx(20_000, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    assert (due[0] >= 0, due[-1] < 100) == (True, True)


@pytest.mark.parametrize("capacity", [0.9, 3.0, 57.0, 1000.0])
def test_the_search_finds_the_capacity(capacity: float) -> None:
    tried: dict[float, bool] = {}
    while (rate := next_rate(tried, 20.0)) is not None:
        tried[rate] = rate <= capacity
    best = max(rate for rate, held in tried.items() if held)
    assert best <= capacity <= best * 1.06
    assert len(tried) < 20


def test_a_search_where_nothing_holds_ends() -> None:
    tried: dict[float, bool] = {}
    while (rate := next_rate(tried, 20.0)) is not None:
        tried[rate] = False
    assert len(tried) < 10


def test_row_63_a_response_cache_and_no_warm_up_are_flagged() -> None:
    assert flags_of([{"model_warmup": [{"name": "first"}]}, {}]) == ()
    assert "cache" in flags_of([{"model_warmup": [1]}, {"response_cache": {"enable": True}}])[0]
    assert "warm-up" in flags_of([{}])[0]


def test_time_in_the_server_is_split() -> None:
    then = {"m": ModelTimes(10, 10, {"queue": 100, "compute_input": 0, "compute_infer": 50, "compute_output": 0})}
    now = {
        "m": ModelTimes(
            14, 12, {"queue": 4_000_100, "compute_input": 0, "compute_infer": 8_000_050, "compute_output": 0}
        ),
        "idle": ModelTimes(0, 0, {}),
    }
    found = breakdown_between(then, now)
    assert (found["m.queue"], found["m.compute_infer"], found["m.requests_per_execution"]) == pytest.approx((1, 2, 2))
    assert not any(name.startswith("idle") for name in found)
