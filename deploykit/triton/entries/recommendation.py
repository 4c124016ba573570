"""Triton Python model: a history in, the likeliest items out; another model of the package computes the logits.

It is copied into a package as `NAME/1/model.py`, with `text_model.py` and `ranking.py` beside it.
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
    """Recommendation."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads what lies beside this file."""
        super().initialize(args)
        answers = self.entry["answers"]
        self._names = np.array([label.encode("utf-8") for label in self.labels], dtype=np.object_)
        self._texts = np.array([answers.get(label, "").encode("utf-8") for label in self.labels], dtype=np.object_)

    def asked(self, request: Any) -> int:
        """How many items a request wants: its parameter `top_k`, as many as are judged without it, at most all."""
        return int(asked_top_k(request, len(self._names), self.entry["depth"]))

    def outputs(
        self,
        messages: list[str],
        encodings: list[Any],
        logits: list[NDArray[np.float32]],
        asked: list[tuple[slice, int]],
    ) -> list[dict[str, NDArray[Any]]]:
        """`item`, `answer` and `score` (a probability), likeliest first, and `logits` for each request."""
        rows = np.stack(logits)
        ranked, scores = ranked_labels(rows, max(top_k for _, top_k in asked))
        return [
            {
                "item": self._names[ranked[own, :top_k]],
                "answer": self._texts[ranked[own, :top_k]],
                "score": scores[own, :top_k],
                "logits": rows[own],
            }
            for own, top_k in asked
        ]
