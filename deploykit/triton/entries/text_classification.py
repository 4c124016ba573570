"""Triton Python model: text in, label and score out. Tokenizes a batch of messages together and has NAME_onnx compute the logits.

It is copied into a package as `NAME/1/model.py` and needs numpy only: the `tokenizers` package lies beside it in `site/`, its
vocabulary in `tokenizer.json`, and what else it must know in `entry.json`.
"""

from __future__ import annotations

__all__ = ["TritonPythonModel"]

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE / "site"))
# Messages are short: a thread pool costs more than it gives, and would take cores from onnxruntime.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import Tokenizer  # noqa: E402

_MAX_TEXT_BYTES = 1 << 20


class TritonPythonModel:
    """One instance: a tokenizer and the name of the model that computes the logits."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads what lies beside this file."""
        entry = json.loads((_HERE / "entry.json").read_text(encoding="utf-8"))
        self._labels = np.array([label.encode("utf-8") for label in entry["labels"]], dtype=np.object_)
        self._inputs: list[str] = entry["inputs"]
        self._padding = {"input_ids": entry["pad_id"], "attention_mask": 0, "token_type_ids": entry["pad_type_id"]}
        self._tokenizer = Tokenizer.from_file(str(_HERE / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(entry["max_length"])
        self._call = {
            "model_name": entry["model"],
            "model_version": int(args["model_version"]),
            "requested_output_names": ["logits"],
        }

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request; a request that can't be answered gets its own error and harms no other."""
        messages: list[str] = []
        asked: list[Any] = []
        for request in requests:
            try:
                texts, top_k = _read(request, len(self._labels))
            except ValueError as error:
                asked.append(
                    pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
                )
            else:
                asked.append(
                    (slice(len(messages), len(messages) + len(texts)), top_k, request.requested_output_names())
                )
                messages += texts
        if not messages:
            return asked
        try:
            logits = self._logits(messages)
        except pb_utils.TritonModelException as error:
            failed = pb_utils.TritonError(f"{self._call['model_name']} failed: {error}")
            return [
                self_made if not isinstance(self_made, tuple) else pb_utils.InferenceResponse(error=failed)
                for self_made in asked
            ]
        return [self._respond(logits, *one) if isinstance(one, tuple) else one for one in asked]

    def _logits(self, messages: list[str]) -> NDArray[np.float32]: ...
