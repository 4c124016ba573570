"""Triton Python model: text in, its entities out; another model of the package computes the logits of its tokens.

It is copied into a package as `NAME/1/model.py`, with `text_model.py` and `spans.py` beside it.
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

from spans import tag_parts, tagged, word_spans  # type: ignore[import-not-found, unused-ignore]
from text_model import TextModel  # type: ignore[import-not-found, unused-ignore]


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
        found = []
        for own, _ in asked:
            entities, rows = [], logits[own]
            for text, encoding, values in zip(messages[own], encodings[own], rows, strict=True):
                spans = tagged(word_spans(text, encoding.offsets), values, self._tags) if values.ndim == 2 else []
                entities.append(json.dumps([each._asdict() for each in spans], ensure_ascii=False).encode("utf-8"))
            padded = np.zeros((len(rows), max(map(len, rows)), len(self.labels)), dtype=np.float32)
            for place, values in enumerate(rows):
                if values.ndim == 2:  # a message that failed has none
                    padded[place, : len(values)] = values
            found.append({"entities": np.array(entities, dtype=np.object_).reshape(-1, 1), "logits": padded})
        return found
