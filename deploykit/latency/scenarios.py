"""MLPerf's Server and Offline scenarios, so many clients at once, and the search for a rate."""

from __future__ import annotations

__all__ = ["Tried", "find_rate", "run_concurrency", "run_offline", "run_server"]

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deploykit.errors import LatencyError, UsageError
from deploykit.events import Listener, Note, ignore
from deploykit.latency.generator import Sent
from deploykit.latency.load import LoadResult, LoadVerdict, judge_load, next_rate, poisson_arrivals
from deploykit.latency.processes import Worker, open_worker
from deploykit.latency.server_facts import breakdown_between, queue_delay_ms, read_statistics, server_flags, split_of
from deploykit.runners import Message, Target
from deploykit.runners.triton_wire import parse_url

_TIMEOUT_S = 30.0
_WARMUP = 50


@dataclass(frozen=True)
class Tried:
    """A rate that was tried, what happened, and whether it held."""

    rate_per_s: float
    result: LoadResult
    verdict: LoadVerdict


def run_server(
    target: Target, messages: Sequence[Message], *, rate_per_s: float, seconds: float, seed: int = 0
) -> LoadResult:
    """Requests at random moments at this rate, whatever becomes of them; latency counts from when each is due.

    In process one thread answers them in turn, as a queue before the model would. Through Triton a client in a process
    of its own sends them, as many at once as it comes to.

    Raises:
        LatencyError: the target could not be run, or there are no messages, or nothing is due.
    """
    if not messages:
        raise LatencyError("there is nothing to time", "give a data file with at least one row")
    due = poisson_arrivals(rate_per_s, seconds, seed)
    # Shuffled: files are often sorted by label, and a run may not come to their end.
    order = np.random.default_rng(seed).permutation(len(messages))
    texts = [str(messages[order[number % len(order)]]) for number in range(len(due))]
    if target.kind == "triton":
        return _through_triton(target, {"texts": texts, "due": due.tolist()}, "server", rate_per_s)
    with open_worker("the target", target) as worker:
        _warm(worker, texts)
        reply = worker.ask({"due": due.tolist(), "messages": texts, "warmup": []})
    return _result([Sent(*each) for each in reply["sent"]], "server", rate_per_s)


def run_offline(target: Target, messages: Sequence[Message], *, batch: int = 32, clients: int = 32) -> LoadResult:
    """All messages at once, as fast as they are answered.

    Args:
        target: a model or a server.
        messages: all of them.
        batch: messages of a batch, in process; sorted by length, as nobody waits for the first.
        clients: requests that are under way at once, through Triton, which batches them itself.

    Raises:
        LatencyError: the target could not be run, or there are no messages.
    """
    texts = [str(message) for message in messages]
    if not texts:
        raise LatencyError("there is nothing to time", "give a data file with at least one row")
    if target.kind == "triton":
        return _through_triton(target, {"texts": texts, "clients": clients}, "offline", 0.0)
    texts.sort(key=len)
    with open_worker("the target", target) as worker:
        _warm(worker, texts)
        reply = worker.ask({"batch": batch, "messages": texts, "warmup": []})
    return _result([Sent(*each) for each in reply["sent"]], "offline", 0.0)


def run_concurrency(target: Target, messages: Sequence[Message], *, clients: int, seconds: float) -> LoadResult:
    """So many clients at once, each of which asks again when it is answered, for so long.

    Raises:
        UsageError: the target is no server: in process there is nobody to ask at once.
        LatencyError: the target could not be run, or there are no messages.
    """
    if target.kind != "triton":
        raise UsageError(
            f"{target.location} is no server, and concurrency is that of a server's clients",
            "serve it: deploykit package, deploykit serve; then bench grpc://HOST:PORT/MODEL",
        )
    if not messages:
        raise LatencyError("there is nothing to time", "give a data file with at least one row")
    order = {"texts": [str(message) for message in messages], "clients": clients, "seconds": seconds}
    return replace(_through_triton(target, order, "closed", 0.0), clients=clients)


