"""Unit tests run their tiny models on one thread: more would only wait for each other. And a stand-in for Triton."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

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


class Answered(dict[str, Any]):
    """What a served entry answers to a request: its outputs, or the error."""

    def __init__(self, tensors: Sequence[tuple[str, Any]] = (), error: Any = None) -> None:
        super().__init__(tensors)
        self.error = error


class Refusal(Exception):
    """Triton's own error."""

    INVALID_ARG = 3


@pytest.fixture
def served_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Loads a task's entry as Triton does, with a stand-in for Triton's own module.

    `served_entry(task, said, logits, *files)` copies what the task packages, `entry.json` with `said`, and the files.
    `logits(feeds)` answers what the entry asks the ONNX model for; a string is the error. What comes back is called
    with requests, `(messages, parameters)` each, messages in bytes, and gives an `Answered` for each.
    """
    loaded: list[str] = []

    def load(task: Any, said: Mapping[str, Any], logits: Callable[[dict[str, Any]], Any], *files: Path) -> Any:
        class Call:
            def __init__(self, inputs: Sequence[tuple[str, Any]], **_: Any) -> None:
                self.found = logits(dict(inputs))

            def exec(self) -> Call:
                return self

            def has_error(self) -> bool:
                return isinstance(self.found, str)

            def error(self) -> Any:
                return self.found

            def output_tensors(self) -> list[Any]:
                return [SimpleNamespace(as_numpy=lambda: self.found)]

        fake: Any = ModuleType("triton_python_backend_utils")
        fake.InferenceRequest, fake.InferenceResponse, fake.TritonError = Call, Answered, Refusal
        fake.Tensor = lambda name, values: (name, values)
        fake.PreferredMemory, fake.TRITONSERVER_MEMORY_CPU = (lambda memory: memory), "CPU"
        monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)
        monkeypatch.setattr(sys, "path", list(sys.path))
        main, *beside = task.entry()
        folder = tmp_path / "entry"
        folder.mkdir()
        shutil.copy(main, folder / "model.py")
        for path in (*beside, *files):
            shutil.copy(path, folder)
            sys.modules.pop(path.stem, None)
            loaded.append(path.stem)
        (folder / "entry.json").write_text(json.dumps({"model": "m", **said}))
        spec = importlib.util.spec_from_file_location("model_in_triton", folder / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        entry = module.TritonPythonModel()
        entry.initialize({"model_version": "1"})
        wanted = [*(each.name for each in task.served), "logits"]

        def request(messages: Sequence[bytes], parameters: Mapping[str, Any]) -> Any:
            values = np.array(list(messages), dtype=object).reshape(-1, 1)
            return SimpleNamespace(
                inputs=lambda: [SimpleNamespace(as_numpy=lambda: values)],
                parameters=lambda: json.dumps(parameters),
                requested_output_names=lambda: wanted,
            )

        return lambda *requests: entry.execute([request(*each) for each in requests])

    yield load
    for name in loaded:
        sys.modules.pop(name, None)
