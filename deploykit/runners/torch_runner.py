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
from deploykit.runners.padding import real_tokens
from deploykit.runners.tokenize import max_length_from_folder, reads_pairs, refuse_surrogates
from deploykit.runners.untrusted import check_checkpoint
from deploykit.tasks.spans import token_words, tokenizer_input


class TorchRunner:
    """Eager PyTorch with SDPA attention in `inference_mode`, messages through the fast tokenizer of `transformers`.

    A single message is not padded, a batch to its longest.

    Args:
        target: a checkpoint folder with its task, precision, device and threads.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._model: Any = None
        self._tokenizer: Any = None
        self._device = "cpu"

    @property
    def name(self) -> str:
        return f"PyTorch {self._target.precision}"

    def __enter__(self) -> Self:
        import torch
        from transformers import AutoTokenizer

        from deploykit.tasks import find_task

        folder = Path(self._target.location)
        check_checkpoint(folder)
        torch.set_num_threads(self._target.threads or usable_cores())
        cuda = torch.cuda.is_available() and self._target.device != "cpu"
        if self._target.device == "cuda" and not cuda:
            raise ModelError("this PyTorch sees no CUDA device", "`deploykit doctor` says what is missing")
        self._device = "cuda" if cuda else "cpu"
        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self._target.precision]
        task = find_task(self._target.task)
        self._model = task.load_model(folder, dtype=dtype, attn_implementation="sdpa").eval().to(self._device)
        tokenizer_folder = Path(self._target.tokenizer or folder)
        self._tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=False)
        self._max_length = max_length_from_folder(tokenizer_folder)
        self._pairs, self._task = reads_pairs(folder), task
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._model = self._tokenizer = None

    def infer(self, messages: Sequence[Message]) -> Outputs:
        """The task's output for the messages as one batch, and `words` and `texts` for what has a row for each token.

        The output is float32, whatever precision computed it.

        Raises:
            DataError: a message has a lone surrogate.
        """
        import torch

        try:
            inputs = self._tokenizer(
                tokenizer_input(messages, pairs=self._pairs),
                truncation=True,
                max_length=self._max_length,
                padding=len(messages) > 1,
                return_tensors="pt",
                **({"return_token_type_ids": False} if self._pairs else {}),
            )
        except TypeError:
            refuse_surrogates(messages)
            raise
        mask = inputs["attention_mask"].numpy()
        with torch.inference_mode():
            outputs = self._model(**inputs.to(self._device))[self._task.output]
        values = outputs.float().cpu().numpy().astype(np.float32, copy=False)
        if not self._task.per_token:
            return {self._task.output: values}
        pairs = zip(messages, inputs.encodings, strict=True)
        words = [token_words(text, each, pairs=self._pairs) for text, each in pairs]
        texts = np.array(messages, dtype=np.object_)
        return {self._task.output: real_tokens(values, mask), "words": np.stack(words), "texts": texts}
