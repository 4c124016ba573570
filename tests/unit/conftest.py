"""Unit tests run their tiny models on one thread: more would only wait for each other. And a stand-in for Triton."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # for torch, here where it is not loaded yet, and in child processes
        for runner in ("onnx_runner", "torch_runner"):
            patch.setattr(f"deploykit.runners.{runner}.usable_cores", lambda: 1)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        yield


@dataclass
class Tensor:
    """Triton's."""

    label: str
    values: np.ndarray

    def name(self) -> str:
        return self.label

    def as_numpy(self) -> np.ndarray:
        return self.values


class Refusal(Exception):
    """Triton's own error."""

    INVALID_ARG, INTERNAL = "INVALID_ARG", "INTERNAL"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        super().__init__(message)
        self.message, self.code = message, code


class Answered(dict[str, Any]):
    """What a served model answers to a request: its outputs, or the error."""

    def __init__(self, output_tensors: Sequence[Tensor] = (), error: Any = None) -> None:
        super().__init__((tensor.label, tensor.values) for tensor in output_tensors)
        self.error = error


@dataclass
class Request:
    """What a client asks of a served model."""

    tensors: Mapping[str, np.ndarray]
    outputs: Sequence[str]
    asked: Mapping[str, Any] = field(default_factory=dict)

    def inputs(self) -> list[Tensor]:
        return [Tensor(*pair) for pair in self.tensors.items()]

    def requested_output_names(self) -> list[str]:
        return list(self.outputs)

    def parameters(self) -> str:
        return json.dumps(self.asked)


class InTriton:
    """A stand-in for Triton's own module, and a way to load models as Triton does.

    Attributes:
        answer: what another model of the package answers to a call: its inputs in, logits or a `Refusal` out.
        calls: of that model, each with its `target` (name and version) and `inputs`.
        warned: what was written to Triton's log.
        error: `Refusal`.
    """

    error = Refusal

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, np.ndarray]], Any] = lambda _: Refusal("there is no such model")
        self.calls: list[Any] = []
        self.warned: list[str] = []
        self.placed: set[str] = set()

    def module(self) -> ModuleType:
        """What served models import."""
        triton = self

        class Call:
            def __init__(self, model_name: str, model_version: int, inputs: Sequence[Tensor], **_: Any) -> None:
                self.target = (model_name, model_version)
                self.inputs = {tensor.label: tensor.values for tensor in inputs}
                triton.calls.append(self)

            def exec(self) -> Call:
                self.said = triton.answer(self.inputs)
                return self

            def has_error(self) -> bool:
                return isinstance(self.said, Refusal)

            def error(self) -> Any:
                return self.said

            def output_tensors(self) -> list[Tensor]:
                return [Tensor("logits", self.said)]

        fake: Any = ModuleType("triton_python_backend_utils")
        fake.InferenceRequest, fake.InferenceResponse, fake.TritonError = Call, Answered, Refusal
        fake.Tensor, fake.Logger = Tensor, SimpleNamespace(log_warn=self.warned.append)
        fake.PreferredMemory, fake.TRITONSERVER_MEMORY_CPU = (lambda memory: memory), "CPU"
        return cast(ModuleType, fake)

    def place(self, folder: Path, *sources: Path) -> None:
        """Copy what lies beside a model; modules of these names from other folders are forgotten."""
        for path in sources:
            shutil.copy(path, folder)
            sys.modules.pop(path.stem, None)
            self.placed.add(path.stem)

    def load(self, path: Path) -> Any:
        """The module in a file."""
        spec = importlib.util.spec_from_file_location("model_in_triton", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def start(self, path: Path, **arguments: str) -> Any:
        """The model in a file; its `execute` is called with requests: tensors by name, outputs, and parameters."""
        model = self.load(path).TritonPythonModel()
        model.initialize(arguments)
        execute = model.execute
        model.execute = lambda requests: execute([Request(*each) for each in requests])
        return model


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[InTriton]:
    """Triton's Python module for what runs inside the server."""
    stand_in = InTriton()
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stand_in.module())
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield stand_in
    for name in stand_in.placed:
        sys.modules.pop(name, None)


@pytest.fixture
def served_entry(triton: InTriton, tmp_path: Path) -> Callable[..., Any]:
    """Loads a task's entry as Triton does.

    `served_entry(task, said, logits, *files)` copies what the task packages, `entry.json` with `said`, and the files.
    `logits(feeds)` answers what the entry asks the ONNX model for. What comes back is called with requests,
    `(messages, parameters)` each, messages in bytes, and gives an `Answered` for each.
    """

    def load(task: Any, said: Mapping[str, Any], logits: Callable[[dict[str, Any]], Any], *files: Path) -> Any:
        triton.answer = logits
        main, *beside = task.entry()
        folder = tmp_path / "entry"
        folder.mkdir()
        shutil.copy(main, folder / "model.py")
        triton.place(folder, *beside, *files)
        (folder / "entry.json").write_text(json.dumps({"model": "m", **said}))
        entry = triton.start(folder / "model.py", model_version="1")
        wanted = [*(each.name for each in task.served), "logits"]

        def request(messages: Sequence[bytes], parameters: Mapping[str, Any]) -> Any:
            return {"message": np.array(list(messages), dtype=object).reshape(-1, 1)}, wanted, parameters

        return lambda *requests: entry.execute([request(*each) for each in requests])

    return load
