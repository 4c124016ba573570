"""The sentiment of a stream of messages: asks the models, counts by window, judges, and remembers."""

from __future__ import annotations

__all__ = ["monitor_stream"]

import contextlib
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

from deploykit.artifacts.digest import digest_file, digest_json, digest_tree
from deploykit.artifacts.lock import exclusive
from deploykit.data.stream import Stream, read_stream
from deploykit.errors import DataError, UsageError
from deploykit.events import Listener, Warn, ignore
from deploykit.monitor.state import MonitorState, read_state, state_of, write_state
from deploykit.monitor.surge import SurgeRule, judge_stream
from deploykit.monitor.windows import Window, window_start, windows_of
from deploykit.pipeline.latency import timed_target
from deploykit.pipeline.measuring import Steps, padded_batches, run_target
from deploykit.pipeline.pairs import labels_of
from deploykit.report.monitor_report import Monitored
from deploykit.runners import Target
from deploykit.runners.triton_client import TritonClient
from deploykit.runners.triton_wire import parse_url
from deploykit.tasks import find_task

_TASK = "text-classification"
_ALL_TOPICS = "all"
"""The topic of every message where no model tells them apart."""
_EVERY_LABEL = 1000


def monitor_stream(
    model: str,
    *,
    data: str,
    text: str = "text",
    time: str = "time",
    zone: str = "UTC",
    topics: str | None = None,
    rule: SurgeRule = SurgeRule(),  # noqa: B008 (frozen)
    state: Path | None = None,
    tokenizer: Path | None = None,
    threads: int = 0,
    stdin: BinaryIO | None = None,
    listener: Listener = ignore,
) -> Monitored:
    """Count the sentiment of a stream by window and topic, and judge whether negatives surge.

    Without a state the stream is whole: its last window is judged too. With one it goes on: the last window stays open
    until a message of a later one has come. However a stream is cut into calls, the alerts are the same. A call that
    fails leaves the state as it was.

    Args:
        model: the sentiment model: a checkpoint folder, an ONNX folder or file, `grpc://host:port/model`, `http://...`.
        data: the stream, see `read_stream`; messages in any order.
        text, time, zone, stdin: likewise.
        topics: a model that tells the topics apart, as `model`; None where all messages are one topic.
        rule: what counts as a surge.
        state: the file to go on from and to remember in.
        tokenizer: the tokenizer's folder of a bare .onnx file.
        threads: in process; 0 for all cores.
        listener: hears of progress.

    Raises:
        DataError: a row can't be used, or comes too late: its window has been judged.
        UsageError: the model has no such sentiment, or the state is of other windows.
        ArtifactError: the state can't be read or written.
        ModelError, ServerError, RequestError: a model can't be asked.
    """
    targets = [timed_target(each, threads=threads, tokenizer=tokenizer, task=_TASK) for each in (model, topics) if each]
    labels = [_labels(target) for target in targets]
    if rule.negative not in labels[0]:
        known = ", ".join(map(repr, labels[0]))
        raise UsageError(
            f"{model} knows no sentiment {rule.negative!r} (it knows: {known})", "name it: --negative LABEL"
        )
    stream = read_stream(data, text=text, time=time, zone=zone, stdin=stdin)
    with contextlib.ExitStack() as stack:
        before = None
        if state is not None:
            stack.enter_context(exclusive(state.with_name(f"{state.name}.lock"), listener))
            before = read_state(state)
        counted = () if before is None else tuple(each.window() for each in before.windows)
        models = dict(zip(("sentiment", "topics"), map(_identity, targets), strict=False))
        if before is not None:
            _check_continues(before, counted, stream, rule, zone, models, listener)
        said = [
            _answers(target, own, stream.table.texts, listener) for target, own in zip(targets, labels, strict=True)
        ]
        about = said[1] if len(said) > 1 else [_ALL_TOPICS] * len(stream.times)
        windows = windows_of(zip(stream.times, about, said[0], strict=True), rule.window_s, before=counted)
        closed = windows if state is None else windows[:-1]
        new = len(closed) - (0 if before is None else before.closed)
        left = 0 if state is None else windows[-1].messages
        found = Monitored(judge_stream(closed, rule, new=new), closed, len(stream.times), left, rule)
        if state is not None:
            kept = state_of(windows, window_s=rule.window_s, zone=zone, models=models, closed=len(closed))
            write_state(state, kept)
    return found


def _labels(target: Target) -> tuple[str, ...]:
    """What a model can answer; a server says it when it is asked for all labels of a message."""
    known = labels_of(target)
    if known is not None:
        return known
    if target.kind != "triton":
        raise UsageError(
            f"{target.location} says nowhere what its labels are called", "name its folder, with config.json"
        )
    address, name = parse_url(target.location)
    with TritonClient(str(address)) as client:
        (answer,) = client.ask(name, ["hello"], top_k=_EVERY_LABEL, task=find_task(_TASK))
    said = answer.as_json("")
    return tuple(sorted((said["label"], *(other["label"] for other in said["alternatives"]))))


def _identity(target: Target) -> str:
    """What changes when the model does: a digest of its files, or the versions that a server has of it."""
    if target.kind == "triton":
        address, name = parse_url(target.location)
        with TritonClient(str(address)) as client:
            return digest_json([name, list(client.metadata(name).versions)])
    path = Path(target.location)
    return digest_file(path) if path.is_file() else digest_json(dict(digest_tree(path)))


def _check_continues(
    before: MonitorState,
    counted: Sequence[Window],
    stream: Stream,
    rule: SurgeRule,
    zone: str,
    models: dict[str, str],
    listener: Listener,
) -> None:
    """Refuse what does not go on from a state, and messages whose window has been judged."""
    if (before.window_s, before.zone) != (rule.window_s, zone):
        raise UsageError(
            f"the state has windows of {before.window_s} s in {before.zone}, not of {rule.window_s} s in {zone}",
            "take the same windows, or another state file and the stream from its start",
        )
    if set(before.models) != set(models):
        raise UsageError(
            f"the state was counted {'with' if 'topics' in before.models else 'without'} a model of the topics",
            "take the same models, or another state file and the stream from its start",
        )
    for name, identity in models.items():
        if before.models[name] != identity:
            listener(Warn(f"the {name} model is another one than before: its errors may look like a change"))
    if not counted:
        return
    late = [place for place, time in enumerate(stream.times) if window_start(time, rule.window_s) < counted[-1].start]
    if late:
        raise DataError(
            f"{stream.table.at(late[0])}: {stream.times[late[0]]} is before {counted[-1].start}, up to where all is"
            f" judged ({len(late):,} such messages)",
            "give only messages that are newer than the last call's, or a new state file and the whole stream",
        )
    gap = min(stream.times) - counted[-1].start
    if gap > timedelta(days=366):
        raise DataError(f"the stream goes on {gap.days:,} days after the state", "is that the right state file?")


def _answers(target: Target, labels: Sequence[str], texts: Sequence[str], listener: Listener) -> list[str]:
    """The label of each message; a server is asked one at a time, as its clients ask it."""
    one_by_one = target.kind == "triton"
    batches = [[place] for place in range(len(texts))] if one_by_one else padded_batches(texts)
    steps = Steps("ask", len(texts), listener)
    found = run_target(target, texts, find_task(_TASK), labels, batches, steps).answers
    names = [str(answer) for answer in found]
    unknown = sorted(set(names) - set(labels))
    if unknown:
        raise UsageError(
            f"{target.location} answers {unknown[0]!r}, which is none of its labels", "was it just replaced?"
        )
    return names
