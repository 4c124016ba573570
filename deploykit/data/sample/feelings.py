"""Messages of the same shop that show a feeling or none: for sentiment and topic."""

from __future__ import annotations

__all__ = ["SENTIMENT_SHARES", "TOPICS", "UNSHOWN", "FeltRow", "FeltWriter", "sentiment_rows"]

import re
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from .noise import STYLES
from .templates import load_feelings
from .values import Split, chance, pick, weighted
from .writer import Writer

TOPICS = ("orders", "delivery", "returns", "billing", "checkout", "account", "service")
"""What a message can be about."""
SENTIMENT_SHARES = {"negative": 0.36, "neutral": 0.38, "positive": 0.26}
"""Of the rows to train and test on."""
UNSHOWN = 0.05
"""Of those who are displeased or pleased, so many write as if they were not: the text cannot tell, so that no model can
be right on more than 1 - UNSHOWN x (share of those with a feeling) of the rows, 96.9 %."""

_ROWS = {"train": 2400, "test": 2000}
_UNSAID = re.compile(r"[\W_]+")
_LEAST_WORDS = 2
_NEVER = {"negative": "chatty", "neutral": "angry", "positive": "angry"}
"""The register that nobody has with this feeling; the neutral lack "chatty" too, which praises in its closings."""
_SENTENCES = {"negative": (1, 1, 1, 2), "positive": (0, 1, 1, 1, 1, 1, 2)}
"""How many sentences show the feeling: the praise of a thing shows it already."""


@dataclass(frozen=True)
class FeltRow:
    """One message, what its writer feels about the matter, and what it is about."""

    text: str
    sentiment: str
    topic: str


def sentiment_rows(split: Split, seed: int = 0) -> list[FeltRow]:
    """Messages with sentiment and topic: 2,400 rows of train or 2,000 of test, shuffled, every topic as often.

    Sentiment is the feeling about the matter that the writer has: a request without one is neutral, be it about a
    broken thing. No text, template or entity value is in both splits, and no text twice in one.
    """
    return list(_splits(seed)[split])


@lru_cache(maxsize=1)
def _splits(seed: int) -> dict[Split, list[FeltRow]]:
    taken: set[str] = set()
    return {"train": _rows("train", seed, taken), "test": _rows("test", seed, taken)}


def _rows(split: Split, seed: int, taken: set[str]) -> list[FeltRow]:
    rng = Random(f"feelings/{split}/{seed}")
    writer, rows = FeltWriter(split, rng), list[FeltRow]()
    while len(rows) < _ROWS[split]:
        row = writer.row(weighted(rng, SENTIMENT_SHARES), TOPICS[len(rows) % len(TOPICS)])
        key = _UNSAID.sub("", row.text.casefold())
        if key not in taken:
            taken.add(key)
            rows.append(row)
    order = [rng.random() for _ in rows]
    return [row for _, row in sorted(zip(order, rows, strict=True), key=lambda pair: pair[0])]


class FeltWriter:
    """Writes messages of one split with a feeling about a topic."""

    def __init__(self, split: Split, rng: Random) -> None:
        self._rng = rng
        self._writer = Writer(split, rng)
        self._found = load_feelings(split)

    def row(self, sentiment: str, topic: str) -> FeltRow:
        """One message of at least two words."""
        shown = "neutral" if sentiment != "neutral" and chance(self._rng, UNSHOWN) else sentiment
        while True:
            text = self._text(shown, topic)
            if len(text.split()) >= _LEAST_WORDS:
                return FeltRow(text, sentiment, topic)

    def _text(self, shown: str, topic: str) -> str:
        rng, found = self._rng, self._found
        never = {_NEVER[shown], "chatty" if shown == "neutral" else ""}
        registers = [name for name in STYLES if name not in never]
        if shown == "positive":
            template = pick(rng, found.praise[topic])
        else:
            intents = (found.troubled if shown == "negative" else found.neutral)[topic]
            template = pick(rng, self._writer.topics[topic].intents[pick(rng, intents)])
        feelings: list[str] = []
        if shown != "neutral":
            count = pick(rng, _SENTENCES[shown])
            while len(feelings) < count:
                feeling = pick(rng, found.sentences[shown])
                if feeling not in feelings:
                    feelings.append(feeling)
        return "".join(text for text, _ in self._writer.felt_message(topic, template, feelings, registers))
