"""The lock: waiting says for whom, and a dead holder's lock is taken over."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict
from pathlib import Path

import pytest

from deploykit.artifacts.lock import exclusive
from deploykit.artifacts.owner import Owner, this_process
from deploykit.errors import ArtifactError
from deploykit.events import Event, Note, Warn

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def child_that_holds(path: Path) -> int:
    """The number of a process that has the lock and keeps it until it is killed."""
    held, say_held = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(60)
            with exclusive(path):
                os.write(say_held, b"x")
                signal.pause()
        finally:
            os._exit(1)
    os.close(say_held)
    assert os.read(held, 1) == b"x"
    os.close(held)
    return pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_lock_leaves_no_note_and_can_be_taken_again(tmp_path: Path) -> None:
    heard: list[Event] = []
    for _ in range(2):
        with exclusive(tmp_path / "locks" / "a.lock", heard.append):
            assert json.loads((tmp_path / "locks" / "a.lock.owner").read_bytes())["pid"] == os.getpid()
    assert not (tmp_path / "locks" / "a.lock.owner").exists()
    assert heard == []


def test_thread_that_holds_it_goes_straight_on(tmp_path: Path) -> None:
    with exclusive(tmp_path / "a.lock"):
        with exclusive(tmp_path / "a.lock"):
            pass
        assert (tmp_path / "a.lock.owner").exists()


@needs_fork
def test_row_11_waiting_says_for_whom_and_row_12_death_frees_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    pid = child_that_holds(path)
    heard: list[Event] = []

    def listener(event: Event) -> None:
        heard.append(event)
        if isinstance(event, Note):
            kill(pid)

    with exclusive(path, listener):
        pass
    waiting, taken = heard
    assert isinstance(waiting, Note)
    assert f"held by process {pid}" in waiting.message
    assert isinstance(taken, Warn)
    assert f"process {pid}, is dead" in taken.message


def test_row_12_reused_process_number_is_told_apart(tmp_path: Path) -> None:
    me = this_process()
    note = tmp_path / "a.lock.owner"
    note.write_text(json.dumps(asdict(Owner(me.pid, me.started - 3600, me.host))))
    heard: list[Event] = []
    with exclusive(tmp_path / "a.lock", heard.append):
        pass
    (event,) = heard
    assert isinstance(event, Warn)
    assert "belongs to another process now" in event.message
    assert not note.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_row_12_damaged_note_does_not_hinder(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.lock.owner").write_text(text)
    heard: list[Event] = []
    with exclusive(tmp_path / "a.lock", heard.append):
        pass
    assert [type(event) for event in heard] == [Warn]


def test_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), exclusive(tmp_path / "a.lock"):
        raise RuntimeError("stop")
    with exclusive(tmp_path / "a.lock", lambda event: pytest.fail(f"heard {event}")):
        pass


def test_row_5_lock_that_cannot_be_made_names_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="file"), exclusive(tmp_path / "file" / "a.lock"):
        pass
