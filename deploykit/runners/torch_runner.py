"""Runs a checkpoint folder with PyTorch: the reference that everything else is held against."""

from __future__ import annotations

__all__ = ["TorchRunner"]

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from deploykit.errors import ModelError
from deploykit.machine import usable_cores
from deploykit.runners.base import Message, Outputs, Target
from deploykit.runners.medium import medium_of
from deploykit.runners.padding import real_tokens, reunited
from deploykit.runners.untrusted import check_checkpoint


class TorchRunner:
    """Eager PyTorch with SDPA attention in `inference_mode`, from messages to outputs.

    Texts go through the fast tokenizer of `transformers`, images through PyTorch's own resizing.

    Args:
        target: a checkpoint folder with its task, precision, device and threads.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._model: Any = None
        self._read: Any = None
        self._device = "cpu"

    @property
    def name(self) -> str:
        return f"PyTorch {self._target.precision}"

    def __enter__(self) -> Self:
        import torch

        from deploykit.tasks import find_task

        folder = Path(self._target.location)
        task = find_task(self._target.task)
        medium = medium_of(task)
        check_checkpoint(folder, beside=medium.beside)
        torch.set_num_threads(self._target.threads or usable_cores())
        cuda = torch.cuda.is_available() and self._target.device != "cpu"
        if self._target.device == "cuda" and not cuda:
            raise ModelError("this PyTorch sees no CUDA device", "`deploykit doctor` says what is missing")
        self._device = "cuda" if cuda else "cpu"
        dtype = {"fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[
            self._target.precision
        ]
        model = task.load_model(folder, dtype=dtype, attn_implementation="sdpa").eval()
        self._model = medium.whole(model, folder).to(self._device)
        self._read = medium.reader(Path(self._target.tokenizer or folder), offsets=task.per_token)
        self._task, self._medium = task, medium
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._model = self._read = None

    def infer(self, messages: Sequence[Message]) -> Outputs:
        """The task's output for the messages as one batch, and `words` and `texts` for what has a row for each token.

        The output is float32, whatever precision computed it. What can't go together as one batch goes as several.

        Raises:
            DataError: a message can't be read.
        """
        groups = self._medium.groups(messages) if len(messages) > 1 else [[0]]
        if len(groups) == 1:
            return self._infer(messages)
        return reunited(groups, [self._infer([messages[number] for number in group]) for group in groups])

    def _infer(self, messages: Sequence[Message]) -> dict[str, Any]:
        import torch

        inputs = dict(self._read(messages))
        words = inputs.pop("words", None)
        with torch.inference_mode():
            given = {name: values.to(self._device) for name, values in inputs.items()}
            outputs = self._model(**given)[self._task.output]
        values = outputs.float().cpu().numpy().astype(np.float32, copy=False)
        if words is None:
            return {self._task.output: values}
        mask, texts = inputs["attention_mask"].numpy(), np.array(messages, dtype=np.object_)
        return {self._task.output: real_tokens(values, mask), "words": words, "texts": texts}
