"""One target in a process of its own, timed on request: `python -m deploykit.latency.worker`, JSON lines in and out."""

from __future__ import annotations

__all__ = ["Answer", "main", "timed_messages"]

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from deploykit.errors import DeploykitError
from deploykit.runners import Runner, Target, open_runner
from deploykit.runners.labels import labels_from_folder
from deploykit.tasks import find_task

Answer = Callable[[Sequence[str]], object]


def main(around: Callable[[Answer], Answer] | None = None) -> int:
    """Serve the parent until its end of the pipe closes.

    The first line names the target; each further one asks for a block: `messages` to time, after `warmup` others.
    The answer is the seconds of each message, from its text to its answer. With `due` they are answered in turn, none
    before it is due, with `batch` so many at once: the answer then is when each was due, begun and done.

    Args:
        around: what is put around every call, by a program that tries what a known delay does.
    """
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not reach the parent's parser
    try:
        target = Target(**json.loads(sys.stdin.readline()))
        with open_runner(target) as runner:
            answer = _answerer(runner, target)
            answer = around(answer) if around is not None else answer
            _reply(replies, {"name": runner.name})
            for line in sys.stdin:
                order = json.loads(line)
                for message in order["warmup"]:
                    answer([message])
                if "due" in order:
                    _reply(replies, {"sent": _when_due(answer, order["messages"], order["due"])})
                elif "batch" in order:
                    _reply(replies, {"sent": _all_at_once(answer, order["messages"], order["batch"])})
                else:
                    _reply(replies, {"seconds": timed_messages(answer, order["messages"])})
    except DeploykitError as error:
        _reply(replies, {"error": error.message, "hint": error.hint})
        return int(error.exit_code)
    return 0


def _answerer(runner: Runner, target: Target) -> Answer:
    """From messages to what a client would be told; a server does the last step itself."""
    task = find_task(target.task)
    if target.kind == "triton":
        return runner.infer
    folder = Path(target.location) if Path(target.location).is_dir() else Path(target.location).parent
    if (folder / "config.json").is_file():
        names = labels_from_folder(folder)
    else:
        width = runner.infer(["hello"])[task.output].shape[-1]
        names = tuple(map(str, range(width)))
    return lambda messages: task.answers(runner.infer(messages), names)


def timed_messages(answer: Answer, messages: Sequence[str]) -> list[float]:
    """The seconds of each message, from its text to its answer."""
    seconds = []
    for message in messages:
        start = time.perf_counter()
        answer([message])
        seconds.append(time.perf_counter() - start)
    return seconds


def _when_due(answer: Answer, messages: Sequence[str], due: Sequence[float]) -> list[tuple[float, float, float]]:
    start, found = time.perf_counter(), []
    for message, when in zip(messages, due, strict=True):
        sent = when  # what waits for the one before has been sent all the same: it stands in the queue
        if (wait := start + when - time.perf_counter()) > 0:
            time.sleep(wait)
            sent = max(when, time.perf_counter() - start)  # later where the system let this thread oversleep
        answer([message])
        found.append((when, sent, time.perf_counter() - start))
    return found


def _all_at_once(answer: Answer, messages: Sequence[str], batch: int) -> list[tuple[float, float, float]]:
    start, found = time.perf_counter(), []
    for first in range(0, len(messages), batch):
        part = messages[first : first + batch]
        answer(part)
        found += [(0.0, 0.0, time.perf_counter() - start)] * len(part)
    return found


def _reply(stream: IO[str], value: dict[str, Any]) -> None:
    stream.write(json.dumps(value) + "\n")
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
