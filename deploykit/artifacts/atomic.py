"""Writing that is there entirely or not at all, and that outlives a power cut."""

from __future__ import annotations

__all__ = [
    "check_same_filesystem",
    "disk_errors",
    "disk_refusal",
    "new_folder",
    "rename_into_place",
    "staging",
    "sweep",
    "sync_folder",
    "sync_tree",
    "write_atomic",
]

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from deploykit.artifacts.owner import Owner, this_process
from deploykit.errors import ArtifactError, UsageError
from deploykit.events import Listener, Note, Warn, ignore

_SCRATCH = re.compile(r"scratch-(?P<pid>\d+)-(?P<started_ms>\d+)-(?P<host>[0-9a-f]{8})-[0-9a-f]{8}", re.ASCII)
"""A scratch folder's name says whose it is: so there is no moment at which it has no owner."""

_FREE = "free some space and run it again"

_SYNC_MODE = "r+b" if os.name == "nt" else "rb"
"""Windows syncs only what is open for writing; elsewhere a file without write permission can be synced too."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals into one line that names the path (`path`, where the error names none).

    Raises:
        ArtifactError: in place of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise ArtifactError(*_explain(error, _named(error) or str(path))) from error


def disk_refusal(error: BaseException) -> ArtifactError | None:
    """What to say where a full, capped or read-only disk is behind an error of whatever library; None where it is not.

    PyTorch's and safetensors' writers say so in words only, and those of PyTorch not that the disk was the reason.
    """
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, OSError) and at.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            return ArtifactError(*_explain(at, _named(at) or "a file"))
        if any(words in str(at) for words in ("PytorchStreamWriter", "unexpected pos", "(os error 28)")):
            return ArtifactError("a file could not be written to its end: is the disk full?", _FREE)
        at = at.__cause__ or at.__context__
    return None


def _named(error: OSError) -> str | None:
    """The path in the error; of a rename's two, the one that people look for."""
    for name in (error.filename2, error.filename):
        if isinstance(name, str | bytes | os.PathLike):
            return os.fsdecode(name)
    return None


def _explain(error: OSError, path: str) -> tuple[str, str | None]:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"no space left for {path} (disk full, or the quota is used up)", _FREE
        case errno.EFBIG:
            return f"{path}: larger than a file may be here", "raise the limit: ulimit -f"
        case errno.EACCES | errno.EPERM:
            return f"not permitted: {path}", "change its owner or mode, or use another folder"
        case errno.EROFS:
            return f"read-only file system: {path}", "use a folder that can be written"
        case errno.EXDEV:
            return _across_filesystems(path)
        case _:
            return f"{path}: {error.strerror or error}", None


def _across_filesystems(path: str) -> tuple[str, str]:
    return (
        f"{path} lies on another file system than what is staged for it, so it can't be renamed into place",
        "where the folder is a mount point, use a folder inside of it",
    )


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file durably: a reader sees the old bytes or all of the new ones.

    Raises:
        ArtifactError: the disk is full, or the folder can't be written.
    """
    scratch = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    with disk_errors(path):
        try:
            with scratch.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a folder's entries (names, renames, removals) outlive a power cut.

    Raises:
        ArtifactError: the folder can't be opened or synced.
    """
    if os.name == "nt":  # Windows has no handle of a folder to sync
        return
    with disk_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Makes a folder outlive a power cut: its files, then its folders from the innermost out, then its parent.

    Raises:
        ArtifactError: something in it can't be opened or synced.
    """
    folders: list[Path] = []
    for base, _, files in os.walk(folder):
        folders.append(Path(base))
        for name in sorted(files):
            with disk_errors(Path(base) / name), (Path(base) / name).open(_SYNC_MODE) as stream:
                os.fsync(stream.fileno())
    for inner in reversed(folders):
        sync_folder(inner)
    sync_folder(folder.parent)


def check_same_filesystem(staged: Path, final: Path) -> None:
    """Refuses to stage at one place what can't be renamed into the other; asked before anything is copied.

    Args:
        staged: an existing file or folder.
        final: the existing folder that it is to be renamed into.

    Raises:
        ArtifactError: they lie on different file systems.
    """
    with disk_errors(final):
        if _device(staged) != _device(final):
            raise ArtifactError(*_across_filesystems(str(final)))


def _device(path: Path) -> int:
    return path.stat().st_dev


def rename_into_place(staged: Path, final: Path) -> None:
    """Moves what is synced to where it is looked for, in one step. A file replaces a file; a folder replaces nothing.

    Raises:
        ArtifactError: another file system, not permitted, or a folder is there already.
    """
    check_same_filesystem(staged, final.parent)
    if staged.is_dir() and os.path.lexists(final):
        raise ArtifactError(f"{final} exists already")
    with disk_errors(final):
        os.replace(staged, final)
    sync_folder(final.parent)


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """A scratch folder in `parent`; what is still in it at the end is removed, whether the work succeeded or failed.

    Raises:
        ArtifactError: the folder can't be made.
    """
    owner = this_process()
    scratch = parent / f"scratch-{owner.pid}-{round(owner.started * 1000)}-{owner.host}-{uuid4().hex[:8]}"
    with disk_errors(scratch):
        parent.mkdir(parents=True, exist_ok=True)
        scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # what resists is swept once this process is gone


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A scratch folder that becomes `out` when the block ends well; a folder that is there already is refused.

    Raises:
        UsageError: `out` is there and not empty.
        ArtifactError: it can't be written.
    """
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already", "remove it, or name another folder with -o")
    with disk_errors(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    with staging(out.parent) as scratch:
        folder = scratch / "new"
        folder.mkdir()
        yield folder
        sync_tree(folder)
        if out.is_dir():
            out.rmdir()
        rename_into_place(folder, out)


def sweep(parent: Path, listener: Listener = ignore) -> None:
    """Removes the scratch folders of processes that ended without doing so. The caller holds a lock.

    Those of another host are left, and named in a warning: from here nobody can tell whether their process runs.
    """
    for folder in sorted(parent.iterdir()) if parent.is_dir() else []:
        match = _SCRATCH.fullmatch(folder.name)
        if match is None:
            continue
        owner = Owner(int(match["pid"]), int(match["started_ms"]) / 1000, match["host"])
        state = owner.state()
        if state == "elsewhere":
            listener(Warn(f"{folder} belongs to process {owner.pid} of another machine; if that is gone, remove it"))
        elif state != "alive":
            shutil.rmtree(folder, ignore_errors=True)
            listener(Note(f"removed {folder}, left over by process {owner.pid}, which ended in the middle of its work"))
