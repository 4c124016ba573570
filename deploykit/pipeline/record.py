"""How far the last run of a recipe came, as it noted it in the workspace."""

from __future__ import annotations

__all__ = ["LastRun", "last_run", "recorded"]

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deploykit.artifacts.atomic import disk_errors, write_atomic
from deploykit.pipeline.order import Stage


@dataclass(frozen=True)
class LastRun:
    """How a run ended: `status` is running, interrupted, failed or finished; `stage` the last one that it began."""

    status: str
    stage: str


def last_run(workspace: Path, name: str) -> LastRun | None:
    """How the last run of this name ended; None where there was none, or its note can't be read."""
    try:
        found = json.loads((workspace / "runs" / f"{name}.json").read_text(encoding="utf-8"))
        return LastRun(str(found["status"]), str(found["stage"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


@contextlib.contextmanager
def recorded(workspace: Path, name: str) -> Iterator[Callable[[Stage], None]]:
    """Keeps a note of how far a run is and how it ended; call what it gives at the beginning of each stage.

    Raises:
        ArtifactError: the workspace can't be written.
    """
    path = workspace / "runs" / f"{name}.json"
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    stage: Stage = "data"

    def write(status: str) -> None:
        write_atomic(path, json.dumps({"status": status, "stage": stage}).encode())

    def at(now: Stage) -> None:
        nonlocal stage
        stage = now
        write("running")

    try:
        yield at
    except KeyboardInterrupt:
        write("interrupted")
        raise
    except BaseException:
        write("failed")
        raise
    write("finished")
