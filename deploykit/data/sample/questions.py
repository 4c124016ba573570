"""Questions about passages of the shop's help page, with the words that answer them, or without an answer there."""

from __future__ import annotations

__all__ = ["UNANSWERED", "QuestionRow", "question_rows"]

import json
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

from .templates import load_facts, load_faq
from .values import Split, below, chance, pick

UNANSWERED = 1 / 3
"""The share of questions that their passage does not answer. Every other one has exactly one answer there, in the words
of the passage; so a model can be right on all of them."""
_CONFUSED = 0.6
"""Of the unanswered ones, those whose passage states what is easily taken for the answer."""
_FACTS = (2, 4)
"""Facts of a passage: the fewest and the most."""
_ASIDE = 0.5
"""How likely a passage begins with an answer of the help page that states none of the facts."""
_ASIDES = (
    "create_account", "reset_password", "change_email", "unsubscribe", "payment_failed", "discount_code",
    "product_availability", "product_info", "missing_item", "cancel_order", "change_order", "change_address",
    "order_confirmation", "damaged_item", "complaint",
)  # fmt: skip
"""Which those are."""
_ROWS = {"train": 2000, "test": 1500}


@dataclass(frozen=True)
class QuestionRow:
    """A question, a line break and a passage; `start` and `end` are the answer's offsets into all of it.

    Both are 0 where the passage does not answer the question.
    """

    text: str
    start: int
    end: int

    @property
    def answer(self) -> str:
        """The answer as JSON: a list of one `{"start", "end", "label"}`, or an empty one."""
        found = [{"start": self.start, "end": self.end, "label": "answer"}] if self.end else []
        return json.dumps(found)


def question_rows(split: Split, seed: int = 0) -> list[QuestionRow]:
    """Questions about passages: 2,000 rows of train or 1,500 of test, a third without an answer.

    The same on every platform and Python version. No question, sentence that states a fact, or answer is in both
    splits, and no text twice.
    """
    return list(_rows(split, seed))


@lru_cache(maxsize=2)
def _rows(split: Split, seed: int) -> tuple[QuestionRow, ...]:
    rng, found, taken = Random(f"questions/{split}/{seed}"), list[QuestionRow](), set[str]()
    facts = load_facts()
    values = facts.pop("values")
    asides = [load_faq()[name]["answer"] for name in _ASIDES]
    while len(found) < _ROWS[split]:
        row = _row(rng, facts, values, asides, split)
        if row.text not in taken:
            taken.add(row.text)
            found.append(row)
    return tuple(found)


def _row(rng: Random, facts: dict[str, Any], values: dict[str, Any], asides: list[str], split: Split) -> QuestionRow:
    asked = pick(rng, list(facts))
    answered = not chance(rng, UNANSWERED)
    confused = chance(rng, _CONFUSED)
    chosen = [asked] if answered else [facts[asked]["beside"]] if confused else []
    others = [name for name in facts if name not in (asked, *chosen)]
    fewest, most = _FACTS
    wanted = fewest + below(rng, most - fewest + 1)
    while len(chosen) < wanted:
        chosen.append(others.pop(below(rng, len(others))))
    order = sorted((rng.random(), name) for name in chosen)
    text = f"{pick(rng, facts[asked]['asked'][split])}\n"
    if chance(rng, _ASIDE):
        text += f"{pick(rng, asides)} "
    start = end = 0
    said = set[str]()
    for place, (_, name) in enumerate(order):
        before, after = facts[name]["said"][split].split("{}")
        value = pick(rng, [each for each in values[facts[name]["kind"]][split] if each not in said])
        said.add(value)
        text += f"{' ' if place else ''}{before}"
        if name == asked:
            start, end = len(text), len(text) + len(value)
        text += f"{value}{after}"
    return QuestionRow(text, start, end)
