"""What identifies a data reference without reading it as data: the digest of its bytes."""

from __future__ import annotations

__all__ = ["data_identity"]

from pathlib import Path

from pydantic import JsonValue

from deploykit.artifacts.atomic import disk_errors
from deploykit.artifacts.digest import digest_file, digest_json, digest_tree
from deploykit.data.readers import local_file
from deploykit.errors import DataError


def data_identity(reference: str, base: Path) -> str:
    """A digest that changes when the referenced rows do.

    A file's is that of its bytes, the shipped samples' that of their generator. A hub data set's is that of its name:
    pin a revision by name to have another one read.

    Raises:
        DataError: the file is not there.
    """
    if reference.startswith("sample:"):
        source: dict[str, JsonValue] = {
            name: digest
            for name, digest in digest_tree(Path(__file__).parent / "sample").items()
            if "__pycache__" not in name
        }
        return digest_json([reference, source])
    path = local_file(reference)
    if path is None:
        return digest_json(reference)
    with disk_errors(path):  # a name may be too long to ask for
        path = base / path if (base / path).exists() else path
        is_there = path.is_file()
    if not is_there:
        raise DataError(f"{path}: no such file", "name the data files: -s data.train=FILE -s data.test=FILE")
    return digest_file(path)
