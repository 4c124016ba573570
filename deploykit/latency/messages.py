"""The messages that are timed: the data's own, or ones of so many tokens made of its words."""

from __future__ import annotations

__all__ = ["timed_messages"]

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from deploykit.errors import LatencyError
from deploykit.latency.measure import spread_over
from deploykit.runners.tokenize import Encoder


def timed_messages(
    texts: Sequence[str], count: int, lengths: Literal["data"] | Sequence[int], folder: Path
) -> list[str]:
    """Messages to time a model on.

    Args:
        texts: real messages.
        count: how many to give at most.
        lengths: tokens of a message with its special ones, each length in turn; `data` for the texts as they are.
        folder: a model folder, whose tokenizer counts.

    Raises:
        LatencyError: a length is above the model's, or no message can be given it.
    """
    if lengths == "data":
        return spread_over(texts, count)
    encoder = Encoder(folder)
    if max(lengths) > encoder.max_length:
        raise LatencyError(
            f"{max(lengths)} tokens are asked for, and the model truncates to {encoder.max_length}",
            "ask for less, or raise finetune.max_length",
        )
    words = itertools.cycle([word for text in spread_over(texts, count) for word in text.split()])
    return [_of_length(words, length, encoder) for length in itertools.islice(itertools.cycle(lengths), count)]


def _of_length(words: Iterator[str], length: int, encoder: Encoder) -> str:
    message: list[str] = []
    for word in itertools.chain(itertools.islice(words, 4 * length), itertools.repeat("a", length)):
        tokens = int(encoder.lengths([" ".join([*message, word])])[0])
        if tokens <= length:
            message.append(word)
        if tokens == length:
            return " ".join(message)
    raise LatencyError(f"no message of {length} tokens could be made", "ask for another length")
