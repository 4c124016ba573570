"""Triton Python model: a PNG file in, label and score out; another model of the package computes the logits.

It is copied into a package as `NAME/1/model.py`, with `message_model.py`, `logits_model.py`, `ranking.py` and `png.py`
beside it, and needs numpy only. `entry.json` has `warmup` too: number, height and width of images to begin with. The
other model resizes: it takes pixels of any size, those of one size at a time.
"""

from __future__ import annotations

__all__ = ["TritonPythonModel"]

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))

from logits_model import Failure, logits_model  # type: ignore[import-not-found, unused-ignore]
from message_model import MessageModel  # type: ignore[import-not-found, unused-ignore]
from png import groups_by_size, png_pixels  # type: ignore[import-not-found, unused-ignore]
from ranking import asked_top_k, ranked_labels  # type: ignore[import-not-found, unused-ignore]


class TritonPythonModel(MessageModel):  # type: ignore[misc, unused-ignore]
    """Image classification."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads what lies beside this file."""
        super().initialize(args)
        self._names = np.array([label.encode("utf-8") for label in self.labels], dtype=np.object_)
        warmups = [{"pixels": np.zeros((*shape, 3), dtype=np.uint8)} for shape in self.entry["warmup"]]
        self._model = logits_model(args, self.entry["model"], warmups)

    def asked(self, request: Any) -> int:
        """How many labels a request wants: its parameter `top_k`, 1 where it has none, at most all."""
        return int(asked_top_k(request, len(self._names)))

    def read(self, request: Any) -> list[NDArray[np.uint8]]:
        """The pixels of each image; ValueError says which can't be read and why."""
        found = []
        for number, value in enumerate(request.inputs()[0].as_numpy().ravel()):
            try:
                found.append(png_pixels(value))
            except ValueError as error:
                raise ValueError(f"image {number}: {error}") from error
        return found

    def answered(
        self, messages: list[NDArray[np.uint8]], asked: list[tuple[slice, int]]
    ) -> tuple[list[dict[str, NDArray[Any]]], dict[int, Any]]:
        """`label` and `score`, best first, and `logits` for each request."""
        logits = np.zeros((len(messages), len(self._names)), dtype=np.float32)
        failures: dict[int, Any] = {}
        for rows in groups_by_size([pixels.shape[:2] for pixels in messages]):
            try:
                logits[rows] = self._model.logits({"pixels": np.stack([messages[row] for row in rows])})
            except Failure as failure:
                failures.update(dict.fromkeys(rows, failure.error))
        ranked, scores = ranked_labels(logits, max(top_k for _, top_k in asked))
        labels = self._names[ranked]
        return [
            {"label": labels[own, :top_k], "score": scores[own, :top_k], "logits": logits[own]} for own, top_k in asked
        ], failures
