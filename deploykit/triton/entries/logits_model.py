"""Where a served entry gets its logits: from the ONNX model of its package, called in the server or run here.

It is copied into a package beside `model.py`. The parameter `layout` of that model's configuration chooses:
`call` asks the ONNX model through the server; `hold` runs the same file in this process, which saves the way there and
back, where the server's Python has onnxruntime. Where it has not, `hold` calls too and says so in the server's log.
"""

from __future__ import annotations

__all__ = ["CalledModel", "Failure", "HeldModel", "logits_model"]

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

Feeds = Mapping[str, NDArray[Any]]


class Failure(Exception):
    """The model has no logits for these inputs; `error` is what a client is told."""

    def __init__(self, error: Any) -> None:
        super().__init__(str(error))
        self.error = error


class CalledModel:
    """The ONNX model as the server runs it.

    Args:
        name: of that model.
        version: of it: a text model never asks another version than its own.
    """

    def __init__(self, name: str, version: int) -> None:
        self._name, self._version = name, version
        self._memory = pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU)

    def logits(self, feeds: Feeds) -> NDArray[np.float32]:
        """The logits of each row; Failure where the server has none."""
        reply = pb_utils.InferenceRequest(
            model_name=self._name,
            model_version=self._version,
            requested_output_names=["logits"],
            inputs=[pb_utils.Tensor(*pair) for pair in feeds.items()],
            preferred_memory=self._memory,
        ).exec()
        if reply.has_error():
            raise Failure(reply.error())
        found: NDArray[np.float32] = reply.output_tensors()[0].as_numpy()
        return found


class HeldModel:
    """The ONNX file of that model in an onnxruntime session of this process, on the CPU.

    Args:
        path: the file.
        threads: of the session; 0 for onnxruntime's own choice.
        warmups: what it is run on before it answers.
    """

    def __init__(self, path: Path, threads: int, warmups: Sequence[Feeds]) -> None:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        kinds = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
        self._failures: tuple[type[Exception], ...] = (*kinds, RuntimeError, ValueError)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin after a run would take the core on which its answer travels back.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._run = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run
        for feeds in warmups:
            self._run(["logits"], dict(feeds))

    def logits(self, feeds: Feeds) -> NDArray[np.float32]:
        """The logits of each row; Failure where onnxruntime can't run them."""
        try:
            found: NDArray[np.float32] = self._run(["logits"], dict(feeds))[0]
        except self._failures as error:
            raise Failure(pb_utils.TritonError(f"onnx runtime error: {error}")) from error
        return found


def logits_model(args: dict[str, str], model: str, warmups: Sequence[Feeds]) -> CalledModel | HeldModel:
    """What the configuration asks for, and the server's Python can do.

    Args:
        args: what Triton gave the text model.
        model: the name of the ONNX model, whose folder lies beside that of the text model.
        warmups: what it is run on before it answers, where it runs here.
    """
    version = int(args["model_version"])
    given = json.loads(args.get("model_config", "{}")).get("parameters", {})
    parameters = {name: value["string_value"] for name, value in given.items()}
    if parameters.get("layout", "call") != "hold":
        return CalledModel(model, version)
    path = Path(args["model_repository"]).with_name(model) / str(version) / "model.onnx"
    missing = "its file is not beside this model"  # so where Triton fetched each model of the repository by itself
    if path.is_file():
        try:
            return HeldModel(path, int(parameters.get("intra_op_thread_count", "0")), warmups)
        except ImportError:
            missing = "onnxruntime is not in the server's Python"
    pb_utils.Logger.log_warn(f"{missing}: {model} is called instead of held")
    return CalledModel(model, version)
