"""Messages with the time at which they came."""

from __future__ import annotations

__all__ = ["Stream", "read_stream"]

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import BinaryIO
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from deploykit.data.readers import jsonl_rows, read_rows
from deploykit.data.table import Columns, Table, table_from_rows
from deploykit.errors import DataError, UsageError

STDIN = "-"
"""The reference of standard input: an object of JSON on each line."""

_EPOCH = re.compile(r"\d{9,16}(\.\d+)?")
_MILLISECONDS = 1e11
"""A number of seconds above this is one of milliseconds: as seconds it would be in the year 5138."""
_LONGEST_GAP_DAYS = 366
"""A longer one is a time that is wrong."""


@dataclass(frozen=True)
class Stream:
    """Messages in the order of their source.

    Attributes:
        table: the messages.
        times: when each came, on the clock of the stream's zone, without a zone.
    """

    table: Table
    times: tuple[datetime, ...]


@dataclass(frozen=True)
class _Moment:
    """The label form of a time: ISO 8601, or seconds or milliseconds since 1970."""

    column: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def read(self, text: str, values: Sequence[object], where: str) -> str:
        """The time in ISO 8601.

        Raises:
            DataError: it is missing, or no time.
        """
        (value,) = values
        if isinstance(value, datetime):
            return value.isoformat()
        said = "" if value is None or isinstance(value, bool) else str(value).strip()
        if not said:
            raise DataError(f"{where}: no time in {self.column!r}", "every message needs the time at which it came")
        try:
            if _EPOCH.fullmatch(said):
                number = float(said)
                return datetime.fromtimestamp(number / (1000 if number > _MILLISECONDS else 1), UTC).isoformat()
            return datetime.fromisoformat(said).isoformat()
        except (ValueError, OverflowError, OSError):
            hint = "write times as 2026-01-31 14:05:00, with a zone as 2026-01-31T14:05:00+01:00, or seconds since 1970"
            raise DataError(f"{where}: {said[:40]!r} in {self.column!r} is no time", hint) from None

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        return tuple(classes)


def read_stream(
    reference: str, *, text: str = "text", time: str = "time", zone: str = "UTC", stdin: BinaryIO | None = None
) -> Stream:
    """The messages of a stream with their times, in any order.

    Args:
        reference: as for `read_rows`, or `-` for standard input.
        text: the column of the message.
        time: the column of its time. A time without a zone is taken as it is; one with a zone, and a number of seconds
            or milliseconds since 1970, is put on the clock of `zone`.
        zone: such as Europe/Berlin.
        stdin: what `-` stands for.

    Raises:
        DataError: a row can't be used, a time is missing or none, times with and without a zone stand side by side, or
            there is a gap of more than a year.
        UsageError: there is no such zone.
    """
    try:
        clock = ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise UsageError(f"{zone!r} is no time zone", "name one such as UTC or Europe/Berlin") from error
    columns = Columns(text, _Moment(time), hint="name the columns: --text COLUMN --time COLUMN")
    if reference == STDIN and stdin is not None:
        table = table_from_rows("standard input", "line", columns, jsonl_rows(stdin, "standard input", columns))
    else:
        table = read_rows(reference, columns)
    found = [datetime.fromisoformat(str(label)) for label in table.labels or ()]
    zoned = [moment.tzinfo is not None for moment in found]
    if any(zoned) and not all(zoned):
        first = zoned.index(not zoned[0])
        which = "has a zone and others have none" if zoned[first] else "has no zone and others have one"
        raise DataError(f"{table.at(first)}: this time {which}", "give all of them a zone, or none")
    times = tuple(each.astimezone(clock).replace(tzinfo=None) if each.tzinfo else each for each in found)
    order = sorted(range(len(times)), key=times.__getitem__)
    for earlier, later in itertools.pairwise(order):
        if (gap := (times[later] - times[earlier]).days) > _LONGEST_GAP_DAYS:
            alone = earlier if order.index(earlier) < len(order) / 2 else later
            raise DataError(
                f"{table.at(alone)}: {times[alone].date()} is {gap:,} days from the next message",
                "is that time right?",
            )
    return Stream(table, times)
