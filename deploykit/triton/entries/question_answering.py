"""Triton Python model: a question and its context in, the answer out; another model of the package computes the logits.

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

from spans import best_span, pair_words  # type: ignore[import-not-found, unused-ignore]
from text_model import TextModel, padded_logits  # type: ignore[import-not-found, unused-ignore]


class TritonPythonModel(TextModel):  # type: ignore[misc, unused-ignore]
    """Question answering."""

    with_offsets = True

    def outputs(
        self,
        messages: list[str],
        encodings: list[Any],
        logits: list[NDArray[np.float32]],
        asked: list[tuple[slice, Any]],
    ) -> list[dict[str, NDArray[Any]]]:
        """`quote`, a JSON object for each message, and `logits` [messages, tokens, 2] for each request."""
        quotes = [self._quote(*each) for each in zip(messages, encodings, logits, strict=True)]
        return [
            {"quote": np.array(quotes[own], dtype=np.object_).reshape(-1, 1), "logits": padded_logits(logits[own])}
            for own, _ in asked
        ]

    def _quote(self, message: str, encoding: Any, logits: NDArray[np.float32]) -> bytes:
        """The answer to one message; none for one that failed."""
        words = pair_words(message, encoding.offsets, encoding.sequence_ids)
        found = best_span(words, logits if logits.ndim == 2 else logits[:0, np.newaxis])
        said = {**found._asdict(), "text": message[found.start : found.end]}
        return json.dumps(said, ensure_ascii=False).encode("utf-8")
