"""Draws entity values; no value of one split can occur in the other."""

from __future__ import annotations

__all__ = ["ENTITY_TYPES", "Split", "Values", "below", "chance", "pick", "weighted"]

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Literal, TypeVar

Split = Literal["train", "test"]

T = TypeVar("T")

_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]


def below(rng: Random, n: int) -> int:
    """A whole number in [0, n), from `Random.random` alone: the one method whose sequence Python promises to keep."""
    return int(rng.random() * n)


def pick(rng: Random, items: Sequence[T]) -> T:
    """One of the items."""
    return items[below(rng, len(items))]


def chance(rng: Random, probability: float) -> bool:
    """True with the given probability."""
    return rng.random() < probability


def weighted(rng: Random, shares: Mapping[str, float]) -> str:
    """One of the names, each as likely as its share of the sum."""
    at = rng.random() * sum(shares.values())
    for name, share in shares.items():
        at -= share
        if at < 0:
            return name
    return list(shares)[-1]


class Values:
    """The entity values of one message: a slot that is named twice gets the same value twice.

    Names keep the splits apart by their lists, numbers by parity: the last digit, the day of the month or the whole
    currency units are even in train and odd in test.
    """

    def __init__(self, rng: Random, lists: dict[str, list[str]], split: Split) -> None:
        self._rng = rng
        self._lists = lists
        self._parity = 0 if split == "train" else 1
        self._drawn: dict[str, str] = {}

    def __getitem__(self, slot: str) -> tuple[str, str]:
        """The value and the entity type of a slot such as `product` or `product2` (a second, different product)."""
        entity_type, draw = _SLOTS[slot.rstrip("23")]
        key = entity_type + slot[-1] if slot[-1] in "23" else entity_type
        while key not in self._drawn:
            value = draw(self)
            if value not in self._drawn.values():
                self._drawn[key] = value
        return self._drawn[key], entity_type

    def _number(self, low: int, high: int) -> int:
        """A number of this split's parity in [low, high)."""
        return low + below(self._rng, (high - low) // 2) * 2 + (low + self._parity) % 2

    def _listed(self, *names: str) -> str:
        return pick(self._rng, [value for name in names for value in self._lists[name]])

    def _order(self) -> str:
        n = self._number(100_000, 1_000_000)
        return pick(self._rng, (f"{n}", f"#{n}", f"ORD-{n}", f"No. {n}", f"B{n // 1000}-{n % 1000:03}"))

    def _tracking(self) -> str:
        n = self._number(100_000_000, 1_000_000_000)
        spaced = f"PQ {n // 1_000_000} {n // 1000 % 1000:03} {n % 1000:03}"
        return pick(self._rng, (f"TRK{n}", f"ZX-{n // 100_000}-{n % 100_000:05}", spaced))

    def _date(self) -> str:
        day, month, year = self._number(2, 28), 1 + below(self._rng, 12), pick(self._rng, (2025, 2026))
        name = _MONTHS[month - 1]
        suffix = "th" if 10 < day < 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
        return pick(
            self._rng,
            (
                f"{day} {name}",
                f"{name} {day}",
                f"{name[:3]} {day}",
                f"the {day}{suffix} of {name}",
                f"{day:02}/{month:02}/{year}",
                f"{year}-{month:02}-{day:02}",
            ),
        )

    def _amount(self) -> str:
        whole, cents = self._number(4, 400), pick(self._rng, (0, 49, 50, 90, 95, 99))
        exact = (f"${whole}.{cents:02}", f"{whole},{cents:02} €", f"{whole}.{cents:02} USD")
        return pick(self._rng, (*exact, f"£{whole}", f"€{whole}", f"{whole} euros"))

    def _person(self) -> str:
        first, last = self._listed("first_name"), self._listed("last_name")
        return pick(self._rng, (first, f"{first} {last}"))

    def _email(self) -> str:
        name = unicodedata.normalize("NFKD", f"{self._listed('first_name')} {self._listed('last_name')}")
        first, last = name.encode("ascii", "ignore").decode().lower().split()
        numbered = f"{first}.{last}{below(self._rng, 90) + 10}"
        local = pick(self._rng, (f"{first}.{last}", f"{first[0]}{last}", f"{last}_{first}", numbered))
        return f"{local}@example.{pick(self._rng, ('com', 'org', 'net'))}"

    def _phone(self) -> str:
        """A number kept free for fiction (North America 555-01xx; United Kingdom 07700 900xxx and 020 7946 0xxx)."""
        n, area = self._number(100, 1000), pick(self._rng, (212, 303, 617))
        return pick(self._rng, (f"+1 ({area}) 555-01{n % 100:02}", f"07700 900{n}", f"020 7946 0{n}"))


_SLOTS: dict[str, tuple[str, Callable[[Values], str]]] = {
    "order": ("order_number", Values._order),
    "tracking": ("tracking_number", Values._tracking),
    "product": ("product", lambda values: values._listed("device", "wearable", "household")),
    "device": ("product", lambda values: values._listed("device")),
    "wearable": ("product", lambda values: values._listed("wearable")),
    "date": ("date", Values._date),
    "amount": ("amount", Values._amount),
    "person": ("person", Values._person),
    "city": ("city", lambda values: values._listed("city")),
    "email": ("email", Values._email),
    "phone": ("phone", Values._phone),
}

ENTITY_TYPES = tuple(dict.fromkeys(entity_type for entity_type, _ in _SLOTS.values()))
"""The nine entity types."""
