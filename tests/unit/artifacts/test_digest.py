"""Digests of files, folders and settings."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from deploykit.artifacts.digest import digest_file, digest_json, digest_tree
from deploykit.errors import ArtifactError


def test_file_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert digest_file(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="gone"):
        digest_file(tmp_path / "gone")


def test_tree_has_posix_paths_sorted_and_passes_bytecode_over(tmp_path: Path) -> None:
    for name in ("b/z", "b/a", "a", "b/__pycache__/z.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(digest_tree(tmp_path)) == ["a", "b/a", "b/z"]


def test_link_inside_counts_as_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").symlink_to("a")
    digests = digest_tree(tmp_path)
    assert digests["a"] == digests["b"]


def test_row_10_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").symlink_to("../secret")
    with pytest.raises(ArtifactError, match="leaves"):
        digest_tree(tmp_path / "tree")


def test_row_10_dangling_and_looping_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("nowhere")
    with pytest.raises(ArtifactError, match="link to nothing"):
        digest_tree(tmp_path)
    (tmp_path / "a").unlink()
    (tmp_path / "a").symlink_to("a")
    with pytest.raises(ArtifactError, match="link to nothing"):
        digest_tree(tmp_path)


def test_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "up").symlink_to("..")
    with pytest.raises(ArtifactError, match="link to a folder"):
        digest_tree(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="not a plain file"):
        digest_tree(tmp_path)


def test_json_digest_does_not_depend_on_order_or_spelling() -> None:
    assert digest_json({"a": 1, "b": ["é", None]}) == digest_json({"b": ["é", None], "a": 1})
    assert digest_json({"a": 1}) != digest_json({"a": "1"})


def test_json_digest_refuses_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest_json({"loss": float("nan")})
