"""Triton Python model: text in, label and score out; another model of the package computes the logits.

It is copied into a package as `NAME/1/model.py`, with `text_model.py` beside it.
"""

from __future__ import annotations

__all__ = ["TritonPythonModel"]

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))

from ranking import asked_top_k, ranked_labels  # type: ignore[import-not-found, unused-ignore]
from text_model import TextModel  # type: ignore[import-not-found, unused-ignore]


class TritonPythonModel(TextModel):  # type: ignore[misc, unused-ignore]
    """Text classification."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads what lies beside this file."""
        super().initialize(args)
        self._names = np.array([label.encode("utf-8") for label in self.labels], dtype=np.object_)

    def asked(self, request: Any) -> int:
        """How many labels a request wants: its parameter `top_k`, 1 where it has none, at most all."""
        return int(asked_top_k(request, len(self._names)))

    def outputs(
        self,
        messages: list[str],
        encodings: list[Any],
        logits: list[NDArray[np.float32]],
        asked: list[tuple[slice, int]],
    ) -> list[dict[str, NDArray[Any]]]:
        """`label` and `score`, best first, and `logits` for each request."""
        rows = np.stack(logits) if len(logits) > 1 else logits[0][np.newaxis]
        ranked, scores = ranked_labels(rows, max(top_k for _, top_k in asked))
        labels = self._names[ranked]
        return [
            {"label": labels[own, :top_k], "score": scores[own, :top_k], "logits": rows[own]} for own, top_k in asked
        ]
