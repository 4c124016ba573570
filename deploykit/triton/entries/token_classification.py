"""Triton Python model: text in, its entities out; another model of the package computes the logits of its tokens.

It is copied into a package as `NAME/1/model.py`, with `text_model.py` and `spans.py` beside it.
"""

from __future__ import annotations

__all__ = ["TritonPythonModel", "entities_as_json"]

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))

from spans import tag_parts, tagged, word_spans  # type: ignore[import-not-found, unused-ignore]
from text_model import TextModel, padded_logits  # type: ignore[import-not-found, unused-ignore]


class TritonPythonModel(TextModel):  # type: ignore[misc, unused-ignore]
    """Token classification."""

    with_offsets = True

    def initialize(self, args: dict[str, str]) -> None:
        """Reads what lies beside this file."""
        super().initialize(args)
        self._tags = [tag_parts(label) for label in self.labels]

    def outputs(
        self,
        messages: list[str],
        encodings: list[Any],
        logits: list[NDArray[np.float32]],
        asked: list[tuple[slice, Any]],
    ) -> list[dict[str, NDArray[Any]]]:
        """`entities`, a JSON list for each message, and `logits` [messages, tokens, labels] for each request."""
        return [
            {
                "entities": entities_as_json(messages[own], encodings[own], logits[own], self._tags),
                "logits": padded_logits(logits[own]),
            }
            for own, _ in asked
        ]


def entities_as_json(
    messages: Sequence[str],
    encodings: Sequence[Any],
    logits: Sequence[NDArray[np.float32]],
    tags: Sequence[tuple[str, str]],
) -> NDArray[np.object_]:
    """A JSON list of each message's entities, [messages, 1]; an empty one for a message that failed."""
    found = []
    for text, encoding, values in zip(messages, encodings, logits, strict=True):
        spans = tagged(word_spans(text, encoding.offsets), values, tags) if values.ndim == 2 else []
        found.append(json.dumps([each._asdict() for each in spans], ensure_ascii=False).encode("utf-8"))
    return np.array(found, dtype=np.object_).reshape(-1, 1)
