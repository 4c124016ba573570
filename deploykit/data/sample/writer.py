"""Writes messages of one split: a core sentence, what surrounds it, and the slips of the one who types."""

from __future__ import annotations

__all__ = ["Writer"]

from collections.abc import Sequence
from random import Random

from .noise import STYLES, Style, add_typos, shorten, with_case
from .templates import Piece, expand, load_surroundings, load_topics, load_values
from .values import Split, Values, chance, pick, weighted

MAX_WORDS = 60
"""Of a message."""


class Writer:
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
        """One message around a template, at most `MAX_WORDS` words long."""
        rng = self._rng
        register = self._register(calm=label in self.topics[topic].calm)
        style = STYLES[register]
        values = Values(rng, self._lists, self._split)
        core = expand(template, rng, values)
        before, after = self._around(register, style, values)
        extras = self._extras(topic, pick(rng, style.extras), values)
        return self._fitted(before, [(extra, chance(rng, 0.5)) for extra in extras], core, after, style)

    def felt_message(self, topic: str, template: str, feelings: Sequence[str], registers: Sequence[str]) -> list[Piece]:
        """One message around a template, with sentences that show a feeling, in one of some registers.

        What else is said is of the topic, since the sentences that fit everywhere may show a feeling of their own.
        """
        rng = self._rng
        register = weighted(rng, {name: STYLES[name].share for name in registers})
        style = STYLES[register]
        values = Values(rng, self._lists, self._split)
        core = expand(template, rng, values)
        before, after = self._around(register, style, values)
        said = [(expand(feeling, rng, values), chance(rng, 0.5)) for feeling in feelings]
        more = list(
            dict.fromkeys(pick(rng, self.topics[topic].context) for _ in range(min(2, pick(rng, style.extras))))
        )
        said += [(expand(sentence, rng, values), chance(rng, 0.5)) for sentence in more]
        return self._fitted(before, said, core, after, style)

    def _fitted(
        self,
        before: list[list[Piece]],
        extras: list[tuple[list[Piece], bool]],
        core: list[Piece],
        after: list[list[Piece]],
        style: Style,
    ) -> list[Piece]:
        """The sentences in order, each extra before the core or behind it; the last extras go where it is too long."""
        while True:
            sentences = [
                *before,
                *(extra for extra, first in extras if first),
                core,
                *(extra for extra, first in extras if not first),
                *after,
            ]
            pieces = self._joined(sentences, style)
            if len("".join(text for text, _ in pieces).split()) <= MAX_WORDS:
                return pieces
            if extras:
                extras.pop()
            else:
                before, after = [], []

    def _register(self, calm: bool) -> str:
        register = weighted(self._rng, {name: style.share for name, style in STYLES.items()})
        return "chatty" if calm and register == "angry" else register

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
