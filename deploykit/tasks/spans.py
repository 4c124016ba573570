"""Which words of a message its tokens decide on, and which spans of the text their labels make.

It is copied into packages too, beside the text model: it needs numpy and nothing else. Offsets are Unicode code points.
"""

from __future__ import annotations

__all__ = ["Found", "spans_of_labels", "tag_parts", "tagged", "word_spans"]

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_ASCII_WORDS = re.compile(r"\w+|[^\w\s]")


class Found(NamedTuple):
    """A span that a model found: `end` is exclusive, `score` the mean probability of its words' labels."""

    start: int
    end: int
    label: str
    score: float


def word_spans(text: str, offsets: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """The part of a text that each token decides on: int64 [tokens, 2], start and end; 0 and 0 where there is none.

    The first token of a word decides on it; so words are the same whatever the tokenizer: runs of letters and digits
    with what combines with them, and every other character by itself, likewise those of scripts without spaces. Where
    one token reaches into several words, they are one.

    Args:
        text: the message.
        offsets: of its tokens in the text; empty for special tokens.
    """
    words = _words(text)
    decided = np.zeros((len(offsets), 2), dtype=np.int64)
    place = 0  # the first word that is not decided on
    for token, (begin, end) in enumerate(offsets):
        while place < len(words) and words[place][1] <= begin:
            place += 1  # has no token
        first = place
        while place < len(words) and words[place][0] < end:
            place += 1
        if place > first:
            decided[token] = words[first][0], words[place - 1][1]
    return decided


def _words(text: str) -> list[tuple[int, int]]:
    if text.isascii():
        return [match.span() for match in _ASCII_WORDS.finditer(text)]
    found: list[tuple[int, int]] = []
    joins = False
    for place, character in enumerate(text):
        category = unicodedata.category(character)
        tone = "\U0001f3fb" <= character <= "\U0001f3ff"
        if category[0] == "M" or category == "Cf" or tone:  # accents, joiners, skin tones: of what they follow
            if found and found[-1][1] == place:
                found[-1] = (found[-1][0], place + 1)
            continue
        letter = category[0] in "LN" or character == "_"
        if letter and joins and found[-1][1] == place and not _stands_alone(character):
            found[-1] = (found[-1][0], place + 1)
        elif not character.isspace() and category != "Cc":
            found.append((place, place + 1))
        joins = letter and not _stands_alone(character)
    return found


def _stands_alone(character: str) -> bool:
    """Whether a letter is of a script that is written without spaces."""
    return (
        "\u0e00" <= character <= "\u0eff"  # Thai, Lao
        or "\u1000" <= character <= "\u109f"  # Burmese
        or "\u1780" <= character <= "\u17ff"  # Khmer
        or "\u3040" <= character <= "\u30ff"  # Hiragana, Katakana
        or "\u3400" <= character <= "\u9fff"  # Han
        or "\uf900" <= character <= "\ufaff"
        or "\U00020000" <= character <= "\U0003ffff"
    )


def tag_parts(name: str) -> tuple[str, str]:
    """A label's place in its span and its class: `B-city` is ("B", "city"); `O` has no class; `city` is inside."""
    if name == "O":
        return "O", ""
    place, _, kind = name.partition("-")
    return (place, kind) if kind and place in ("B", "I", "E", "L", "S", "U") else ("I", name)


def spans_of_labels(
    words: NDArray[np.int64], chosen: NDArray[np.int64], scores: NDArray[np.float64], tags: Sequence[tuple[str, str]]
) -> list[Found]:
    """The spans that the labels of a message's words make: BIO, BIOES or plain classes, as lenient as seqeval.

    Args:
        words: [words, 2], parts of the text, in order.
        chosen: [words], the number of each one's label.
        scores: [words], its probability.
        tags: `tag_parts` of every label.
    """
    spans: list[tuple[int, int, str, list[float]]] = []
    goes_on = False
    for (start, end), number, score in zip(words.tolist(), chosen.tolist(), scores.tolist(), strict=True):
        place, kind = tags[number]
        if goes_on and place in "IEL" and spans[-1][2] == kind:
            spans[-1] = (spans[-1][0], end, kind, [*spans[-1][3], score])
        elif kind:
            spans.append((start, end, kind, [score]))
        goes_on = bool(kind) and place in "BI"
    return [Found(start, end, kind, sum(each) / len(each)) for start, end, kind, each in spans]


def tagged(words: NDArray[np.int64], logits: NDArray[np.float32], tags: Sequence[tuple[str, str]]) -> list[Found]:
    """The spans of one message.

    Args:
        words: [tokens, 2], the part of the text that each token decides on.
        logits: [tokens, labels].
        tags: `tag_parts` of every label.
    """
    deciding = np.flatnonzero(words[: len(logits), 1])
    rows = logits[deciding].astype(np.float64)
    if not len(rows):
        return []
    chosen = rows.argmax(axis=1)
    scores = 1 / np.exp(rows - rows.max(axis=1, keepdims=True)).sum(axis=1)
    return spans_of_labels(words[deciding], chosen, scores, tags)
