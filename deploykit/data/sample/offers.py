"""What customers of the same shop looked at and bought, and what they bought next: for recommendation.

Every customer has an interest that nobody is told. What comes next follows from it, from what was done with the item
before, and from what is wanted by everybody; so the best possible ranking can be computed.
"""

from __future__ import annotations

__all__ = ["OFFER_PLAN", "Event", "OfferEntry", "OfferPlan", "OfferRow", "next_shares", "offer_entries", "offer_rows"]

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from random import Random

from .templates import load_catalogue
from .values import Split, below, chance, weighted


@dataclass(frozen=True)
class OfferPlan:
    """What the histories are drawn with; all of it was fixed before a model was tried on it.

    Attributes:
        rows: of each split.
        events: of a history: the fewest and the most.
        loyal: how likely an event is about the customer's interest, and not about anything that is wanted.
        accounts: the interests that each kind of account has `favour` times as often; all kinds are as common.
        favour: by how much.
        kinds: what is done with an item of the own interest, and with another.
        follow: how likely the next purchase is what the last event calls for: the item that goes with one that was
            bought, or the item itself where it was viewed.
        stray: of what is left, how likely it is anything that is wanted, and not of the customer's interest.
    """

    rows: Mapping[Split, int] = field(default_factory=lambda: {"train": 6000, "test": 2000})
    events: tuple[int, int] = (2, 4)
    loyal: float = 0.75
    accounts: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "student": ("coffee", "cycling", "office"),
            "family": ("children", "baking", "bedroom"),
            "club": ("camping", "running", "cycling"),
            "homeowner": ("garden", "pets", "bedroom"),
        }
    )
    favour: float = 3.0
    kinds: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: {
            "bought": (0.40, 0.15),
            "viewed": (0.25, 0.45),
            "viewed often": (0.25, 0.10),
            "returned": (0.10, 0.30),
        }
    )
    follow: Mapping[str, float] = field(
        default_factory=lambda: {"bought": 0.45, "viewed": 0.10, "viewed often": 0.50, "returned": 0.0}
    )
    stray: float = 0.2


OFFER_PLAN = OfferPlan()
_WORDS = {
    "bought": "bought {}", "viewed": "viewed {}", "viewed often": "viewed {} 5 times", "returned": "returned {}"
}  # fmt: skip


@dataclass(frozen=True)
class Event:
    """What a customer did with an item."""

    kind: str
    item: str


@dataclass(frozen=True)
class OfferRow:
    """A customer's account and history, the latest last, as the shop writes it down, and what was bought next."""

    text: str
    label: str
    account: str
    events: tuple[Event, ...]


@dataclass(frozen=True)
class OfferEntry:
    """An item: its title and what it is, the title again as its name, and what it is for its page."""

    text: str
    label: str
    answer: str


def offer_entries() -> list[OfferEntry]:
    """The 80 items of the shop."""
    return [
        OfferEntry(f"{title}: {said}", title, f"{said[0].upper()}{said[1:]}.")
        for interest in load_catalogue().values()
        for title, said, _ in interest["items"]
    ]


def offer_rows(split: Split, seed: int = 0) -> list[OfferRow]:
    """Histories with the next purchase: 6,000 rows of train or 2,000 of test; no history is there twice.

    The same on every platform and Python version.
    """
    return list(_splits(seed)[split])


@lru_cache(maxsize=1)
def _splits(seed: int) -> dict[Split, list[OfferRow]]:
    taken: set[str] = set()
    return {split: _rows(split, seed, taken) for split in ("train", "test")}


def _rows(split: Split, seed: int, taken: set[str]) -> list[OfferRow]:
    rng, found = Random(f"offers/{split}/{seed}"), list[OfferRow]()
    while len(found) < OFFER_PLAN.rows[split]:
        row = _row(rng, OFFER_PLAN)
        if row.text not in taken:  # by the history alone, so that what comes next stays as likely as it was
            taken.add(row.text)
            found.append(row)
    return found


def _row(rng: Random, plan: OfferPlan) -> OfferRow:
    account = list(plan.accounts)[below(rng, len(plan.accounts))]
    interest = weighted(rng, _interests(account))
    fewest, most = plan.events
    events = []
    for _ in range(fewest + below(rng, most - fewest + 1)):
        own = chance(rng, plan.loyal)
        kind = weighted(rng, {name: shares[not own] for name, shares in plan.kinds.items()})
        events.append(Event(kind, weighted(rng, _wanted()[interest if own else ""])))
    target, likely = _called_for(events[-1])
    label = target if chance(rng, likely) else weighted(rng, _wanted()["" if chance(rng, plan.stray) else interest])
    said = "; ".join(_WORDS[event.kind].format(event.item) for event in events)
    return OfferRow(f"{account}: {said}", label, account, tuple(events))


def next_shares(row: OfferRow, *, features: bool = True) -> dict[str, float]:
    """How likely each item is the next purchase, by what the row tells and the plan: the best that can be known.

    Args:
        row: its account and events count; what was bought does not.
        features: whether account and kinds of events are known; else the items alone are.
    """
    plan, wanted = OFFER_PLAN, _wanted()
    kinds = [[event.kind] if features else list(plan.kinds) for event in row.events]
    accounts = [row.account] if features else list(plan.accounts)
    total: dict[str, float] = dict.fromkeys(wanted[""], 0.0)
    for interest in load_catalogue():
        prior = math.fsum(_interests(account)[interest] for account in accounts)
        by_event = [
            {
                kind: plan.loyal * plan.kinds[kind][0] * wanted[interest].get(event.item, 0.0)
                + (1 - plan.loyal) * plan.kinds[kind][1] * wanted[""][event.item]
                for kind in known
            }
            for event, known in zip(row.events, kinds, strict=True)
        ]
        before = prior * math.prod(math.fsum(each.values()) for each in by_event[:-1])
        for kind, share in by_event[-1].items():
            target, likely = _called_for(Event(kind, row.events[-1].item))
            weight = before * share
            total[target] += weight * likely
            for item, of_all in wanted[""].items():
                of_own = wanted[interest].get(item, 0.0)
                total[item] += weight * (1 - likely) * (plan.stray * of_all + (1 - plan.stray) * of_own)
    whole = math.fsum(total.values())
    return {item: share / whole for item, share in total.items()}


def _called_for(event: Event) -> tuple[str, float]:
    """The item that an event calls for, and how likely it is the next purchase for that reason."""
    target = _partners()[event.item] if event.kind == "bought" else event.item
    return target, OFFER_PLAN.follow[event.kind]


@cache
def _interests(account: str) -> dict[str, float]:
    """How likely each interest is with a kind of account."""
    favoured = OFFER_PLAN.accounts[account]
    weights = {
        name: interest["share"] * (OFFER_PLAN.favour if name in favoured else 1.0)
        for name, interest in load_catalogue().items()
    }
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


@cache
def _wanted() -> dict[str, dict[str, float]]:
    """How likely each item is within an interest, and under "" among all items."""
    catalogue = load_catalogue()
    whole = sum(interest["share"] for interest in catalogue.values())
    found: dict[str, dict[str, float]] = {"": {}}
    for name, interest in catalogue.items():
        weights = {title: weight for title, _, weight in interest["items"]}
        found[name] = {title: weight / sum(weights.values()) for title, weight in weights.items()}
        found[""] |= {title: share * interest["share"] / whole for title, share in found[name].items()}
    return found


@cache
def _partners() -> dict[str, str]:
    """The item that goes with each."""
    titles = [title for interest in load_catalogue().values() for title, _, _ in interest["items"]]
    return {title: titles[place ^ 1] for place, title in enumerate(titles)}
