"""The Runner protocol and its kinds: every measurement and comparison goes through one."""

from __future__ import annotations

__all__ = ["Message", "Outputs", "Runner", "Target", "infer_all", "open_runner", "target_from_text"]

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import ParityError, UsageError
from deploykit.runners.base import Message, Outputs, Runner, Target

if TYPE_CHECKING:
    import numpy as np


def open_runner(target: Target) -> Runner:
    """The runner of a target; enter it to load the model."""
    if target.kind == "torch":
        from deploykit.runners.torch_runner import TorchRunner

        return TorchRunner(target)
    if target.kind == "onnxruntime":
        from deploykit.runners.onnx_runner import OnnxRunner

        return OnnxRunner(target)
    from deploykit.runners.triton_runner import TritonRunner

    return TritonRunner(target)


def target_from_text(text: str, *, task: str = "text-classification", tokenizer: str | None = None) -> Target:
    """The target that a command-line argument names.

    Args:
        text: a checkpoint folder, an ONNX folder or file, or `grpc://host:port/model` (`http://` too).
        task: what the model does.
        tokenizer: the tokenizer's folder, where it does not lie beside the model.

    Raises:
        UsageError: it is none of these.
    """
    if "://" in text:
        return Target("triton", text, task=task, tokenizer=tokenizer)
    path = Path(text)
    if path.suffix == ".onnx" or (path / "model.onnx").is_file():
        return Target("onnxruntime", text, task=task, tokenizer=tokenizer)
    if (path / "config.json").is_file():
        return Target("torch", text, task=task, tokenizer=tokenizer)
    what = "has neither model.onnx nor config.json" if path.is_dir() else "is not there"
    raise UsageError(f"{text} {what}", "give a checkpoint folder, an .onnx file, or grpc://HOST:PORT/MODEL")


def infer_all(runner: Runner, messages: Sequence[Message], batches: Iterable[Sequence[int]]) -> dict[str, np.ndarray]:
    """The outputs for all messages, in their order, run in the given batches of indices.

    What has a row for each token has as many as the longest message, zeros behind the end of the others.

    Raises:
        ParityError: there are no messages, the batches do not cover each once, or an output has not a row for each.
    """
    import numpy as np

    from deploykit.runners.padding import equally_long

    if not messages:
        raise ParityError("there are no messages to run", "give a data file with at least one row")
    gathered: dict[str, np.ndarray] = {}
    seen = np.zeros(len(messages), dtype=np.int64)
    for batch in batches:
        if not len(batch) or not all(0 <= index < len(messages) for index in batch):
            raise ParityError(f"a batch of {len(batch)} holds no messages, or other ones than the {len(messages)}")
        outputs = runner.infer([messages[index] for index in batch])
        for name, given in outputs.items():
            if name not in gathered:
                gathered[name] = np.zeros((len(messages), *given.shape[1:]), dtype=given.dtype)
            values, gathered[name] = equally_long(given, gathered[name])
            if values.shape != (len(batch), *gathered[name].shape[1:]):
                raise ParityError(
                    f"{runner.name}: {name!r} has shape {list(values.shape)} for {len(batch)} messages",
                    "its first axis must be the batch, the others the same for every message",
                )
            gathered[name][list(batch)] = values
        seen[list(batch)] += 1
    if not (seen == 1).all():
        raise ParityError(f"the batches cover {np.count_nonzero(seen)} of {len(messages)} messages, some not just once")
    return gathered
