"""The best labels of logits, as many as a request asks for. It is copied into a package beside `model.py`."""

from __future__ import annotations

__all__ = ["asked_top_k", "ranked_labels"]

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray


def asked_top_k(request: Any, most: int, unasked: int = 1) -> int:
    """How many answers a request wants: its parameter `top_k`, `unasked` where it has none, at most `most`.

    ValueError says what is wrong with it.
    """
    parameters = request.parameters()
    asked = json.loads(parameters).get("top_k", unasked) if len(parameters) > len("{}") else unasked
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1:
        raise ValueError(f"the parameter top_k must be a positive integer, and is {asked!r}")
    return min(asked, most)


def ranked_labels(logits: NDArray[np.float32], deepest: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The best labels of each row, best first, and their probabilities: both [rows, deepest]."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    total = raised.sum(axis=1, keepdims=True)
    if deepest == 1:
        return logits.argmax(axis=1)[:, np.newaxis], 1 / total
    best = np.argsort(-logits, axis=1, kind="stable")[:, :deepest]
    return best, np.take_along_axis(raised, best, axis=1) / total
