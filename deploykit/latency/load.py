"""Load: when requests are due, what a run under load shows, and whether it counts. Pure."""

from __future__ import annotations

__all__ = ["LATE_MS", "LoadResult", "LoadVerdict", "judge_load", "next_rate", "poisson_arrivals"]

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import LatencyError
from deploykit.latency.early_stopping import claimed_quantile, samples_needed

LATE_MS = 10.0
"""A request sent later than this after it was due is the generator's fault, not the target's."""
_LATE_SHARE = 0.01
_STEP = 2.0


@dataclass(frozen=True)
class LoadResult:
    """What happened to the requests of one run.

    Attributes:
        scenario: `server`: open loop, sent when due; `offline`: all at once, as fast as the target goes; `closed`: so
            many clients at once, each waiting for its answer before it asks again.
        offered_per_s: the rate at which requests were due; 0 offline.
        seconds: from the first one due to the last answer.
        latencies_ms: of the answered ones, from when each was due: a target that stalls makes all wait that come
            meanwhile, sent or not (no coordinated omission).
        service_ms: of the same, from when each was sent.
        lags_ms: how late each request was sent, the refused ones included.
        rejected: that the server's queue had no room for.
        errors: that failed otherwise.
        first_error: what one of them said.
        breakdown_ms: mean milliseconds a request spent in each part of the server, where it tells.
        split_ms: the mean latency split into client, network, queue, batch_wait and compute, where the server tells.
        clients: at once, in a closed loop.
        flags: what makes the figures less than they seem: a response cache, no warm-up.
    """

    scenario: Literal["server", "offline", "closed"]
    offered_per_s: float
    seconds: float
    latencies_ms: NDArray[np.float64]
    service_ms: NDArray[np.float64]
    lags_ms: NDArray[np.float64]
    rejected: int = 0
    errors: int = 0
    first_error: str = ""
    breakdown_ms: dict[str, float] = field(default_factory=dict)
    split_ms: dict[str, float] = field(default_factory=dict)
    clients: int = 0
    flags: tuple[str, ...] = ()

    @property
    def answered_per_s(self) -> float:
        """Answers a second."""
        return len(self.latencies_ms) / self.seconds if self.seconds > 0 else 0.0

    @property
    def due(self) -> int:
        """All requests."""
        return len(self.latencies_ms) + self.rejected + self.errors


@dataclass(frozen=True)
class LoadVerdict:
    """Whether a run counts, and whether it held its limit.

    Attributes:
        outcome: `invalid` where the generator could not keep the rate; else as elsewhere.
        p99_ms: of all latencies.
        claimed_p99_ms: what p99 is below with a confidence of 99 %; None where there are too few samples to say.
        note: in words.
    """

    outcome: Literal["pass", "fail", "inconclusive", "invalid"]
    p99_ms: float | None
    claimed_p99_ms: float | None
    note: str


def poisson_arrivals(rate_per_s: float, seconds: float, seed: int = 0) -> NDArray[np.float64]:
    """Seconds from the start at which requests are due: exponential gaps, as independent clients make them.

    Raises:
        LatencyError: no request would be due.
    """
    if rate_per_s <= 0 or seconds <= 0:
        raise LatencyError(f"{rate_per_s:g} requests a second for {seconds:g} s are no load")
    random = np.random.default_rng(seed)
    gaps = random.exponential(1 / rate_per_s, size=int(rate_per_s * seconds + 10 * np.sqrt(rate_per_s * seconds) + 10))
    due = np.cumsum(gaps)
    found = due[due < seconds]
    return found if len(found) else due[:1]


def judge_load(result: LoadResult, *, p99_limit_ms: float | None = None, error_limit: float = 0.001) -> LoadVerdict:
    """Whether the run is valid, and holds a limit on p99 by the rule of MLPerf's early stopping.

    Args:
        result: of the run.
        p99_limit_ms: without one a valid run passes on its errors alone.
        error_limit: the share of requests that may fail or be rejected; they have no latency and are judged apart.

    Raises:
        LatencyError: nothing was asked.
    """
    if not result.due:
        raise LatencyError("no request was made, so there is no verdict")
    values = result.latencies_ms
    p99 = float(np.quantile(values, 0.99)) if len(values) else None
    claimed = claimed_quantile(values, 0.99) if len(values) else None
    late = float(np.mean(result.lags_ms > LATE_MS)) if len(result.lags_ms) else 0.0
    if result.scenario == "server" and late > _LATE_SHARE:
        note = f"{late:.0%} of the requests were sent over {LATE_MS:g} ms late: the client can't keep this rate"
        return LoadVerdict("invalid", p99, claimed, note)
    lost = (result.rejected + result.errors) / result.due
    if lost > error_limit:
        note = f"{result.rejected} rejected and {result.errors} failed of {result.due}"
        return LoadVerdict("fail", p99, claimed, f"{note}: {result.first_error}" if result.first_error else note)
    if p99_limit_ms is None:
        return LoadVerdict("pass", p99, claimed, "valid")
    over, n = int(np.sum(values > p99_limit_ms)), len(values)
    if claimed is None:
        return LoadVerdict("inconclusive", p99, None, f"{n} answers; p99 takes {samples_needed(0.99)} at least")
    if claimed <= p99_limit_ms:
        return LoadVerdict("pass", p99, claimed, f"{over} of {n} above {p99_limit_ms:g} ms")
    if over > n * 0.01:
        return LoadVerdict("fail", p99, claimed, f"{over} of {n} above {p99_limit_ms:g} ms")
    note = f"{over} of {n} above {p99_limit_ms:g} ms: it takes {samples_needed(0.99, over)} answers to tell"
    return LoadVerdict("inconclusive", p99, claimed, note)


def next_rate(tried: dict[float, bool], start: float, precision: float = 0.05, *, step: float = _STEP) -> float | None:
    """The rate to try next in search of the highest that holds: raised until one fails, then halved between.

    Args:
        tried: whether each rate so far held.
        start: the first one.
        precision: how near, as a fraction, the bounds are when the search ends with None.
        step: the factor of a raise, or of a step down while none holds.
    """
    good = max((rate for rate, held in tried.items() if held), default=None)
    bad = min((rate for rate, held in tried.items() if not held and (good is None or rate > good)), default=None)
    if good is None and bad is None:
        return start
    if good is None:
        assert bad is not None
        return bad / step if bad > start / 64 else None
    if bad is None:
        return good * step
    return None if bad <= good * (1 + precision) else float(np.sqrt(good * bad))
