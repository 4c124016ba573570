"""Whether messages can stand for those to be served: what speaks against calibrating on them."""

from __future__ import annotations

__all__ = ["calibration_doubts"]

import re
from collections.abc import Hashable, Sequence

from deploykit.runners.tokenize import Encoder

_FEW = 64
"""Fewer messages than this leave the largest activations to chance."""
_LOOKED_AT = 300
_PIECES_A_WORD = 1.4
"""A tokenizer's fertility (Rust et al. 2021). Measured through MiniLM's vocabulary: English customer messages 1.03 to
1.16 (BANKING77, Bitext, the shipped samples), sentences in French 1.45, Spanish 1.8, German 2.1. Pieces a letter tell
less: 0.50 where words are as short as in "is it ok", though none of them is cut."""
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
    pieces = _pieces_a_word(texts[:_LOOKED_AT], encoder)
    if pieces > _PIECES_A_WORD:
        doubts.append(
            f"the tokenizer cuts a word of the calibration messages into {pieces:.1f} pieces, as in another language"
            " than its own: if other messages will be served, calibrate on such; if these, a model of their language"
            " reads fewer tokens"
        )
    return doubts


def _pieces_a_word(texts: Sequence[str], encoder: Encoder) -> float:
    """Pieces a word, of words in scripts that are spelled; 0 where there are none."""
    words = [word for text in texts for word in re.findall(r"[^\W\d_]+", text) if ord(max(word)) < _SPELLED]
    if not words:
        return 0.0
    lines = [" ".join(words[start : start + 10]) for start in range(0, len(words), 10)]
    added = int(encoder.lengths([""])[0])
    return float((encoder.lengths(lines) - added).sum()) / len(words)
