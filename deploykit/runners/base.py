"""What can be measured and compared: the Runner protocol, and the target that names one."""

from __future__ import annotations

__all__ = ["COMPANIONS", "Message", "Outputs", "Runner", "Target"]

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

from deploykit.tasks.base import Message, Outputs

COMPANIONS = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
    "preprocessor_config.json",
)  # fmt: skip
"""The files that stay with a model from stage to stage, beside its weights or graph."""


class Runner(Protocol):
    """Answers batches of raw messages; parity, latency and search know models only through it.

    A runner is used as a context manager, which owns what it holds (a session, a connection).
    """

    @property
    def name(self) -> str:
        """What to call it in a report."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def infer(self, messages: Sequence[Message]) -> Outputs:
        """The outputs for these messages as one batch, in their order."""
        ...


@dataclass(frozen=True)
class Target:
    """A model to run: where it lies and how to run it. Plain values only, so that it can be sent to another process.

    Attributes:
        kind: which runner: PyTorch, onnxruntime in process, or a Triton server.
        location: a checkpoint folder; an ONNX folder or file; or `grpc://host:port/model`, `http://host:port/model`.
        threads: intra-op threads in process, 0 for all physical cores.
        precision: what the weights are cast to (PyTorch only).
        device: `cpu`, `cuda` or `auto`, in process.
        tokenizer: the folder of the tokenizer, where it is not the model's own.
        task: what the model does.
    """

    kind: Literal["torch", "onnxruntime", "triton"]
    location: str
    threads: int = 0
    precision: Literal["fp64", "fp32", "fp16", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tokenizer: str | None = None
    task: str = "text-classification"
