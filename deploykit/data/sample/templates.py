"""Reads the template files, and expands a template into pieces of text and entity values.

A template is a sentence with choices, `[a|b]`, and slots, `{order}`. Each list exists once for train and once for test.
"""

from __future__ import annotations

__all__ = [
    "Feelings", "Piece", "Surroundings", "Topic", "expand", "load_catalogue", "load_facts", "load_faq",
    "load_feelings", "load_surroundings", "load_topics", "load_values",
]  # fmt: skip

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any

from .values import Split, Values, pick

Piece = tuple[str, str | None]
"""Text and its entity type, None for what is no entity."""

_TOPICS = ("orders", "delivery", "returns", "billing", "checkout", "account", "service", "out_of_scope")
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Topic:
    """Intents that share a background.

    Attributes:
        intents: templates of each intent.
        calm: intents that nobody is angry about.
        context: sentences that fit any of the intents and decide none.
        aside: settled matters of this topic, said beside a request from another one.
    """

    intents: dict[str, list[str]]
    calm: frozenset[str]
    context: list[str]
    aside: list[str]


@dataclass(frozen=True)
class Surroundings:
    """Openers and closers by register, and sentences that fit everywhere."""

    openers: dict[str, list[str]]
    closers: dict[str, list[str]]
    anywhere: list[str]


@dataclass(frozen=True)
class Feelings:
    """What shows a feeling.

    Attributes:
        sentences: by sentiment, those that fit beside any request.
        praise: by topic.
        neutral: by topic, the intents that are asked for without a feeling.
        troubled: by topic, the intents that the displeased write about.
    """

    sentences: dict[str, list[str]]
    praise: dict[str, list[str]]
    neutral: dict[str, list[str]]
    troubled: dict[str, list[str]]


@cache
def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(files(__package__).joinpath("templates", f"{name}.toml").read_text(encoding="utf-8"))


def load_topics(split: Split) -> dict[str, Topic]:
    """The topics of a split, by name, in a fixed order."""
    topics = {}
    for name in _TOPICS:
        table = _read(name)
        topics[name] = Topic(
            intents={label: lists[split] for label, lists in table["intents"].items()},
            calm=frozenset(label for label, lists in table["intents"].items() if lists.get("calm", False)),
            context=table["context"][split],
            aside=table["aside"][split],
        )
    return topics


def load_faq() -> dict[str, Any]:
    """The help page: `questions` and `answer` by the name of the answer."""
    return _read("faq")


def load_catalogue() -> dict[str, Any]:
    """The shop's items by interest: its `share`, and `items` of title, description and weight, in pairs."""
    return _read("catalogue")


def load_facts() -> dict[str, Any]:
    """What the help page states in figures, by name, and `values`: the answers by kind and split."""
    return dict(_read("facts"))


def load_surroundings(split: Split) -> Surroundings:
    """What can surround a request in this split."""
    table = dict(_read("around"))
    anywhere = table.pop("anywhere")[split]
    return Surroundings(
        openers={register: lists["openers"][split] for register, lists in table.items()},
        closers={register: lists["closers"][split] for register, lists in table.items()},
        anywhere=anywhere,
    )


def load_feelings(split: Split) -> Feelings:
    """What shows a feeling in this split."""
    table = _read("feelings")
    return Feelings(
        sentences={name: table[name][split] for name in ("negative", "positive")},
        praise={topic: lists[split] for topic, lists in table["about"].items()},
        neutral=table["neutral"],
        troubled=table["troubled"],
    )


def load_values(split: Split) -> dict[str, list[str]]:
    """The listed entity values of a split, by list name."""
    return {name: lists[split] for name, lists in _read("values").items()}


def expand(template: str, rng: Random, values: Values) -> list[Piece]:
    """Resolve choices at random and slots from `values`."""
    text = _CHOICE.sub(lambda match: pick(rng, match[1].split("|")), template)
    pieces: list[Piece] = []
    for i, part in enumerate(_SLOT.split(text)):
        if i % 2:
            pieces.append(values[part])
        elif part:
            pieces.append((part, None))
    return pieces
