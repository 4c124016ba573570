"""What this machine is: cores, memory, instruction set, GPUs, and the versions that decide its numbers."""

from __future__ import annotations

__all__ = [
    "cpu_model",
    "fingerprint",
    "gpu_names",
    "has_nvidia_gpu",
    "in_words",
    "instruction_set",
    "machine_state",
    "memory_limit_bytes",
    "physical_cores",
    "usable_cores",
]

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

_CPUINFO = Path("/proc/cpuinfo")
_CGROUP_ROOT = Path("/sys/fs/cgroup")
_CGROUP_MEMBERSHIP = Path("/proc/self/cgroup")
_CPU_TOPOLOGY = Path("/sys/devices/system/cpu")
_DEVICES = Path("/dev")

# Strongest first, the order in which onnxruntime's MLAS prefers its int8 kernels.
_X86_LEVELS = (
    ("amx_int8", "amx_int8"),
    ("avx512_vnni", "avx512_vnni"),
    ("avx_vnni", "avx_vnni"),
    ("avx512bw", "avx512"),
    ("avx2", "avx2"),
    ("avx", "avx"),
)
_ARM_LEVELS = (("i8mm", "i8mm"), ("asimddp", "dotprod"))
_PACKAGES = ("torch", "transformers", "tokenizers", "onnx", "onnxruntime", "onnxruntime-gpu")


@cache
def instruction_set() -> str:
    """The architecture and its strongest int8 extension, e.g. `x86-64 avx512_vnni` or `arm64 i8mm`.

    A verdict on an int8 model carries this: the kernels round differently between VNNI, AVX2 and ARM. Where the
    extensions can't be read (Windows) the processor's family and stepping stand in for them.
    """
    machine = platform.machine().lower()
    if machine in {"x86_64", "amd64"}:
        return "x86-64 " + _strongest(_cpu_flags(), _X86_LEVELS, fallback="sse2")
    if machine in {"aarch64", "arm64"}:
        return "arm64 " + _strongest(_cpu_flags(), _ARM_LEVELS, fallback="neon")
    return machine or "unknown"


_UNTOLD = (AttributeError, OSError, RuntimeError)
"""What psutil raises of what this system does not tell, or does not know."""


def machine_state() -> dict[str, float]:
    """What the machine tells of its state just now, taken before a measurement.

    `busy`, the mean number of processes that wanted a core in the last minute; `mhz` of the cores in the mean; and
    `celsius` of the hottest of them. What it does not tell is left out: virtual machines keep most of it to themselves.
    """
    found: dict[str, float] = {"busy": psutil.getloadavg()[0]}
    with contextlib.suppress(*_UNTOLD):
        clock = psutil.cpu_freq()
        if clock is not None and clock.current:
            found["mhz"] = float(clock.current)
    with contextlib.suppress(*_UNTOLD):
        hottest = [each.current for sensors in psutil.sensors_temperatures().values() for each in sensors]
        if hottest:
            found["celsius"] = float(max(hottest))
    return found


def in_words(state: Mapping[str, float]) -> str:
    """A machine's state for people."""
    said = [f"{state['busy']:.1f} processes wanted a core before"]
    said += [f"{state['mhz'] / 1e3:.1f} GHz"] if "mhz" in state else []
    said += [f"{state['celsius']:.0f} °C"] if "celsius" in state else []
    return ", ".join(said)


def physical_cores() -> int:
    """The machine's cores, hyper-threads not counted; at least 1."""
    return psutil.cpu_count(logical=False) or psutil.cpu_count(logical=True) or 1


def usable_cores() -> int:
    """The cores that this process may keep busy: those in its CPU affinity, within its cgroup's quota; at least 1.

    Hyper-threads of one core count once. A fractional quota is rounded down, because a thread too many is throttled,
    which shows in p99.
    """
    cores = _cores_in_affinity()
    quota = _cgroup_cpu_quota()
    return max(1, cores if quota is None else min(cores, int(quota)))


def memory_limit_bytes() -> int:
    """The memory that this process may use: the machine's, or its cgroup's limit where that is smaller."""
    total = int(psutil.virtual_memory().total)
    limit = _cgroup_memory_limit()
    return total if limit is None else min(total, limit)


def has_nvidia_gpu() -> bool:
    """Whether an NVIDIA GPU can be used from here; neither torch nor CUDA is loaded."""
    return bool(gpu_names())


