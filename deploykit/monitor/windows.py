"""What was said in each window of time: messages counted by topic and sentiment."""

from __future__ import annotations

__all__ = ["WEEK_S", "Window", "phase_of", "window_start", "windows_of"]

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

WEEK_S = 7 * 86400
_MONDAY = datetime(1970, 1, 5)


@dataclass(frozen=True)
class Window:
    """One window of a stream.

    Attributes:
        start: when it begins, on the stream's own clock, without a time zone.
        counts: messages by (topic, sentiment); none of them is 0.
    """

    start: datetime
    counts: Mapping[tuple[str, str], int]

    @property
    def messages(self) -> int:
        """How many came in it."""
        return sum(self.counts.values())

    def of(self, *, topic: str | None = None, sentiment: str | None = None) -> int:
        """How many of them are of this topic, and of this sentiment; of any where None is given."""
        return sum(
            count
            for (its_topic, its_sentiment), count in self.counts.items()
            if topic in (None, its_topic) and sentiment in (None, its_sentiment)
        )


def window_start(time: datetime, seconds: int) -> datetime:
    """When the window begins that a time lies in; windows begin with the week, on Monday at midnight."""
    return time - timedelta(seconds=(time - _MONDAY).total_seconds() % seconds)


def phase_of(start: datetime, seconds: int) -> int:
    """Which of its week's windows this is, from 0."""
    return int((start - _MONDAY).total_seconds() % WEEK_S) // seconds


def windows_of(
    messages: Iterable[tuple[datetime, str, str]], seconds: int, *, before: Iterable[Window] = ()
) -> tuple[Window, ...]:
    """The windows of a stream from its first message to its last, those without a message among them.

    Args:
        messages: time, topic and sentiment of each, in any order.
        seconds: of a window; it divides a week.
        before: windows that were counted earlier; messages that fall into them are added.
    """
    counted: dict[datetime, Counter[tuple[str, str]]] = {window.start: Counter(window.counts) for window in before}
    for time, topic, sentiment in messages:
        counted.setdefault(window_start(time, seconds), Counter())[topic, sentiment] += 1
    if not counted:
        return ()
    step, start, last = timedelta(seconds=seconds), min(counted), max(counted)
    found = []
    while start <= last:
        found.append(Window(start, dict(sorted(counted.get(start, Counter()).items()))))
        start += step
    return tuple(found)
