"""Server and Offline on a tiny model in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deploykit.errors import LatencyError
from deploykit.events import Note
from deploykit.latency import scenarios
from deploykit.latency.load import LoadResult
from deploykit.latency.scenarios import find_rate, run_offline, run_server
from deploykit.runners import Target

MESSAGES = ["where is my parcel", "cancel it", "invoice", "a longer message about my account and my password"]


@pytest.fixture
def target(exported: Callable[[str], Any]) -> Target:
    return Target("onnxruntime", str(exported("bert").folder), threads=1)


def test_every_request_that_is_due_is_answered(target: Target) -> None:
    result = run_server(target, MESSAGES, rate_per_s=40, seconds=1)
    assert (result.rejected, result.errors) == (0, 0)
    assert result.due == len(result.latencies_ms) > 10
    assert result.latencies_ms.min() > 0
    assert result.lags_ms.min() >= 0
    assert (result.service_ms <= result.latencies_ms + 1e-6).all()


def test_offline_all_are_due_at_the_start(target: Target) -> None:
    result = run_offline(target, MESSAGES * 5, batch=8)
    assert len(result.latencies_ms) == 20
    assert len(set(result.latencies_ms)) == 3  # batches
    assert result.answered_per_s == pytest.approx(20 / (result.latencies_ms.max() / 1e3))


def test_no_messages_are_an_error(target: Target) -> None:
    for run in (lambda: run_offline(target, []), lambda: run_server(target, [], rate_per_s=1, seconds=1)):
        with pytest.raises(LatencyError, match="nothing to time"):
            run()


def test_the_search_runs_long_enough_for_p99_and_says_what_it_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[float, float]] = []

    def fake(target: Target, messages: object, *, rate_per_s: float, seconds: float, seed: int) -> LoadResult:
        ran.append((rate_per_s, seconds))
        latencies = np.full(int(rate_per_s * seconds), 5.0 if rate_per_s <= 130 else 50.0)
        return LoadResult("server", rate_per_s, seconds, latencies, latencies, np.zeros(len(latencies)))

    monkeypatch.setattr(scenarios, "run_server", fake)
    notes: list[Any] = []
    best, tried = find_rate(
        Target("onnxruntime", "x"), MESSAGES, p99_limit_ms=20, seconds=5, start_per_s=20, listener=notes.append
    )
    assert best is not None
    assert best <= 130 <= best * 1.06
    assert min(rate * seconds for rate, seconds in ran) >= 699
    assert len(tried) == len(ran) == sum(isinstance(note, Note) for note in notes)
