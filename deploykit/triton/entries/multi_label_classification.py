"""Triton Python model: text in, all its labels out; another model of the package computes the logits.

It is copied into a package as `NAME/1/model.py`, with `text_model.py` beside it.
"""

from __future__ import annotations

__all__ = ["TritonPythonModel"]

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))

from text_model import TextModel  # type: ignore[import-not-found, unused-ignore]


class TritonPythonModel(TextModel):  # type: ignore[misc, unused-ignore]
    """Multi-label classification."""

    def outputs(
        self,
        messages: list[str],
        encodings: list[Any],
        logits: list[NDArray[np.float32]],
        asked: list[tuple[slice, Any]],
    ) -> list[dict[str, NDArray[Any]]]:
        """`labels`, a JSON list for each message with those above 0, the likeliest first, and `logits`."""
        rows = np.stack(logits)
        found = []
        for values in rows:
            best = [int(index) for index in np.argsort(-values, kind="stable") if values[index] > 0]
            scores = 1 / (1 + np.exp(-values[best].astype(np.float64)))
            said = [
                {"label": self.labels[index], "score": float(score)} for index, score in zip(best, scores, strict=True)
            ]
            found.append(json.dumps(said, ensure_ascii=False).encode("utf-8"))
        labels = np.array(found, dtype=np.object_).reshape(-1, 1)
        return [{"labels": labels[own], "logits": rows[own]} for own, _ in asked]
