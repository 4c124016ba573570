"""Makes clean sentences look typed by people: typos, shorthand, case, punctuation, emoji; entity values stay right."""

from __future__ import annotations

__all__ = ["STYLES", "Style", "add_typos", "shorten", "with_case"]

import re
from dataclasses import dataclass
from random import Random

from .templates import Piece
from .values import below, chance, pick


@dataclass(frozen=True)
class Style:
    """How a register writes: its share of the messages, how many extra sentences it draws from, and how careless it is.

    Rates are probabilities, per word for `typo` and `shorthand`, per message for the others.
    """

    share: float
    greets: float
    signs_off: float
    extras: tuple[int, ...]
    typo: float
    shorthand: float = 0.0
    lower: float = 0.0
    upper: float = 0.0
    no_stop: float = 0.0
    mark: float = 0.0
    marks: tuple[str, ...] = ()


STYLES = {
    "terse": Style(0.24, 0.0, 0.0, (0, 0, 0, 0, 1), typo=0.04, shorthand=0.3, lower=0.7, no_stop=0.9),
    "plain": Style(0.30, 0.25, 0.25, (0, 0, 0, 0, 1, 1, 2), typo=0.02, lower=0.1, no_stop=0.1),
    "polite": Style(0.17, 0.8, 0.6, (0, 0, 0, 1, 2), typo=0.004),
    "chatty": Style(
        0.15, 0.6, 0.4, (0, 0, 0, 1, 2), typo=0.04, shorthand=0.3, lower=0.4, no_stop=0.2, mark=0.5,
        marks=(" 😊", " 🙏", " 😅", " :)", "...", " 🤔"),
    ),
    "angry": Style(
        0.11, 0.5, 0.4, (0, 0, 0, 0, 1, 2), typo=0.03, lower=0.1, upper=0.2, mark=0.6,
        marks=("!!", "!!!", " 😡", "?!", " 🙄"),
    ),
    "story": Style(0.03, 0.5, 0.5, (5, 6, 7), typo=0.02, lower=0.1),
}  # fmt: skip
"""The registers; "story" goes on at length. Its openers and closers are those of "plain"."""

_WORD = re.compile(r"[A-Za-z']+")
_NEIGHBOURS = dict(zip("qwertyuiopasdfghjklzxcvbnm", "wertyuioiosdfghjkljxcvbnmn", strict=True))
_SHORT = {
    "account": ("acc",), "address": ("adress",), "and": ("&", "n"), "are": ("r",), "because": ("cuz", "bc"),
    "for": ("4",), "message": ("msg",), "password": ("pw",), "please": ("pls", "plz"), "really": ("rly",),
    "received": ("recieved",), "something": ("sth",), "thanks": ("thx",), "to": ("to", "2"), "with": ("w/",),
    "you": ("u",), "your": ("ur", "yr"),
}  # fmt: skip


def _misspell(word: str, rng: Random) -> str:
    """One slip in a word of at least four letters; its first letter stays."""
    i = 1 + below(rng, len(word) - 2)
    slip = pick(rng, ("swap", "drop", "double", "neighbour"))
    if slip == "swap":
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    if slip == "drop":
        return word[:i] + word[i + 1 :]
    if slip == "double":
        return word[:i] + word[i] + word[i:]
    return word[:i] + _NEIGHBOURS.get(word[i], word[i]) + word[i + 1 :]


def add_typos(pieces: list[Piece], rng: Random, rate: float) -> list[Piece]:
    """Misspell words at the given rate, at most one in six."""
    budget = 1 + sum(len(text.split()) for text, _ in pieces) // 6

    def slip(match: re.Match[str]) -> str:
        nonlocal budget
        word = match[0]
        if len(word) < 4 or budget == 0 or not chance(rng, rate):
            return word
        budget -= 1
        return _misspell(word, rng)

    return [(text if kind else _WORD.sub(slip, text), kind) for text, kind in pieces]


def shorten(pieces: list[Piece], rng: Random, rate: float) -> list[Piece]:
    """Write words as in a text message (u, pls, dont) at the given rate."""

    def short(match: re.Match[str]) -> str:
        word = match[0]
        if not chance(rng, rate):
            return word
        if "'" in word:
            return word.replace("'", "")
        return pick(rng, _SHORT.get(word.lower(), (word,)))

    return [(text if kind else _WORD.sub(short, text), kind) for text, kind in pieces]


def with_case(pieces: list[Piece], rng: Random, style: Style) -> list[Piece]:
    """All lower or all upper case, as the style has it; when lowered, entity values often keep their case."""
    if chance(rng, style.upper):
        return [(text if kind == "email" else text.upper(), kind) for text, kind in pieces]
    if chance(rng, style.lower):
        values_too = chance(rng, 0.5)
        return [(text.lower() if kind is None or values_too else text, kind) for text, kind in pieces]
    return pieces
