"""One process at a time: a lock that says who holds it and that the death of its holder frees."""

from __future__ import annotations

__all__ = ["exclusive"]

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.artifacts.atomic import disk_errors, write_atomic
from deploykit.artifacts.owner import Owner, this_process
from deploykit.events import Listener, Note, Warn, ignore

if TYPE_CHECKING:
    from filelock import BaseFileLock


@contextmanager
def exclusive(path: Path, listener: Listener = ignore) -> Iterator[None]:
    """Holds the lock at `path`, waiting for it as long as it takes. A thread that holds it already goes straight on.

    The lock is the kernel's (flock): it is free as soon as its holder is dead. The note beside it (`PATH.owner`) only
    tells people who holds it; a note that is still there when the lock is free is that of a holder that died.

    Args:
        path: the lock file, made where it is missing and left in place.
        listener: hears a Note when there is somebody to wait for, a Warn when a dead holder's lock is taken over.

    Raises:
        ArtifactError: the lock file can't be made or opened.
    """
    from filelock import FileLock

    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, is_singleton=True)
    if lock.is_locked:
        yield
        return
    note = path.with_name(path.name + ".owner")
    _acquire(lock, path, note, listener)
    try:
        if note.exists():
            listener(Warn(f"{path}: {_left_by(_read(note))}; the lock is taken over"))
        write_atomic(note, json.dumps(asdict(this_process())).encode())
        yield
    finally:
        try:
            with disk_errors(note):
                note.unlink(missing_ok=True)
        finally:
            lock.release()


def _acquire(lock: BaseFileLock, path: Path, note: Path, listener: Listener) -> None:
    from filelock import Timeout

    with disk_errors(path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            listener(Note(f"waiting for {path}, held by {_holder(_read(note))}"))
            lock.acquire()


def _read(note: Path) -> Owner | None:
    """Whose note it is; None where it has just gone, or is not one of ours."""
    try:
        return Owner(**json.loads(note.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _holder(owner: Owner | None) -> str:
    if owner is None:
        return "another process"
    return f"process {owner.pid}, which began at {datetime.fromtimestamp(owner.started, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _left_by(owner: Owner | None) -> str:
    if owner is None:
        return "its last holder ended without giving it back"
    match owner.state():
        case "dead":
            return f"its last holder, process {owner.pid}, is dead"
        case "reused":
            return f"its last holder, process {owner.pid}, is dead and its number belongs to another process now"
        case "alive":
            return f"its last holder, process {owner.pid}, runs but holds it no longer"
        case "elsewhere":
            return f"its last holder, process {owner.pid} of another machine, holds it no longer"
