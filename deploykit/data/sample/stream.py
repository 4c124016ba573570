"""A stream of the shop's messages over some weeks, quiet or with a surge of displeasure in one topic."""

from __future__ import annotations

__all__ = ["SURGE", "StreamPlan", "StreamRow", "Surge", "negative_share", "stream_rows"]

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Literal

from .feelings import FeltWriter
from .values import below, chance, weighted

_MORNING_S, _EVENING_S = 7 * 3600, 23 * 3600


@dataclass(frozen=True)
class Surge:
    """Displeasure about one topic rises: its odds are multiplied.

    Attributes:
        topic: which.
        first_day: the first day of it, counted from 0.
        days: how long it lasts.
        odds: by what the odds of a negative message among those about the topic are multiplied.
    """

    topic: str = "delivery"
    first_day: int = 42
    days: int = 10
    odds: float = 3.0


@dataclass(frozen=True)
class StreamPlan:
    """What a stream is drawn with; all of it was fixed before a monitor was tried on it.

    Attributes:
        days: how long it is, from a Monday on.
        messages: expected by weekday, Monday first.
        volume_spread: standard deviation of the logarithm of a day's volume.
        topics: the share of each.
        negative: the share of negative messages on a day whose factor is 1.
        weekday_odds: what its odds are multiplied by on each weekday.
        day_spread: standard deviation of their logarithm from day to day, beyond that.
        sale: first day, days, and factor of a rise in volume that changes no share.
        surge: displeasure that is no chance.
    """

    days: int = 58
    messages: tuple[float, ...] = (150, 130, 120, 120, 125, 90, 65)
    volume_spread: float = 0.12
    topics: tuple[tuple[str, float], ...] = (
        ("delivery", 0.24), ("returns", 0.16), ("checkout", 0.16), ("billing", 0.14), ("orders", 0.14),
        ("account", 0.09), ("service", 0.07),
    )  # fmt: skip
    negative: float = 0.16
    weekday_odds: tuple[float, ...] = (1.3, 1.1, 1.0, 1.0, 0.95, 0.85, 0.85)
    day_spread: float = 0.1
    sale: tuple[int, int, float] = (36, 3, 2.0)
    surge: Surge | None = None


SURGE = Surge()
"""The surge of `sample:stream/surge`."""
_POSITIVE = 0.25
"""The share of positive messages among those that are not negative."""
_START = datetime(2026, 1, 5)  # a Monday


@dataclass(frozen=True)
class StreamRow:
    """One message of a stream: when it came, and what it truly is."""

    time: str
    text: str
    sentiment: str
    topic: str


def negative_share(plan: StreamPlan, day: int, topic: str, log_odds: float = 0.0) -> float:
    """The probability that a message about a topic is negative on a day, whose own log odds are added."""
    odds = plan.negative / (1 - plan.negative) * plan.weekday_odds[day % 7] * math.exp(log_odds)
    surge = plan.surge
    if surge is not None and topic == surge.topic and surge.first_day <= day < surge.first_day + surge.days:
        odds *= surge.odds
    return odds / (1 + odds)


def stream_rows(name: Literal["quiet", "surge"], seed: int = 0) -> list[StreamRow]:
    """The stream `quiet` (4 weeks and 30 days more) or `surge`, in the order of time; the test split's sentences.

    Up to the surge both have the same messages.
    """
    plan = StreamPlan(surge=SURGE if name == "surge" else None)
    rows = []
    for day in range(plan.days):
        rng = Random(f"stream/{seed}/{day}")
        writer = FeltWriter("test", rng)
        first, days, factor = plan.sale
        expected = plan.messages[day % 7] * (factor if first <= day < first + days else 1.0)
        expected *= math.exp(plan.volume_spread * _normal(rng))
        own = plan.day_spread * _normal(rng)
        times = sorted(_MORNING_S + below(rng, _EVENING_S - _MORNING_S) for _ in range(round(expected)))
        for seconds in times:
            topic = weighted(rng, dict(plan.topics))
            sentiment = "negative" if chance(rng, negative_share(plan, day, topic, own)) else "neutral"
            if sentiment == "neutral" and chance(rng, _POSITIVE):
                sentiment = "positive"
            row = writer.row(sentiment, topic)
            time = _START + timedelta(days=day, seconds=seconds)
            rows.append(StreamRow(time.isoformat(sep=" "), row.text, sentiment, topic))
    return rows


def _normal(rng: Random) -> float:
    """A standard normal draw, from `Random.random` alone (Box and Muller)."""
    return math.sqrt(-2 * math.log(1 - rng.random())) * math.cos(2 * math.pi * rng.random())
