"""How far the last run of a recipe came, as it noted it in the workspace."""

from __future__ import annotations

__all__ = ["LastRun", "last_run"]

import json
from dataclasses import dataclass
from pathlib import Path


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
