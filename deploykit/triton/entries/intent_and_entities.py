"""Triton Python model: text in, its intent and its entities out; another model of the package computes the logits.

It is copied into a package as `NAME/1/model.py`, with `text_model.py`, `spans.py` and the text models of both single
tasks beside it. Of each message's logits, [tokens, labels], the first columns are the tags, and those behind them the
intents, which the row of the first token decides on.
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
from spans import tag_parts  # type: ignore[import-not-found, unused-ignore]
from text_model import TextModel, padded_logits  # type: ignore[import-not-found, unused-ignore]
from token_classification import entities_as_json  # type: ignore[import-not-found, unused-ignore]

_INTENT = "intent:"


class TritonPythonModel(TextModel):  # type: ignore[misc, unused-ignore]
    """Intents and entities."""

    with_offsets = True

    def initialize(self, args: dict[str, str]) -> None:
        """Reads what lies beside this file."""
        super().initialize(args)
        names = [label.removeprefix(_INTENT) for label in self.labels if label.startswith(_INTENT)]
        self._intents = np.array([name.encode("utf-8") for name in names], dtype=np.object_)
        self._tags = [tag_parts(label) for label in self.labels[: -len(names)]]

    def asked(self, request: Any) -> int:
        """How many intents a request wants: its parameter `top_k`, 1 where it has none, at most all."""
        return int(asked_top_k(request, len(self._intents)))

    def outputs(
        self,
        messages: list[str],
        encodings: list[Any],
        logits: list[NDArray[np.float32]],
        asked: list[tuple[slice, int]],
    ) -> list[dict[str, NDArray[Any]]]:
        """`label` and `score` of the intents, best first, `entities`, a JSON list for each message, and `logits`."""
        behind = len(self._tags)
        # A message that failed has a row of zeros in place of one for each token.
        first = np.stack([np.atleast_2d(values)[0, behind:] for values in logits])
        ranked, scores = ranked_labels(first, max(top_k for _, top_k in asked))
        tags = [values[..., :behind] for values in logits]
        return [
            {
                "label": self._intents[ranked[own, :top_k]],
                "score": scores[own, :top_k],
                "entities": entities_as_json(messages[own], encodings[own], tags[own], self._tags),
                "logits": padded_logits(logits[own]),
            }
            for own, top_k in asked
        ]
