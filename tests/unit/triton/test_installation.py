"""Where the embedded server can run, and its files: fetched once, whole or not at all."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploykit.errors import ServerError
from deploykit.events import Event, Note
from deploykit.triton import installation
from deploykit.triton.installation import default_cache, ensure_installed, installation_in, unsupported_reason


@pytest.fixture
def supported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that can run it, whatever this one is."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(installation.sys, "version_info", (3, 11, 7))
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(installation, "libpython_folder", lambda: Path("/"))


@pytest.mark.usefixtures("supported")
def test_a_fitting_machine_has_nothing_against_it() -> None:
    assert unsupported_reason() is None


@pytest.mark.usefixtures("supported")
@pytest.mark.parametrize(
    ("system", "machine"), [("Darwin", "arm64"), ("Darwin", "x86_64"), ("Windows", "AMD64"), ("Linux", "aarch64")]
)
def test_another_platform_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str, machine: str) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(ServerError, match=f"Linux x86_64 only, and this is {system} {machine}") as caught:
        ensure_installed(tmp_path)
    assert caught.value.hint is not None
    assert "--engine docker" in caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("supported")
@pytest.mark.parametrize(("libc", "version"), [("glibc", "2.34"), ("glibc", "2.4"), ("", ""), ("musl", "1.2.4")])
def test_an_older_or_another_libc_is_named(monkeypatch: pytest.MonkeyPatch, libc: str, version: str) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, version))
    reason = unsupported_reason()
    assert reason is not None
    assert f"{libc} {version}".strip() in reason
    assert "glibc 2.35" in reason


@pytest.mark.usefixtures("supported")
def test_a_python_without_a_stub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation.sys, "version_info", (3, 13, 0))
    assert "Python 3.11 or 3.12" in str(unsupported_reason())


@pytest.mark.usefixtures("supported")
def test_a_missing_shell_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "bash" in str(unsupported_reason())


@pytest.mark.usefixtures("supported")
def test_a_python_without_a_shared_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "libpython_folder", lambda: None)
    assert "libpython" in str(unsupported_reason())


def test_the_default_cache_is_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert default_cache() == tmp_path / ".cache" / "deploykit"


class FakePip:
    """Stands in for `subprocess.run`: writes the wheels' files as pip would, or fails."""

    def __init__(self, failure: str | None = None, before: Callable[[], None] = lambda: None) -> None:
        self.failure = failure
        self.before = before
        self.commands: list[list[str]] = []
        self.requirements = ""

    def __call__(self, command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        self.requirements = Path(command[command.index("--requirement") + 1]).read_text()
        self.before()
        target = Path(command[command.index("--target") + 1])
        whole = installation.Installation(target)
        for file in (
            whole.binary,
            whole.stub,
            whole.libraries / "libtriton.so",
            whole.libraries / "libpython3-0.13.so.1.0",
            whole.python_backend / "libtriton_python.so",
            target / "pytriton" / "client.py",
            target / "numpy" / "__init__.py",
            target / "numpy.libs" / "libblas.so",
            target / "nvidia_pytriton-0.7.0.dist-info" / "LICENSE",
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("content")
        stderr = f"WARNING: something\nERROR: {self.failure}\n" if self.failure else ""
        return subprocess.CompletedProcess(command, 1 if self.failure else 0, "", stderr)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, supported: None) -> FakePip:
    fake = FakePip()
    monkeypatch.setattr(subprocess, "run", fake)
    return fake


def test_it_is_fetched_once_and_stripped(pip: FakePip, tmp_path: Path) -> None:
    heard: list[Event] = []
    found = ensure_installed(tmp_path / "cache", heard.append)
    assert found.complete
    assert found == installation_in(tmp_path / "cache")
    assert ensure_installed(tmp_path / "cache", heard.append) == found
    assert len(pip.commands) == 1
    assert [type(event) for event in heard] == [Note]
    assert (found.packages / "numpy.libs" / "libblas.so").is_file()
    assert (found.root / "nvidia_pytriton-0.7.0.dist-info" / "LICENSE").is_file()
    assert not list(found.root.rglob("client.py"))
    assert not list(found.root.rglob("libpython*"))


def test_only_the_pinned_wheels_are_taken(pip: FakePip, tmp_path: Path) -> None:
    ensure_installed(tmp_path)
    command = pip.commands[0]
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert {"--require-hashes", "--only-binary=:all:", "--no-deps"} <= set(command)
    assert "nvidia-pytriton==0.7.0 --hash=sha256:" in pip.requirements
    assert "numpy==1.26.4 --hash=sha256:" in pip.requirements


def test_pips_own_words_are_passed_on_and_nothing_stays(pip: FakePip, tmp_path: Path) -> None:
    pip.failure = "No matching distribution found"
    with pytest.raises(ServerError, match="ERROR: No matching distribution found"):
        ensure_installed(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    pip.failure = None
    assert ensure_installed(tmp_path).complete


def test_what_a_killed_process_left_is_swept_and_never_taken(pip: FakePip, tmp_path: Path) -> None:
    partial = installation_in(tmp_path)
    partial.binary.parent.mkdir(parents=True)
    partial.binary.write_text("half")
    (tmp_path / ".triton-stale").mkdir()
    assert ensure_installed(tmp_path).complete
    assert partial.binary.read_text() == "content"
    assert not (tmp_path / ".triton-stale").exists()


def test_of_two_at_once_one_fetches(pip: FakePip, tmp_path: Path) -> None:
    inside = threading.Event()
    release = threading.Event()

    def wait() -> None:
        inside.set()
        release.wait(20)

    pip.before = wait
    found: list[installation.Installation] = []
    threads = [threading.Thread(target=lambda: found.append(ensure_installed(tmp_path))) for _ in range(2)]
    threads[0].start()
    assert inside.wait(20)
    threads[1].start()
    release.set()
    for thread in threads:
        thread.join(20)
    assert len(found) == 2
    assert len(pip.commands) == 1


def test_a_folder_that_cant_be_written_is_named(pip: FakePip, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ServerError, match=str(tmp_path / "file")):
        ensure_installed(tmp_path / "file")
    assert not pip.commands
