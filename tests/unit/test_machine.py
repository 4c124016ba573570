"""What the machine is, read from made /proc and /sys trees and from this machine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploykit import machine


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What is remembered of this machine must not meet the made ones."""
    remembered = (machine.instruction_set, machine.gpu_names, machine.cpu_model)
    for function in remembered:
        function.cache_clear()
    yield
    for function in remembered:
        function.cache_clear()


def on_linux(monkeypatch: pytest.MonkeyPatch, folder: Path, cpuinfo: str, architecture: str = "x86_64") -> None:
    path = folder / "cpuinfo"
    path.write_text(cpuinfo)
    monkeypatch.setattr(machine, "_CPUINFO", path)
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.setattr(machine.platform, "machine", lambda: architecture)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")


def test_this_machine_has_a_fingerprint_in_plain_json() -> None:
    fingerprint = machine.fingerprint()
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert fingerprint == machine.fingerprint()
    assert 1 <= fingerprint["usable_cores"] <= (os.cpu_count() or 1)
    assert fingerprint["physical_cores"] >= 1
    assert fingerprint["memory_gib"] >= 1
    assert fingerprint["cpu"]
    assert "torch" in fingerprint["versions"]
    assert "torch" not in sys.modules or fingerprint["versions"]["torch"]


@pytest.mark.parametrize(
    ("architecture", "cpuinfo", "expected"),
    [
        ("x86_64", "flags\t\t: fpu avx avx2 avx512f avx512bw avx512_vnni amx_int8\n", "x86-64 amx_int8"),
        ("x86_64", "flags : avx avx2 avx512f avx512bw avx512_vnni\n", "x86-64 avx512_vnni"),
        ("x86_64", "flags : avx avx2 avx_vnni\n", "x86-64 avx_vnni"),
        ("x86_64", "flags : avx avx2 avx512f avx512bw\n", "x86-64 avx512"),
        ("AMD64", "flags : avx avx2\n", "x86-64 avx2"),
        ("x86_64", "flags : sse sse2\n", "x86-64 sse2"),
        ("aarch64", "Features : fp asimd asimddp i8mm\n", "arm64 i8mm"),
        ("aarch64", "Features : fp asimd asimddp\n", "arm64 dotprod"),
        ("aarch64", "Features : fp asimd\n", "arm64 neon"),
        ("riscv64", "", "riscv64"),
    ],
)
def test_the_strongest_int8_instructions_name_the_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, architecture: str, cpuinfo: str, expected: str
) -> None:
    on_linux(monkeypatch, tmp_path, cpuinfo, architecture)
    assert machine.instruction_set() == expected


def test_without_flags_the_processor_s_own_name_stands_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_linux(monkeypatch, tmp_path, "", "AMD64")
    monkeypatch.setattr(machine.platform, "processor", lambda: "Intel64 Family 6 Model 85 Stepping 7")
    assert machine.instruction_set() == "x86-64 Intel64 Family 6 Model 85 Stepping 7"


