"""Runs an ONNX model folder with onnxruntime in this process."""

from __future__ import annotations

__all__ = ["OnnxRunner", "onnx_file", "open_session", "session_errors"]

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from deploykit.errors import MissingDependencyError, ModelError
from deploykit.machine import usable_cores
from deploykit.runners.base import Message, Outputs, Target
from deploykit.runners.medium import medium_of
from deploykit.runners.padding import real_tokens, reunited
from deploykit.runners.untrusted import check_onnx
from deploykit.tasks import find_task


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
    # TF32 would round float32 products to 10 bits: no longer the numbers that parity compares.
    cuda_provider = ("CUDAExecutionProvider", {"use_tf32": "0"})
    providers = [cuda_provider, "CPUExecutionProvider"] if cuda else ["CPUExecutionProvider"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.log_severity_level = 3
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except session_errors() as error:
        raise ModelError(f"onnxruntime can't load {path}: {error}", "export the model again") from None


def session_errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises where it can't load or run a graph: kinds that have no common base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*kinds, RuntimeError, ValueError)


class OnnxRunner:
    """onnxruntime, from messages to outputs.

    Args:
        target: an ONNX folder (`model.onnx`, for texts with the tokenizer beside it) or file.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self.session: Any = None

    @property
    def name(self) -> str:
        return f"ONNX {onnx_file(self._target.location).absolute().parent.name}"

    def __enter__(self) -> Self:
        path = onnx_file(self._target.location)
        self._task = find_task(self._target.task)
        self.session = open_session(path, threads=self._target.threads, device=self._target.device)
        self._inputs = [value.name for value in self.session.get_inputs()]
        self._outputs = [value.name for value in self.session.get_outputs()]
        self._medium = medium_of(self._task)
        self.encoder = self._medium.encoder(Path(self._target.tokenizer) if self._target.tokenizer else path.parent)
        unknown = sorted(set(self._inputs) - self._medium.tensors.keys())
        if unknown:
            raise ModelError(
                f"{path} wants {', '.join(unknown)}, which no {self._medium.name} becomes",
                f"export it with no inputs but {', '.join(self._medium.tensors)}",
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.session = None

    def infer(self, messages: Sequence[Message]) -> Outputs:
        """Every output of the graph for one batch of messages; `words` and `texts` for what has a row for each token.

        What can't go together as one batch (images of unlike sizes) goes as several.

        Raises:
            ModelError: onnxruntime can't run the graph on them.
            DataError: a message can't be read.
        """
        groups = self._medium.groups(messages) if len(messages) > 1 else [[0]]
        if len(groups) == 1:
            return self._infer(messages)
        return reunited(groups, [self._infer([messages[number] for number in group]) for group in groups])

    def _infer(self, messages: Sequence[Message]) -> dict[str, Any]:
        tensors = self.encoder.encode(messages, words=self._task.per_token)
        try:
            values = self.session.run(self._outputs, {name: tensors[name] for name in self._inputs})
        except session_errors() as error:
            raise ModelError(
                f"{self.name} failed on {len(messages)} message(s): {error}", "export the model again"
            ) from None
        outputs = dict(zip(self._outputs, values, strict=True))
        if self._task.per_token:
            outputs[self._task.output] = real_tokens(outputs[self._task.output], tensors["attention_mask"])
            outputs["words"], outputs["texts"] = tensors["words"], np.array(messages, dtype=np.object_)
        return outputs
