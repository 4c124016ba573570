"""Targets in processes of their own, which time blocks of messages on request."""

from __future__ import annotations

__all__ = ["Worker", "open_worker"]

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from deploykit.errors import LatencyError
from deploykit.runners import Target

_COMMAND = (sys.executable, "-W", "ignore", "-m", "deploykit.latency.worker")


class Worker:
    """A process that answers orders, a JSON line each."""

    def __init__(self, name: str, process: subprocess.Popen[str], errors: IO[bytes]) -> None:
        self._name, self._process, self._errors = name, process, errors

    def ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to one order.

        Raises:
            LatencyError: the process reports an error, or has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has ended; what it said before comes first
            pass
        reply = self._reply()
        if reply is None:
            raise LatencyError(
                f"the process that times {self._name} ended (exit status {self._process.wait()}): {self._last_words()}",
                "check that the model loads: `deploykit parity` and `deploykit ask` say more",
            )
        if "error" in reply:
            raise LatencyError(f"{self._name}: {reply['error']}", reply.get("hint"))
        return reply

    def _reply(self) -> dict[str, Any] | None:
        """The next line that is a reply; None at the end. What an interpreter prints as it starts is passed over."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):
                reply = json.loads(line)
                if isinstance(reply, dict):
                    return reply
        return None

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


@contextlib.contextmanager
def open_worker(name: str, target: Target, command: Sequence[str] | None = None) -> Iterator[Worker]:
    """A process that has loaded the target and waits for orders; it is ended on leaving.

    Args:
        name: what errors call it.
        target: what it loads.
        command: of another program that speaks as `deploykit.latency.worker` does.

    Raises:
        LatencyError: the target can't be loaded.
    """
    # What libraries warn of was heard when the model was first loaded: kept for the case that the process dies.
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command or _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
        ) as process,
    ):
        worker = Worker(name, process, errors)
        try:
            worker.ask(dataclasses.asdict(target))
            yield worker
        finally:
            process.kill()
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):  # what it did not live to read
                    process.stdin.close()
