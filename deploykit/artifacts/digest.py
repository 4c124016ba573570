"""Digests of files, folders and settings: what everything is recognised by."""

from __future__ import annotations

__all__ = ["digest_file", "digest_json", "digest_tree"]

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import JsonValue

from deploykit.artifacts.atomic import disk_errors
from deploykit.errors import ArtifactError

_BYTECODE = "__pycache__"
"""Python leaves it beside a module that it runs; it is not part of what was made, and is never copied."""


def digest_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal.

    Raises:
        ArtifactError: the file can't be read.
    """
    with disk_errors(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_tree(folder: Path) -> dict[str, str]:
    """The sha256 of every file in a folder, by its relative POSIX path, sorted.

    A link to a file inside the folder counts as the file. `__pycache__` is passed over.

    Raises:
        ArtifactError: the folder can't be read, or holds what has no digest: a link that dangles, leaves the folder or
            leads to a folder; a device or socket; a name that is not Unicode.
    """
    with disk_errors(folder):
        root = folder.resolve(strict=True)
        paths = {_relative(path, root): path for path in _files(root)}
        return {name: digest_file(paths[name]) for name in sorted(paths)}


def digest_json(value: JsonValue) -> str:
    """The sha256 of a JSON value in canonical form (sorted keys, no spaces), in hexadecimal.

    Raises:
        ValueError: the value holds NaN or an infinity, which JSON has not.
        TypeError: the value is not JSON.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _files(root: Path) -> Iterator[Path]:
    for base, folders, files in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if name != _BYTECODE]
        for name in folders:
            path = Path(base) / name
            if path.is_symlink():
                raise ArtifactError(f"{path} is a link to a folder", "put a copy of the folder in its place")
        for name in files:
            path = Path(base) / name
            _check_regular(path, root)
            yield path


def _raise(error: OSError) -> None:
    raise error


def _check_regular(path: Path, root: Path) -> None:
    if path.is_symlink():
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise ArtifactError(f"{path} is a link to nothing", "put the file in its place") from error
        if not target.is_relative_to(root):
            raise ArtifactError(f"{path} is a link that leaves {root}", "put a copy of the file in its place")
    if not path.is_file():
        raise ArtifactError(f"{path} is not a plain file", "remove it")


def _relative(path: Path, root: Path) -> str:
    name = path.relative_to(root).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ArtifactError(f"{name!r} in {root} is not a Unicode file name", "rename the file") from error
    return name
