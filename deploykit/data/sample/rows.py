"""Assembles messages from templates, surroundings and noise into labelled rows."""

from __future__ import annotations

__all__ = [
    "OUT_OF_SCOPE", "FaqRow", "SampleRow", "Span", "faq_entries", "faq_rows", "intent_rows", "support_rows",
    "write_support_csv",
]  # fmt: skip

import csv
import json
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

from .noise import STYLES, Style, add_typos, shorten, with_case
from .templates import Piece, expand, load_faq, load_surroundings, load_topics, load_values
from .values import Split, Values, chance, pick

OUT_OF_SCOPE = "out_of_scope"
"""The label of messages that are not for this desk."""

_ROWS = {"train": 136, "test": 62}
"""Rows of an intent; out of scope, being of all kinds, has twice as many."""
_UNSAID = re.compile(r"[\W_]+")
_BETWEEN = (" ", " also, ", " and ", ". Another thing: ", " ... ", "\n", ". ")
"""What stands between the two halves of a message that asks for two things."""
_MIN_WORDS, _MAX_WORDS = 2, 60


@dataclass(frozen=True)
class Span:
    """An entity: `start` and `end` are offsets into the text in Unicode code points, `end` exclusive.

    A date is a calendar date; "yesterday" and the like are not marked.
    """

    start: int
    end: int
    type: str


@dataclass(frozen=True)
class SampleRow:
    """One message, its intent, its entities in the order of the text, and further intents in it."""

    text: str
    label: str
    spans: tuple[Span, ...]
    more: tuple[str, ...] = ()

    @property
    def intents(self) -> str:
        """The intents as JSON, a list of names: none where the message is out of scope."""
        return json.dumps(sorted({self.label, *self.more} - {OUT_OF_SCOPE}))

    @property
    def entities(self) -> str:
        """The spans as JSON, a list of `{"start", "end", "type"}`."""
        return json.dumps([asdict(span) for span in self.spans])


def support_rows(split: Split, seed: int = 0) -> list[SampleRow]:
    """The customer-support sample: 4,624 rows of train or 2,108 of test, over 32 intents and `out_of_scope`, shuffled.

    The same on every platform and Python version. No text, template, surrounding sentence or entity value is in both
    splits of a seed, and no text twice in one; texts that differ in case or punctuation only count as the same.
    """
    return list(_splits(seed)[split])


def intent_rows(split: Split, seed: int = 0) -> list[SampleRow]:
    """The customer-support sample with several intents in a message: every third in-scope message asks for two things.

    As many rows as `support_rows`, in another order; a message that asks for two is made of two of them.
    """
    rng = Random(f"intents/{split}/{seed}")
    found = []
    rows = support_rows(split, seed)
    known = [row for row in rows if row.label != OUT_OF_SCOPE]
    for row in rows:
        joined = row
        if row.label != OUT_OF_SCOPE and chance(rng, 1 / 3):
            other = pick(rng, known)
            while other.label == row.label:
                other = pick(rng, known)
            joined = _joined(row, other, pick(rng, _BETWEEN))
        found.append(joined)
    order = [rng.random() for _ in found]
    return [row for _, row in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])]


@dataclass(frozen=True)
class FaqRow:
    """A question of the shop's help page, the name of its answer, and the answer."""

    text: str
    label: str
    answer: str


def faq_entries() -> list[FaqRow]:
    """The shop's help page: 64 questions with 32 answers, which are named as the intents are that they answer."""
    return [
        FaqRow(question, label, entry["answer"])
        for label, entry in load_faq().items()
        for question in entry["questions"]
    ]


def faq_rows(split: Split, seed: int = 0) -> list[SampleRow]:
    """The messages that the help page answers: the customer-support sample without what is out of scope."""
    return [row for row in support_rows(split, seed) if row.label != OUT_OF_SCOPE]


def _joined(first: SampleRow, second: SampleRow, between: str) -> SampleRow:
    moved = len(first.text) + len(between)
    spans = (Span(span.start + moved, span.end + moved, span.type) for span in second.spans)
    return SampleRow(first.text + between + second.text, first.label, (*first.spans, *spans), (second.label,))


