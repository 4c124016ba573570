"""What a long call reports while it runs; the library emits events, the command line draws them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["Event", "Listener", "Note", "Progress", "StageFinished", "StageStarted", "Warn", "ignore"]


@dataclass(frozen=True)
class StageStarted:
    """A stage begins work (it was not found in the cache)."""

    stage: str


@dataclass(frozen=True)
class Progress:
    """A stage has done `done` of `total` units; `figures` are its latest loss, metric and the like."""

    stage: str
    done: int
    total: int
    unit: str = "step"
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StageFinished:
    """A stage has its result: `cached` when it was found and not made; `outcome` says in words what it is."""

    stage: str
    seconds: float
    cached: bool = False
    outcome: str = ""


@dataclass(frozen=True)
class Note:
    """Something worth telling."""

    message: str


@dataclass(frozen=True)
class Warn:
    """Something that a person should look at, though the call goes on."""

    message: str


Event = StageStarted | Progress | StageFinished | Note | Warn
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener that hears nothing."""