@cache
def gpu_names() -> tuple[str, ...]:
    """The NVIDIA GPUs that can be used from here, by product name; empty where there are none.

    `nvidia-smi` decides where it is installed. Without it the device files do: `/proc/driver/nvidia` would not,
    because a container sees its host's.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return tuple("NVIDIA GPU" for _ in _DEVICES.glob("nvidia[0-9]*"))
    names = _output([command, "--query-gpu=name", "--format=csv,noheader"])
    return tuple(line.strip() for line in (names or "").splitlines() if line.strip())


def fingerprint() -> dict[str, Any]:
    """This machine and its software, as plain JSON values: where two are equal, latencies can be compared.

    Keys: `cpu`, `instruction_set`, `physical_cores`, `usable_cores`, `memory_gib` (rounded), `gpus` (names), `os`,
    `python`, and `versions`, which maps those packages that are installed to their versions.
    """
    return {
        "cpu": cpu_model(),
        "instruction_set": instruction_set(),
        "physical_cores": physical_cores(),
        "usable_cores": usable_cores(),
        "memory_gib": round(memory_limit_bytes() / 2**30),
        "gpus": list(gpu_names()),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
    }


@cache
def cpu_model() -> str:
    """The processor's product name, as the system gives it."""
    if sys.platform == "darwin":
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.machine()
    fields = _cpuinfo()
    if "model name" in fields:
        return fields["model name"]
    if "cpu part" in fields:  # ARM has numbers instead of names
        return f"{platform.machine()} implementer {fields.get('cpu implementer', '?')} part {fields['cpu part']}"
    return platform.processor() or platform.machine()


def _strongest(flags: frozenset[str] | None, levels: tuple[tuple[str, str], ...], *, fallback: str) -> str:
    if flags is None:
        return platform.processor() or "unknown"
    return next((name for flag, name in levels if flag in flags), fallback)


def _cpu_flags() -> frozenset[str] | None:
    """The processor's feature flags under Linux's names, or None where the system doesn't tell."""
    if sys.platform == "darwin":
        return _darwin_flags()
    fields = _cpuinfo()
    flags = fields.get("flags") or fields.get("features")
    return None if flags is None else frozenset(flags.split())


def _darwin_flags() -> frozenset[str]:
    names = {
        "hw.optional.arm.FEAT_I8MM": "i8mm",
        "hw.optional.arm.FEAT_DotProd": "asimddp",
        "hw.optional.avx512vnni": "avx512_vnni",
        "hw.optional.avx512bw": "avx512bw",
        "hw.optional.avx2_0": "avx2",
        "hw.optional.avx1_0": "avx",
    }
    return frozenset(flag for key, flag in names.items() if _output(["sysctl", "-n", key]) == "1")


def _cpuinfo() -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo, names in lower case; empty where there is none."""
    fields: dict[str, str] = {}
    for line in (_read(_CPUINFO) or "").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    return fields


def _cores_in_affinity() -> int:
    if sys.platform != "linux":
        return physical_cores()
    cpus = os.sched_getaffinity(0)
    # A container may hide the topology; then each CPU counts as its own core.
    return len({_read(_CPU_TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus})


def _cgroup_cpu_quota() -> float | None:
    """CPUs that the cgroup may use on average, or None without a limit. Both versions; the tightest ancestor rules."""
    quotas: list[float] = []
    for folder in _cgroup_folders("cpu"):
        unified = (_read(folder / "cpu.max") or "").split()
        if len(unified) == 2 and unified[0] != "max":
            quotas.append(int(unified[0]) / int(unified[1]))
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota is not None and period is not None and int(quota) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _cgroup_memory_limit() -> int | None:
    limits: list[int] = []
    for folder in _cgroup_folders("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name)
            if text is not None and text != "max":
                limits.append(int(text))
    return min(limits, default=None)


def _cgroup_folders(controller: str) -> list[Path]:
    """This process's cgroup for the controller and its ancestors, in cgroup v2 and v1.

    Inside a container the path in /proc/self/cgroup can be the host's while its folder is mounted as the root; so
    the ancestors are listed whether they exist or not, and reading a missing one finds nothing.
    """
    folders: list[Path] = []
    for line in (_read(_CGROUP_MEMBERSHIP) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root = _CGROUP_ROOT
        elif controller in controllers.split(","):
            root = _CGROUP_ROOT / controller
        else:
            continue
        inner = Path(path.lstrip("/"))
        folders += [root / inner, *(root / ancestor for ancestor in inner.parents)]
    return folders


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _output(command: list[str]) -> str | None:
    """What the command prints, or None where it can't be run, fails or takes over 10 seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
