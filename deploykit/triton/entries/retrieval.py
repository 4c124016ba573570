"""Triton Python model: text in, the nearest entries out; another model of the package computes the logits.

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

from ranking import asked_top_k  # type: ignore[import-not-found, unused-ignore]
from text_model import TextModel  # type: ignore[import-not-found, unused-ignore]


class TritonPythonModel(TextModel):  # type: ignore[misc, unused-ignore]
    """Retrieval."""

    named = "entry"

    def initialize(self, args: dict[str, str]) -> None:
        """Reads what lies beside this file."""
        super().initialize(args)
        answers = self.entry["answers"]
        self._names = np.array([label.encode("utf-8") for label in self.labels], dtype=np.object_)
        self._texts = np.array([answers.get(label, "").encode("utf-8") for label in self.labels], dtype=np.object_)

    def asked(self, request: Any) -> int:
        """How many entries a request wants: its parameter `top_k`, `depth` where it has none, at most all."""
        return int(asked_top_k(request, len(self._names), self.entry["depth"]))

    def ranked(self, logits: NDArray[np.float32], deepest: int) -> tuple[NDArray[np.intp], NDArray[Any]]:
        """The best entries of each row, best first, of equal ones the lower index, with scores: [rows, deepest]."""
        best = logits.argmax(axis=1)[:, np.newaxis] if deepest == 1 else np.argsort(-logits, axis=1, kind="stable")
        best = best[:, :deepest]
        return best, np.take_along_axis(logits, best, axis=1) / np.float32(self.entry["scale"])

    def outputs(
        self,
        messages: list[str],
        encodings: list[Any],
        logits: list[NDArray[np.float32]],
        asked: list[tuple[slice, int]],
    ) -> list[dict[str, NDArray[Any]]]:
        """The entries' names, `answer` and `score`, nearest first, and `logits` for each request."""
        rows = np.stack(logits)
        best, scores = self.ranked(rows, max(top_k for _, top_k in asked))
        return [
            {
                self.named: self._names[best[own, :top_k]],
                "answer": self._texts[best[own, :top_k]],
                "score": scores[own, :top_k],
                "logits": rows[own],
            }
            for own, top_k in asked
        ]
