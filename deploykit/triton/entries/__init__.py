"""The Python models that a package carries, and the tokenizer library that lies beside them."""

from __future__ import annotations

__all__ = ["vendor_tokenizers"]

import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackagePath, distribution
from pathlib import Path

from deploykit.errors import RepositoryError

_SERVER_PLATFORM = "manylinux2014_x86_64"


def vendor_tokenizers(destination: Path) -> None:
    """Writes the `tokenizers` package, for Linux on x86-64 and every Python from 3.10, into a folder of a model.

    On such a machine the installed files are copied; elsewhere pip fetches the same version for that platform.

    Raises:
        RepositoryError: the package is not installed as files, or pip can't fetch it.
    """
    installed = distribution("tokenizers")
    if (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        for file in _shipped(installed.files or []):
            target = destination / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.locate(), target)
    else:
        _fetch(f"tokenizers=={installed.version}", destination)
    if not any((destination / "tokenizers").glob("*.abi3.so")):
        raise RepositoryError(
            f"tokenizers {installed.version} has no library that serves every Python version",
            hint="reinstall it from its wheel: pip install --force-reinstall tokenizers",
        )


def _shipped(files: Sequence[PackagePath]) -> list[PackagePath]:
    """The package itself and its licence: no bytecode, no type hints, no scripts."""
    wanted = [file for file in files if file.parts[0] == "tokenizers" and file.suffix in (".py", ".so")]
    return wanted + [file for file in files if file.parts[0].endswith(".dist-info") and "LICENSE" in file.name]


def _fetch(requirement: str, destination: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:"]
    command += ["--platform", _SERVER_PLATFORM, "--target", str(destination), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or "pip gave no reason").splitlines()[-1]
        raise RepositoryError(f"pip could not fetch {requirement} for {_SERVER_PLATFORM}: {last}")
