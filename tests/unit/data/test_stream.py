"""A stream's times are read, put on one clock, and refused with their row where they are none."""

from __future__ import annotations

import io
import json
from datetime import datetime
from pathlib import Path

import pytest

from deploykit.data.sample import stream_rows
from deploykit.data.stream import read_stream
from deploykit.errors import DataError, UsageError


def written(path: Path, *times: object) -> str:
    path.write_text("\n".join(["time,text", *(f"{time},hello" for time in times)]) + "\n")
    return str(path)


def test_times_with_a_zone_come_on_the_clock_that_is_asked_for(tmp_path: Path) -> None:
    data = written(tmp_path / "s.csv", "2026-01-31T23:30:00Z", "2026-02-01T00:10:00+01:00")
    assert read_stream(data).times == (datetime(2026, 1, 31, 23, 30), datetime(2026, 1, 31, 23, 10))
    assert read_stream(data, zone="Europe/Berlin").times[0] == datetime(2026, 2, 1, 0, 30)


def test_times_without_a_zone_stay_as_they_are(tmp_path: Path) -> None:
    data = written(tmp_path / "s.csv", "2026-01-31 23:30:00", "2026-02-01")
    assert read_stream(data, zone="Asia/Tokyo").times == (datetime(2026, 1, 31, 23, 30), datetime(2026, 2, 1))


def test_seconds_and_milliseconds_since_1970_are_times() -> None:
    lines = [
        {"time": 1767614400, "text": "a"},
        {"time": 1767614400500, "text": "b"},
        {"time": "1767614400", "text": "c"},
    ]
    stdin = io.BytesIO("\n".join(map(json.dumps, lines)).encode())
    assert {time.replace(microsecond=0) for time in read_stream("-", stdin=stdin).times} == {datetime(2026, 1, 5, 12)}


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (("2026-01-01", "yesterday"), "line 3: 'yesterday' in 'time' is no time"),
        (("2026-01-01", ""), "line 3: no time in 'time'"),
        (("2026-01-01", "2026-01-02T00:00:00Z"), "line 3: this time has a zone and others have none"),
        (("2026-01-01", "0206-01-01"), "line 3: 0206-01-01 is 664,"),
        (("2026-01-01", "2026-13-01"), "is no time"),
    ],
)
def test_a_time_that_is_none_is_refused_with_its_row(tmp_path: Path, times: tuple[str, ...], message: str) -> None:
    """FAULTS 32."""
    with pytest.raises(DataError, match=r"s\.csv: ") as raised:
        read_stream(written(tmp_path / "s.csv", *times))
    assert message in raised.value.message
    assert "\n" not in raised.value.message
    assert raised.value.hint


def test_a_missing_column_and_a_wrong_zone_say_what_to_do(tmp_path: Path) -> None:
    data = written(tmp_path / "s.csv", "2026-01-01")
    with pytest.raises(DataError, match="no column 'when'") as raised:
        read_stream(data, time="when")
    assert "--time" in str(raised.value.hint)
    with pytest.raises(UsageError, match="is no time zone"):
        read_stream(data, zone="Mars/Olympus")


def test_lines_on_standard_input_are_named_by_their_number() -> None:
    with pytest.raises(DataError, match="standard input: line 2: not valid JSON"):
        read_stream("-", stdin=io.BytesIO(b'{"time": "2026-01-01", "text": "a"}\n{"time"\n'))


def test_both_shipped_streams_are_the_same_up_to_the_surge_and_sorted() -> None:
    quiet, surge = stream_rows("quiet"), stream_rows("surge")
    first = next(number for number, row in enumerate(surge) if row.time >= "2026-02-16")
    assert quiet[:first] == surge[:first]
    assert [row.time for row in surge] == sorted(row.time for row in surge)

    def share(rows: list, topic: str) -> float:
        own = [row.sentiment == "negative" for row in rows[first:] if row.topic == topic and row.time < "2026-02-26"]
        return sum(own) / len(own)

    assert share(surge, "delivery") > 1.7 * share(quiet, "delivery")
    assert abs(share(surge, "billing") - share(quiet, "billing")) < 0.08
