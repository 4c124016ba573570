"""Latency of models and servers of the user's own: baselines, and the verdict on a regression."""

from __future__ import annotations

__all__ = ["compare_alone", "load_alone", "make_baseline", "timed_target"]

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from deploykit.artifacts.digest import digest_file, digest_json, digest_tree
from deploykit.data.readers import read_rows
from deploykit.errors import LatencyError, UsageError
from deploykit.events import Listener, Note, ignore
from deploykit.latency.baseline import Baseline, baseline_of, check_baseline, read_baseline
from deploykit.latency.comparison import Comparison, compare_live, compare_with_baseline
from deploykit.latency.load import judge_load
from deploykit.latency.measure import Samples, spread_over
from deploykit.latency.regression import Rule
from deploykit.latency.scenarios import Tried, find_rate, run_concurrency, run_offline, run_server
from deploykit.machine import fingerprint
from deploykit.runners import Target, target_from_text
from deploykit.runners.medium import columns_of


def timed_target(text: str, *, threads: int, tokenizer: Path | None, task: str) -> Target:
    """The target that an argument names; the tokenizer is for one that has none of its own.

    Raises:
        UsageError: it names no model.
    """
    target = target_from_text(text, task=task)
    folder = _folder(target)
    lacks = folder is None or not (folder / "tokenizer.json").is_file()
    return replace(target, threads=threads, tokenizer=str(tokenizer) if tokenizer is not None and lacks else None)


def make_baseline(
    name: str, samples: Samples, *, data: str, text: str, threads: int, task: str, version: str
) -> Baseline:
    """What a bench found, to be written down.

    Args:
        name: the target, as the command line has it.
        samples: its latencies.
        data: the data reference that the messages are of.
        text: its column.
        threads: that it ran with.
        task: what it does.
        version: what the user calls it.

    Raises:
        LatencyError: there are fewer than two blocks.
    """
    target = target_from_text(name, task=task)
    return baseline_of(
        target.location if target.kind == "triton" else Path(name).name,
        samples.blocks,
        version=version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=_settings(target, threads),
        model=_digest(target),
        data=_messages_digest(read_rows(data, columns_of(task, text, None)).texts),
        machine=fingerprint(),
        stolen=samples.stolen,
    )


def compare_alone(
    old: str,
    new: str,
    *,
    data: str,
    text: str,
    rule: Rule,
    budget_s: float,
    rebase: str | None,
    threads: int,
    tokenizer: Path | None,
    task: str,
    listener: Listener = ignore,
) -> Comparison:
    """The verdict on a new artefact against an old one, or against a baseline.

    Args:
        old: an artefact or a server's URL, which is timed in turn with the new one; or a baseline's file.
        new: what is on trial.
        data: real messages.
        text: their column.
        rule: what decides.
        budget_s: seconds.
        rebase: the artefact that a baseline is of, to be timed here again in its place.
        threads: in process.
        tokenizer: the tokenizer's folder of a bare .onnx file.
        task: what the models do.
        listener: hears of progress.

    Raises:
        UsageError: `rebase` without a baseline.
        LatencyError: the baseline is of another machine, other settings, messages or artefact; or nothing can be timed.
    """
    fresh = timed_target(new, threads=threads, tokenizer=tokenizer, task=task)
    baseline = read_baseline(Path(old)) if old.endswith(".json") else None
    messages = list(read_rows(data, columns_of(task, text, None)).texts)
    if baseline is None:
        if rebase is not None:
            raise UsageError(f"--rebase is for a baseline, and {old} is none", "leave --rebase out")
        was = timed_target(old, threads=threads, tokenizer=tokenizer, task=task)
        return compare_live(was, fresh, messages, rule, budget_s=budget_s, listener=listener)
    if rebase is not None:
        was = timed_target(rebase, threads=threads, tokenizer=tokenizer, task=task)
        if baseline.model != _digest(was):
            raise LatencyError(
                f"{rebase} is not what {old} was made from", "name that artefact, or make a new baseline"
            )
        return compare_live(was, fresh, messages, rule, budget_s=budget_s, listener=listener)
    check_baseline(baseline, settings=_settings(fresh, threads), data=_messages_digest(messages), machine=fingerprint())
    return compare_with_baseline(baseline, fresh, messages, rule, budget_s=budget_s, listener=listener)


def load_alone(
    target: str,
    *,
    data: str,
    text: str,
    scenario: Literal["server", "offline", "closed"],
    rate_per_s: float | None,
    seconds: float,
    p99_limit_ms: float | None,
    messages: int,
    threads: int,
    tokenizer: Path | None,
    task: str,
    concurrency: Sequence[int] = (),
    listener: Listener = ignore,
) -> tuple[float | None, tuple[Tried, ...]]:
    """A model or server under load; the highest rate that holds the limit, where it is searched, and every run.

    Args:
        target: a model or a server's URL.
        data: real messages.
        text: their column.
        scenario: open loop, all at once, or so many clients that wait for their answers.
        rate_per_s: of the open loop; None searches the highest that holds the limit.
        seconds: of a run of the open loop, or of each number of clients.
        p99_limit_ms: that p99 must stay below.
        messages: how many of them offline.
        threads: in process.
        tokenizer: the tokenizer's folder of a bare .onnx file or a tensor entry.
        task: what the model does.
        concurrency: the numbers of clients.
        listener: hears of progress.

    Raises:
        UsageError: neither a rate nor a limit to search one by, or clients of a model in process.
        LatencyError: the target could not be run.
    """
    found = timed_target(target, threads=threads, tokenizer=tokenizer, task=task)
    texts = list(read_rows(data, columns_of(task, text, None)).texts)
    if scenario == "closed":
        runs = []
        for clients in concurrency:
            result = run_concurrency(found, texts, clients=clients, seconds=seconds)
            runs.append(Tried(result.answered_per_s, result, judge_load(result, p99_limit_ms=p99_limit_ms)))
            listener(Note(f"{clients} clients: {result.answered_per_s:.0f} a second"))
        return None, tuple(runs)
    if scenario == "offline":
        result = run_offline(found, spread_over(texts, messages))
        return None, (Tried(result.answered_per_s, result, judge_load(result)),)
    if rate_per_s is not None:
        result = run_server(found, texts, rate_per_s=rate_per_s, seconds=seconds)
        return None, (Tried(rate_per_s, result, judge_load(result, p99_limit_ms=p99_limit_ms)),)
    if p99_limit_ms is None:
        raise UsageError("the server scenario needs --rate, or --p99 to search the highest rate that holds it")
    return find_rate(found, texts, p99_limit_ms=p99_limit_ms, seconds=seconds, listener=listener)


def _settings(target: Target, threads: int) -> dict[str, str | int | float]:
    found: dict[str, str | int | float] = {"scenario": "single stream", "runner": target.kind, "task": target.task}
    if target.kind == "triton":
        return found | {"server": target.location.rsplit("/", 1)[0]}
    return found | {"threads": threads, "precision": target.precision}


def _digest(target: Target) -> str:
    """Of the model's files; a server does not show them."""
    if target.kind == "triton":
        return ""
    path = Path(target.location)
    return digest_file(path) if path.is_file() else digest_json(dict(digest_tree(path)))


def _messages_digest(messages: Sequence[str]) -> str:
    return digest_json(list(messages))


def _folder(target: Target) -> Path | None:
    if target.kind == "triton":
        return None
    path = Path(target.location)
    return path if path.is_dir() else path.parent
