"""One target in a process of its own, timed on request: `python -m deploykit.latency.worker`, JSON lines in and out."""

from __future__ import annotations

__all__ = ["main"]

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


def main() -> int:
    """Serve the parent until its end of the pipe closes.

    The first line names the target; each further one asks for a block: `messages` to time, after `warmup` others.
    The answer is the seconds of each message, from its text to its answer.
    """
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not reach the parent's parser
    try:
        target = Target(**json.loads(sys.stdin.readline()))
        with open_runner(target) as runner:
            answer = _answerer(runner, target)
            _reply(replies, {"name": runner.name})
            for line in sys.stdin:
                order = json.loads(line)
                for message in order["warmup"]:
                    answer([message])
                _reply(replies, {"seconds": _time(answer, order["messages"])})
    except DeploykitError as error:
        _reply(replies, {"error": error.message, "hint": error.hint})
        return int(error.exit_code)
    return 0


def _answerer(runner: Runner, target: Target) -> Callable[[Sequence[str]], object]:
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


def _time(answer: Callable[[Sequence[str]], object], messages: Sequence[str]) -> list[float]:
    seconds = []
    for message in messages:
        start = time.perf_counter()
        answer([message])
        seconds.append(time.perf_counter() - start)
    return seconds


def _reply(stream: IO[str], value: dict[str, Any]) -> None:
    stream.write(json.dumps(value) + "\n")
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
