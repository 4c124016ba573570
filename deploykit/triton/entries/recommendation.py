"""Triton Python model: a history in, the likeliest items out; another model of the package computes the logits.

It is copied into a package as `NAME/1/model.py`, with `text_model.py`, `ranking.py` and `retrieval.py` beside it.
"""

from __future__ import annotations

__all__ = ["TritonPythonModel"]

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))

import retrieval  # type: ignore[import-not-found, unused-ignore]
from ranking import ranked_labels  # type: ignore[import-not-found, unused-ignore]


class TritonPythonModel(retrieval.TritonPythonModel):  # type: ignore[misc, unused-ignore]
    """Recommendation."""

    named = "item"

    def ranked(self, logits: NDArray[np.float32], deepest: int) -> tuple[NDArray[np.intp], NDArray[Any]]:
        """The likeliest items of each row and their probabilities."""
        ranked: tuple[NDArray[np.intp], NDArray[Any]] = ranked_labels(logits, deepest)
        return ranked