def write_support_csv(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write `train.csv` and `test.csv`, UTF-8, and return their paths.

    The columns are text, label and entities: a JSON list of `{"start", "end", "type"}`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return _write("train", folder, seed), _write("test", folder, seed)


def _write(split: Split, folder: Path, seed: int) -> Path:
    path = folder / f"{split}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("text", "label", "entities"))
        for row in support_rows(split, seed):
            writer.writerow((row.text, row.label, row.entities))
    return path


@lru_cache(maxsize=1)
def _splits(seed: int) -> dict[Split, list[SampleRow]]:
    """Both splits: test has to know train's texts."""
    taken: set[str] = set()
    return {"train": _rows("train", seed, taken), "test": _rows("test", seed, taken)}


def _rows(split: Split, seed: int, taken: set[str]) -> list[SampleRow]:
    """All rows of a split; skips texts in `taken` and adds its own."""
    rng = Random(f"{split}/{seed}")
    writer = _Writer(split, rng)
    rows = []
    intents = [(topic, *item) for topic in writer.topics for item in writer.topics[topic].intents.items()]
    for topic, label, templates in intents:
        wanted = _ROWS[split] * (2 if label == OUT_OF_SCOPE else 1)
        turn = made = 0
        while made < wanted:
            row = _row(writer.message(topic, label, templates[turn % len(templates)]), label)
            turn += 1
            key = _UNSAID.sub("", row.text.casefold())
            if key not in taken and len(row.text.split()) >= _MIN_WORDS:
                taken.add(key)
                rows.append(row)
                made += 1
    order = [rng.random() for _ in rows]
    return [row for _, row in sorted(zip(order, rows, strict=True), key=lambda pair: pair[0])]


def _row(pieces: list[Piece], label: str) -> SampleRow:
    text, spans = "", []
    for part, kind in pieces:
        if kind is not None:
            spans.append(Span(len(text), len(text) + len(part), kind))
        text += part
    return SampleRow(text, label, tuple(spans))


class _Writer:
    """Writes messages of one split."""

    def __init__(self, split: Split, rng: Random) -> None:
        self.topics = load_topics(split)
        self._surroundings = load_surroundings(split)
        self._lists = load_values(split)
        self._asides = {
            topic: [aside for other in self.topics if other != topic for aside in self.topics[other].aside]
            for topic in self.topics
        }
        self._split = split
        self._rng = rng

    def message(self, topic: str, label: str, template: str) -> list[Piece]:
        """One message around a template, at most `_MAX_WORDS` words long."""
        rng = self._rng
        register = self._register(calm=label in self.topics[topic].calm)
        style = STYLES[register]
        values = Values(rng, self._lists, self._split)
        core = expand(template, rng, values)
        before, after = self._around(register, style, values)
        extras = self._extras(topic, pick(rng, style.extras), values)
        ahead = [chance(rng, 0.5) for _ in extras]
        while True:
            sentences = [
                *before,
                *(extra for extra, first in zip(extras, ahead, strict=False) if first),
                core,
                *(extra for extra, first in zip(extras, ahead, strict=False) if not first),
                *after,
            ]
            pieces = self._joined(sentences, style)
            if len("".join(text for text, _ in pieces).split()) <= _MAX_WORDS:
                return pieces
            if extras:
                extras.pop()
            else:
                before, after = [], []

    def _register(self, calm: bool) -> str:
        at = self._rng.random() * sum(style.share for style in STYLES.values())
        for register, style in STYLES.items():
            at -= style.share
            if at < 0:
                return "chatty" if calm and register == "angry" else register
        return "plain"

    def _around(self, register: str, style: Style, values: Values) -> tuple[list[list[Piece]], list[list[Piece]]]:
        """The opening and the closing: a list of one sentence each, or empty."""
        rng = self._rng
        openers, closers = self._surroundings.openers, self._surroundings.closers
        source = register if register in openers else "plain"
        before = [expand(pick(rng, openers[source]), rng, values)] if chance(rng, style.greets) else []
        after = [expand(pick(rng, closers[source]), rng, values)] if chance(rng, style.signs_off) else []
        return before, after

    def _extras(self, topic: str, count: int, values: Values) -> list[list[Piece]]:
        """Background sentences: the topic's own, those that fit everywhere, settled matters of other topics."""
        rng, asides = self._rng, self._asides[topic]
        extras: dict[str, list[Piece]] = {}
        while len(extras) < count:
            kind = rng.random()
            pool = self.topics[topic].context if kind < 0.5 else self._surroundings.anywhere if kind < 0.78 else asides
            template = pick(rng, pool)
            if template not in extras:
                # A settled matter is about another order, so it has values of its own.
                its_values = Values(rng, self._lists, self._split) if pool is asides else values
                extras[template] = expand(template, rng, its_values)
        return list(extras.values())

    def _joined(self, sentences: list[list[Piece]], style: Style) -> list[Piece]:
        """One message from its sentences, with the style's punctuation and slips."""
        rng = self._rng
        no_stop = chance(rng, style.no_stop)
        pieces: list[Piece] = []
        for i, sentence in enumerate(sentences):
            goes_on = False
            if i:
                last = pieces[-1][0]
                gap = _gap(last, pick(rng, (" ", ", ", " - ")) if no_stop else ". ")
                goes_on = last.endswith((",", ":")) or gap == ", "
                pieces.append((gap, None))
            pieces.extend(_uncapitalised(sentence) if goes_on else sentence)
            if no_stop and pieces[-1][1] is None:
                pieces[-1] = (pieces[-1][0].removesuffix("."), None)
        if chance(rng, style.mark):
            if pieces[-1][1] is None:
                # A question keeps its mark: it can be all that makes it one ("order confirmed?").
                pieces[-1] = (pieces[-1][0].rstrip(".!"), None)
            pieces.append((pick(rng, style.marks), None))
        return with_case(add_typos(shorten(pieces, rng, style.shorthand), rng, style.typo), rng, style)


def _gap(last: str, unmarked: str) -> str:
    """What stands between two sentences: a space, or `unmarked` where the first ends without a mark."""
    return " " if last.endswith((".", "!", "?", ",", ":")) else unmarked


def _uncapitalised(sentence: list[Piece]) -> list[Piece]:
    """The sentence as it continues after a comma or colon."""
    text, kind = sentence[0]
    if kind is not None or text.startswith(("I ", "I'")):
        return sentence
    return [(text[:1].lower() + text[1:], None), *sentence[1:]]