def test_macos_is_asked_through_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"hw.optional.arm.FEAT_DotProd": "1", "machdep.cpu.brand_string": "Apple M1"}
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    monkeypatch.setattr(machine.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(machine, "_output", lambda command: answers.get(command[-1]))
    assert machine.instruction_set() == "arm64 dotprod"
    assert machine.cpu_model() == "Apple M1"


def test_the_cpu_model_of_x86_and_arm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_linux(monkeypatch, tmp_path, "processor : 0\nmodel name : Xeon A\n\nprocessor : 1\nmodel name : Xeon B\n")
    assert machine.cpu_model() == "Xeon A"
    machine.cpu_model.cache_clear()
    on_linux(monkeypatch, tmp_path, "CPU implementer : 0x41\nCPU part : 0xd40\n", "aarch64")
    assert machine.cpu_model() == "aarch64 implementer 0x41 part 0xd40"


# --- cores and limits ---


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A made /sys of four cores with two threads each, all of which this process may use, in the root cgroup."""
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "membership").write_text("0::/\n")
    for cpu in range(8):
        topology = tmp_path / f"cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    monkeypatch.setattr(machine, "_CGROUP_ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_CGROUP_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(machine, "_CPU_TOPOLOGY", tmp_path / "cpu")
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: type("Memory", (), {"total": 64 * 2**30}))
    return tmp_path


def limit(system: Path, group: str, **files: str) -> None:
    folder = system / "cgroup" / group
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content + "\n")


def test_hyper_threads_count_once(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.usable_cores() == 4
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {0, 4, 1}, raising=False)
    assert machine.usable_cores() == 2


def test_without_a_topology_every_cpu_counts(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CPU_TOPOLOGY", system / "nowhere")
    assert machine.usable_cores() == 8


@pytest.mark.parametrize(
    ("quota", "cores"), [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 4), ("1600000 100000", 4)]
)
def test_a_cgroup_quota_limits_the_cores(system: Path, quota: str, cores: int) -> None:
    limit(system, ".", cpu__max=quota)
    assert machine.usable_cores() == cores


def test_the_tightest_ancestor_rules(system: Path) -> None:
    (system / "membership").write_text("0::/pod/container\n")
    limit(system, "pod", cpu__max="200000 100000", memory__max=str(3 * 2**30))
    limit(system, "pod/container", cpu__max="max 100000", memory__max="max")
    assert machine.usable_cores() == 2
    assert machine.memory_limit_bytes() == 3 * 2**30


def test_cgroup_v1_limits_bind_where_its_folder_is_the_mount_itself(system: Path) -> None:
    (system / "membership").write_text("4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n")
    limit(system, "cpu", cpu__cfs_quota_us="100000", cpu__cfs_period_us="50000")
    limit(system, "memory", memory__limit_in_bytes=str(2 * 2**30))
    assert machine.usable_cores() == 2
    assert machine.memory_limit_bytes() == 2 * 2**30


def test_cgroup_v1_without_limits(system: Path) -> None:
    (system / "membership").write_text("4:memory:/\n3:cpu,cpuacct:/\n")
    limit(system, "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    limit(system, "memory", memory__limit_in_bytes="9223372036854771712")
    assert machine.usable_cores() == 4
    assert machine.memory_limit_bytes() == 64 * 2**30


def test_a_system_without_cgroups_has_no_limit(system: Path) -> None:
    (system / "membership").unlink()
    assert machine.usable_cores() == 4
    assert machine.memory_limit_bytes() == 64 * 2**30


# --- GPUs ---


def test_nvidia_smi_decides_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(machine, "_DEVICES", tmp_path)
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    for said, names in (("NVIDIA H100\nNVIDIA H100\n", ("NVIDIA H100",) * 2), ("", ()), (None, ())):
        machine.gpu_names.cache_clear()
        monkeypatch.setattr(machine, "_output", lambda command, said=said: said)
        assert machine.gpu_names() == names
        assert machine.has_nvidia_gpu() == bool(names)


def test_without_nvidia_smi_the_device_files_decide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_DEVICES", tmp_path)
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    for name in ("nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert not machine.has_nvidia_gpu()
    machine.gpu_names.cache_clear()
    (tmp_path / "nvidia0").touch()
    assert machine.gpu_names() == ("NVIDIA GPU",)


def test_a_command_that_fails_or_is_not_there_says_nothing() -> None:
    assert machine._output([sys.executable, "-c", "print('said')"]) == "said"
    assert machine._output([sys.executable, "-c", "raise SystemExit(1)"]) is None
    assert machine._output(["/no/such/command"]) is None


def test_the_state_of_the_machine_is_what_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    hot = {"coretemp": [SimpleNamespace(current=61.0), SimpleNamespace(current=83.5)]}
    monkeypatch.setattr(machine.psutil, "getloadavg", lambda: (3.25, 1.0, 1.0))
    monkeypatch.setattr(machine.psutil, "cpu_freq", lambda: SimpleNamespace(current=2100.0))
    monkeypatch.setattr(machine.psutil, "sensors_temperatures", lambda: hot, raising=False)
    state = machine.machine_state()
    assert state == {"busy": 3.25, "mhz": 2100.0, "celsius": 83.5}
    assert machine.in_words(state) == "3.2 processes wanted a core before, 2.1 GHz, 84 °C"


def test_what_the_machine_keeps_to_itself_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.psutil, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(machine.psutil, "cpu_freq", lambda: None)
    monkeypatch.delattr(machine.psutil, "sensors_temperatures", raising=False)
    assert machine.machine_state() == {"busy": 0.0}
    assert machine.in_words({"busy": 0.0}) == "0.0 processes wanted a core before"
