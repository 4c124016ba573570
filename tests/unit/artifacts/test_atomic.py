"""Durable, all-or-nothing writing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import psutil
import pytest

from deploykit.artifacts import atomic
from deploykit.artifacts.owner import Owner, this_process
from deploykit.errors import ArtifactError
from deploykit.events import Event, Note, Warn


def record_syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inodes of what is synced, in order; they survive renames."""
    inodes: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        inodes.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return inodes


def inode(path: Path) -> int:
    return path.stat().st_ino


def scratch_name(owner: Owner) -> str:
    return f"scratch-{owner.pid}-{round(owner.started * 1000)}-{owner.host}-00000000"


def test_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    atomic.write_atomic(tmp_path / "a", b"old")
    atomic.write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


def test_row_2_write_syncs_the_file_and_then_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = record_syncs(monkeypatch)
    atomic.write_atomic(tmp_path / "a", b"x")
    assert synced == [inode(tmp_path / "a"), inode(tmp_path)]


@pytest.mark.skipif(os.name == "nt", reason="folders are not synced on Windows")
def test_row_2_tree_is_synced_files_first_then_folders_then_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    for name in ("a", "inner/b"):
        (tree / name).write_text("x")
    synced = record_syncs(monkeypatch)
    atomic.sync_tree(tree)
    paths = [tree / "a", tree / "inner" / "b", tree / "inner", tree, tmp_path]
    assert synced == [inode(path) for path in paths]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EACCES, "not permitted"),
        (errno.EPERM, "not permitted"),
        (errno.EROFS, "read-only file system"),
        (errno.EFBIG, "larger than a file may be"),
        (errno.EXDEV, "another file system"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_rows_3_4_5_refusals_are_one_line_with_the_path(tmp_path: Path, code: int, words: str) -> None:
    with pytest.raises(ArtifactError, match=words) as caught, atomic.disk_errors(tmp_path / "file"):
        raise OSError(code, os.strerror(code))
    assert str(tmp_path / "file") in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "full", "/a/model.onnx"), "no space left for /a/model.onnx"),
        (OSError(errno.EFBIG, "too large", "x"), "x: larger than a file may be here"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 67968 vs 67856"), "disk full?"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "disk full?"),
        (ValueError("I/O error: No space left on device (os error 28)"), "disk full?"),
        (OSError(errno.ENOENT, "absent", "x"), None),
        (RuntimeError("PytorchStreamReader failed reading zip archive"), None),
    ],
)
def test_row_3_a_full_disk_is_known_from_whatever_library_says(error: Exception, words: str | None) -> None:
    found = atomic.disk_refusal(error)
    assert (found is None) == (words is None)
    assert found is None or words in found.message
    wrapped = KeyError("in between")
    wrapped.__cause__ = error
    assert (atomic.disk_refusal(wrapped) is None) == (words is None)


def test_refused_rename_names_where_it_was_to_go(tmp_path: Path) -> None:
    (tmp_path / "staged").write_text("x")
    with pytest.raises(ArtifactError) as caught, atomic.disk_errors(tmp_path):
        os.replace(tmp_path / "staged", tmp_path / "missing" / "final")
    assert caught.value.message.startswith(str(tmp_path / "missing" / "final"))


def test_row_3_full_disk_leaves_the_old_file_and_no_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic.write_atomic(tmp_path / "a", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="no space left"):
        atomic.write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_row_4_rename_across_filesystems_is_refused_before_it_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "staged").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.setattr(atomic, "_device", lambda path: hash(path.name))
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("a rename was tried"))
    with pytest.raises(ArtifactError, match="another file system"):
        atomic.rename_into_place(tmp_path / "staged", tmp_path / "there" / "final")


def test_folder_never_replaces_anything_but_a_file_does(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="exists already"):
        atomic.rename_into_place(tmp_path / "folder", tmp_path / "empty")
    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    atomic.rename_into_place(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "new"


def test_row_6_staging_is_removed_after_a_failure(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with atomic.staging(tmp_path / "staging") as scratch:
            (scratch / "half").write_text("x")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_half_way()
    assert os.listdir(tmp_path / "staging") == []


def test_row_6_sweep_keeps_the_living_and_removes_the_dead_and_the_reused(tmp_path: Path) -> None:
    me = this_process()
    dead = Owner(2**22 + 1, me.started, me.host)  # beyond Linux's largest process number
    reused = Owner(me.pid, me.started - 3600, me.host)
    foreign = Owner(me.pid, me.started, "0" * 8)
    for owner in (me, dead, reused, foreign):
        (tmp_path / scratch_name(owner) / "inner").mkdir(parents=True)
    (tmp_path / "not-ours").mkdir()
    heard: list[Event] = []
    atomic.sweep(tmp_path, heard.append)
    assert sorted(os.listdir(tmp_path)) == sorted(["not-ours", scratch_name(me), scratch_name(foreign)])
    assert sum(isinstance(event, Note) and "left over by process" in event.message for event in heard) == 2
    assert any(isinstance(event, Warn) and "another machine" in event.message for event in heard)


def test_sweep_of_nothing_is_quiet(tmp_path: Path) -> None:
    atomic.sweep(tmp_path / "absent", lambda event: pytest.fail(f"heard {event}"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_owner_that_ended_and_was_not_waited_for_is_dead() -> None:
    go_on, say_go_on = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(go_on, 1)
        os._exit(0)
    owner = Owner(pid, psutil.Process(pid).create_time(), this_process().host)
    assert owner.state() == "alive"
    os.write(say_go_on, b"x")
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert owner.state() == "dead"
    os.waitpid(pid, 0)


def test_owner_states() -> None:
    me = this_process()
    assert me.state() == "alive"
    assert Owner(me.pid, me.started - 60, me.host).state() == "reused"
    assert Owner(2**22 + 1, me.started, me.host).state() == "dead"
    assert Owner(me.pid, me.started, "f" * 8).state() == "elsewhere"