def find_rate(
    target: Target,
    messages: Sequence[Message],
    *,
    p99_limit_ms: float,
    seconds: float,
    start_per_s: float = 20.0,
    listener: Listener = ignore,
) -> tuple[float | None, tuple[Tried, ...]]:
    """The highest rate, to 5 %, at which p99 stays below the limit, and every rate that was tried.

    A rate holds only where its run passes: too few answers for p99 count as not holding, and so does a rate that the
    client can't keep. Runs last longer than `seconds` where the rate asks for it.

    Raises:
        LatencyError: as `run_server`.
    """
    tried: dict[float, Tried] = {}
    while True:
        rate = next_rate({key: each.verdict.outcome == "pass" for key, each in tried.items()}, start_per_s)
        if rate is None:
            break
        long_enough_s = max(seconds, 700 / rate)
        result = run_server(target, messages, rate_per_s=rate, seconds=long_enough_s, seed=len(tried))
        tried[rate] = Tried(rate, result, judge_load(result, p99_limit_ms=p99_limit_ms))
        listener(Note(f"{rate:.0f} a second: {tried[rate].verdict.outcome}, {tried[rate].verdict.note}"))
    held = [rate for rate, each in tried.items() if each.verdict.outcome == "pass"]
    return max(held, default=None), tuple(tried[rate] for rate in sorted(tried))


def _warm(worker: Worker, texts: Sequence[str]) -> None:
    worker.ask({"messages": list(texts[:_WARMUP]), "warmup": []})


def _through_triton(target: Target, order: dict[str, Any], scenario: Any, rate_per_s: float) -> LoadResult:
    before = read_statistics(target)
    common = {"url": target.location, "timeout_s": _TIMEOUT_S, "tokenizer": target.tokenizer}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "deploykit.latency.load_worker"],
        input=json.dumps(order | common) + "\n",
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    lines = done.stdout.splitlines()
    if not lines:
        words = done.stderr.strip().splitlines()
        raise LatencyError(f"the load client ended ({done.returncode}): {words[-1] if words else 'it said nothing'}")
    reply = json.loads(lines[-1])
    if "error" in reply:
        raise LatencyError(reply["error"], reply.get("hint"))
    breakdown = breakdown_between(before, read_statistics(target))
    flags = server_flags(target, sorted({name.rsplit(".", 1)[0] for name in breakdown}))
    result = _result([Sent(*each) for each in reply["sent"]], scenario, rate_per_s, breakdown, flags)
    if not len(result.service_ms):
        return result
    split_ms = split_of(
        breakdown,
        parse_url(target.location)[1],
        lag_ms=float(np.mean(result.latencies_ms - result.service_ms)),
        service_ms=float(np.mean(result.service_ms)),
        client_cpu_ms=reply["client_cpu_s"] * 1e3 / result.due,
        delay_ms=queue_delay_ms(target),
    )
    return replace(result, split_ms=split_ms)


def _result(
    sent: Sequence[Sent],
    scenario: Any,
    rate_per_s: float,
    breakdown_ms: dict[str, float] | None = None,
    flags: tuple[str, ...] = (),
) -> LoadResult:
    answered = [each for each in sent if each.problem is None]
    refused = [each for each in sent if each.problem is not None]
    rejected = sum(each.rejected for each in refused)
    return LoadResult(
        scenario,
        rate_per_s,
        seconds=max((each.done for each in sent), default=0.0),
        latencies_ms=np.array([each.done - each.due for each in answered]) * 1e3,
        service_ms=np.array([each.done - each.sent for each in answered]) * 1e3,
        lags_ms=np.array([each.sent - each.due for each in sent]) * 1e3,
        rejected=rejected,
        errors=len(refused) - rejected,
        first_error=next((each.problem for each in refused if each.problem and not each.rejected), ""),
        breakdown_ms=breakdown_ms or {},
        flags=flags,
    )
