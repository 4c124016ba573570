"""What a monitor remembers of a stream that goes on: the counts of its windows, in one file."""

from __future__ import annotations

__all__ = ["MonitorState", "StoredWindow", "read_state", "state_of", "write_state"]

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploykit.artifacts.atomic import disk_errors, write_atomic
from deploykit.errors import ArtifactError
from deploykit.monitor.windows import Window


class StoredWindow(BaseModel):
    """A window: its start, and messages by topic and sentiment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: datetime
    counts: dict[str, dict[str, Annotated[int, Field(ge=0, strict=True)]]]

    def window(self) -> Window:
        """The window that is judged."""
        return Window(
            self.start,
            {(topic, name): count for topic, by in self.counts.items() for name, count in by.items()},
        )


class MonitorState(BaseModel):
    """A monitor's memory.

    Attributes:
        version: of the format.
        window_s: seconds of a window.
        zone: whose clock the windows go by.
        models: which models counted last, by what they tell.
        windows: one after the other; the last may still get messages.
        closed: how many of them were judged by the last call.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    window_s: int
    zone: str
    models: dict[str, str]
    windows: tuple[StoredWindow, ...]
    closed: int


def state_of(
    windows: Sequence[Window], *, window_s: int, zone: str, models: dict[str, str], closed: int
) -> MonitorState:
    """What to remember of these windows."""
    stored = []
    for window in windows:
        counts: dict[str, dict[str, int]] = {}
        for (topic, sentiment), count in window.counts.items():
            counts.setdefault(topic, {})[sentiment] = count
        stored.append(StoredWindow(start=window.start, counts=counts))
    return MonitorState(window_s=window_s, zone=zone, models=models, windows=tuple(stored), closed=closed)


def read_state(path: Path) -> MonitorState | None:
    """The state in a file; None where there is no file.

    Raises:
        ArtifactError: the file is no such state.
    """
    with disk_errors(path):
        if not path.exists():
            return None
        content = path.read_bytes()
    try:
        return MonitorState.model_validate_json(content)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        place = ".".join(map(str, found["loc"]))
        reason = f"{place}: {found['msg']}" if place else found["msg"]
        raise ArtifactError(
            f"{path} is no monitor's state: {reason}",
            "name another file; the stream can be counted again from its start",
        ) from None


def write_state(path: Path, state: MonitorState) -> None:
    """Write the state: a reader sees the old one or the new one.

    Raises:
        ArtifactError: it can't be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(state.model_dump(mode="json"), ensure_ascii=False).encode())
