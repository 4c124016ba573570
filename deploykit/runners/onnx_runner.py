"""Runs an ONNX model folder with onnxruntime in this process."""

from __future__ import annotations

__all__ = ["OnnxRunner", "onnx_file", "open_session"]

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deploykit.errors import MissingDependencyError, ModelError
from deploykit.machine import usable_cores
from deploykit.runners.base import Message, Outputs, Target
from deploykit.runners.tokenize import Encoder
from deploykit.runners.untrusted import check_onnx


def onnx_file(location: str) -> Path:
    """The ONNX file that a target's location names: the file itself, or `model.onnx` in the folder."""
    path = Path(location)
    return path / "model.onnx" if path.is_dir() else path


def open_session(path: Path, *, threads: int = 0, device: str = "auto", settings: dict[str, str] | None = None) -> Any:
    """An `onnxruntime.InferenceSession` of a checked file.

    Args:
        path: the ONNX file.
        threads: intra-op threads, 0 for every usable core.
        device: `cpu`, `cuda`, or `auto` for CUDA where it is.
        settings: session config entries, by onnxruntime's names.

    Raises:
        ModelError: the file is unsafe or onnxruntime can't load it.
        MissingDependencyError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError(
            "onnxruntime is not installed", "pip install 'deploykit[cpu]' (or 'deploykit[gpu]' on a GPU machine)"
        ) from None
    check_onnx(path)
    available = onnxruntime.get_available_providers()
    if device == "cuda" and "CUDAExecutionProvider" not in available:
        raise ModelError(
            "this onnxruntime has no CUDA provider",
            "pip uninstall onnxruntime && pip install 'deploykit[gpu]'; `deploykit doctor` tells more",
        )
    cuda = device != "cpu" and "CUDAExecutionProvider" in available
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if cuda else ["CPUExecutionProvider"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.log_severity_level = 3
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except (onnxruntime.capi.onnxruntime_pybind11_state.Fail, RuntimeError, ValueError) as error:
        raise ModelError(f"onnxruntime can't load {path}: {error}", "export the model again") from None


class OnnxRunner:
    """onnxruntime, from text to outputs.

    Args:
        target: an ONNX folder (`model.onnx` with its tokenizer beside it) or file.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._session: Any = None

    @property
    def name(self) -> str:
        return f"ONNX {onnx_file(self._target.location).parent.name}"

    def __enter__(self) -> Self:
        path = onnx_file(self._target.location)
        self._session = open_session(path, threads=self._target.threads, device=self._target.device)
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._encoder = Encoder(Path(self._target.tokenizer) if self._target.tokenizer else path.parent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None

    def infer(self, messages: Sequence[Message]) -> Outputs:
        """Every output of the graph for the messages as one batch."""
        tensors = self._encoder.encode(messages)
        values = self._session.run(self._outputs, {name: tensors[name] for name in self._inputs})
        return dict(zip(self._outputs, values, strict=True))
