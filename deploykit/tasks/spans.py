"""Which words of a message its tokens decide on, and which spans of the text their labels or logits make.

A message can be a pair: a question and, behind the first line break, its context.

It is copied into packages too, beside the text model: it needs numpy and nothing else. Offsets are Unicode code points.
"""

from __future__ import annotations

__all__ = [
    "PAIRS_KEY", "Best", "Found", "best_span", "likeliest_run", "pair_words", "spans_of_labels", "split_pair",
    "tag_parts", "tagged", "token_words", "tokenizer_input", "word_spans",
]  # fmt: skip

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PAIRS_KEY = "deploykit_pairs"
"""In config.json: that messages are pairs."""
_MOST_WORDS = 30
"""Of an answer."""
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


def tokenizer_input(messages: Sequence[str], *, pairs: bool) -> list[Any]:
    """What a tokenizer is given for these messages: the texts, or two of each."""
    return [split_pair(message) for message in messages] if pairs else list(messages)


def token_words(message: str, encoding: Any, *, pairs: bool) -> NDArray[np.int64]:
    """The part of a message that each token decides on (`word_spans`), or of a pair the word that it belongs to.

    Args:
        message: the text.
        encoding: of the library `tokenizers`.
        pairs: whether messages are pairs.
    """
    if pairs:
        return pair_words(message, encoding.offsets, encoding.sequence_ids)
    return word_spans(message, encoding.offsets)


class Best(NamedTuple):
    """The answer of a message: where it is, 0 and 0 for none; its probability; where the last word read ends."""

    start: int
    end: int
    score: float
    read: int


def split_pair(message: str) -> tuple[str, str]:
    """The question and the context; a message without a line break has no context."""
    question, _, context = message.partition("\n")
    return question, context


def pair_words(message: str, offsets: Sequence[tuple[int, int]], parts: Sequence[int | None]) -> NDArray[np.int64]:
    """The word of the context that each token belongs to: int64 [tokens, 2], start and end; 0 and 0 for no word.

    Args:
        message: the pair as one text.
        offsets: of the tokens in their part.
        parts: of the tokens: 1 for the context's.
    """
    question, context = split_pair(message)
    own = [token for token, part in enumerate(parts) if part == 1]
    inside = [offsets[token] for token in own]
    decided = word_spans(context, inside)
    for place in range(1, len(own)):
        begin, end = inside[place]
        if not decided[place, 1] and begin < end and begin < decided[place - 1, 1]:
            decided[place] = decided[place - 1]  # the word goes on
    words = np.zeros((len(offsets), 2), dtype=np.int64)
    found = decided[:, 1] > 0
    words[np.array(own, dtype=np.int64)[found]] = decided[found] + len(question) + 1
    return words


def best_span(words: NDArray[np.int64], logits: NDArray[np.float32]) -> Best:
    """The likeliest run of words of the context, or none where its logits come to less than 0.

    The logit of "no answer" is 0 for both ends; an answer begins with a word's first token and ends with a word's last.

    Args:
        words: [tokens, 2], the word of each token, 0 and 0 for none.
        logits: [tokens, 2], of the beginning and the end of the answer.
    """
    tokens = np.flatnonzero(words[: len(logits), 1])
    if not len(tokens):
        return Best(0, 0, 1.0, 0)
    values = logits[tokens].astype(np.float64)
    peaks = values.max(axis=0).clip(min=0.0)
    totals = peaks + np.log(np.exp(-peaks) + np.exp(values - peaks).sum(axis=0))  # none is one more choice
    first, last, best = likeliest_run(words, logits)
    read, total = int(words[tokens[-1], 1]), float(totals.sum())
    if best <= 0:
        return Best(0, 0, float(np.exp(-total)), read)
    return Best(int(words[first, 0]), int(words[last, 1]), float(np.exp(best - total)), read)


def likeliest_run(words: NDArray[np.int64], logits: NDArray[np.float32]) -> tuple[int, int, float]:
    """The likeliest run of at most 30 words: its first and its last token, and the sum of their logits.

    0, -1 and minus infinity where there are no words.

    Args:
        words: [tokens, 2], as `best_span` has them.
        logits: [tokens, 2], of the beginning and the end of the answer.
    """
    tokens = np.flatnonzero(words[: len(logits), 1])
    if not len(tokens):
        return 0, -1, -np.inf
    changes = np.flatnonzero((words[tokens[1:]] != words[tokens[:-1]]).any(axis=1))
    firsts, lasts = tokens[np.r_[0, changes + 1]], tokens[np.r_[changes, len(tokens) - 1]]
    starts, ends = logits[firsts, 0].astype(np.float64), logits[lasts, 1].astype(np.float64)
    reached = np.r_[ends, np.full(_MOST_WORDS - 1, -np.inf)]
    sums = starts[:, np.newaxis] + np.lib.stride_tricks.sliding_window_view(reached, _MOST_WORDS)
    first, further = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(firsts[first]), int(lasts[first + further]), float(sums[first, further])
