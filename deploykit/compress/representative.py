"""Whether messages can stand for those to be served: what speaks against calibrating on them."""

from __future__ import annotations

__all__ = ["calibration_doubts"]

import re
from collections.abc import Hashable, Sequence

from deploykit.runners.tokenize import Encoder

_FEW = 64
"""Fewer messages than this leave the largest activations to chance."""
_LOOKED_AT = 300
_PIECES_A_LETTER = 0.34
"""English customer messages through BERT's vocabulary take 0.25 to 0.28 (the most where it is trimmed), German 0.39."""
_SPELLED = 0x0590
"""Scripts below this are written in letters, and words have spaces between them: Latin, Greek, Cyrillic, Armenian."""


def calibration_doubts(texts: Sequence[str], labels: Sequence[Hashable], encoder: Encoder) -> list[str]:
    """What speaks against calibrating on these messages, a line each.

    Args:
        texts: the messages.
        labels: of them; empty where they have none, or more than one class each.
        encoder: of the model that is calibrated.
    """
    doubts = []
    if len(texts) < _FEW:
        doubts.append(f"calibrated on {len(texts)} messages only: give {_FEW} at least, like those to be served")
    if labels and len(set(labels)) == 1:
        doubts.append(f"all messages that calibrate are of one class ({labels[0]}): give some of every class")
    pieces = _pieces_a_letter(texts[:_LOOKED_AT], encoder)
    if pieces > _PIECES_A_LETTER:
        doubts.append(
            f"the tokenizer cuts the calibration messages into {pieces:.2f} pieces a letter, as it does with another"
            " language than its own: calibrate on messages like those to be served"
        )
    return doubts


def _pieces_a_letter(texts: Sequence[str], encoder: Encoder) -> float:
    """Pieces a letter, of words in scripts that are spelled; 0 where there are none."""
    words = [word for text in texts for word in re.findall(r"[^\W\d_]+", text) if ord(max(word)) < _SPELLED]
    if not words:
        return 0.0
    lines = [" ".join(words[start : start + 10]) for start in range(0, len(words), 10)]
    added = int(encoder.lengths([""])[0])
    return float((encoder.lengths(lines) - added).sum()) / sum(len(word) for word in words)
