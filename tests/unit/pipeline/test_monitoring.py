"""A stream is asked about, counted and judged; cut into calls it comes to the same, and bad input changes nothing."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from deploykit.errors import DataError, UsageError
from deploykit.events import Event, Warn
from deploykit.monitor import SurgeRule
from deploykit.pipeline.monitoring import monitor_stream
from deploykit.report.monitor_page import write_monitor_page
from deploykit.report.monitor_report import monitor_json, monitor_lines

START = datetime(2026, 1, 5)
RULE = SurgeRule(negative="cancel", reference_days=14, false_alarm_days=100)
SURGE_DAY = 17

Row = tuple[str, str]


CANCELLING = ("cancel terminate revoke", "abort and cancel it", "stop terminate withdraw")
OTHER = ("parcel courier tracking", "invoice receipt tax", "password login username", "package driver postman")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """19 days of toy messages; a fifth of each day's are cancellations, on the last two days nearly all."""
    rng = random.Random(3)
    found = []
    for day in range(SURGE_DAY + 2):
        for number in range(20):
            text = rng.choice(CANCELLING if number < (18 if day >= SURGE_DAY else 4) else OTHER)
            time = START + timedelta(days=day, minutes=60 + number)
            found.append((str(time), f"{text} please {rng.choice(('today', 'now', 'again'))}"))
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[Row]], str]:
    folder = tmp_path_factory.mktemp("streams")

    def write(rows: Sequence[Row]) -> str:
        path = folder / f"{len(list(folder.iterdir()))}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("time", "text"), *rows])
        return str(path)

    return write


@pytest.fixture(scope="module")
def whole(trained: Path, rows: list[Row], written: Callable[[Sequence[Row]], str]) -> Any:
    return monitor_stream(str(trained), data=written(rows), rule=RULE, topics=str(trained), threads=1)


def test_a_surge_in_a_stream_is_found_and_shown(whole: Any, tmp_path: Path) -> None:
    (alert,) = whole.judgement.alerts
    assert (alert.began, alert.state) == (START + timedelta(days=SURGE_DAY), "open")
    said = monitor_json(whole)
    assert (said["verdict"], len(said["windows"]), said["classified"]) == ("fail", SURGE_DAY + 2, 20 * (SURGE_DAY + 2))
    assert said["alerts"][0]["negatives"] > 25
    last = said["windows"][-1]
    assert last["share"] > last["usual_high"] > last["usual"] > last["usual_low"]
    assert sum(sum(by.values()) for by in last["counts"].values()) == 20
    assert any(line.startswith("surge since 2026-01-22") for line in monitor_lines(whole))
    page = write_monitor_page(whole, "toys <script>", tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "toys &lt;script&gt;" in page
    assert page.count("<svg") == 2
    assert "surge since 2026-01-22" in page


def test_a_stream_in_pieces_comes_to_the_same(
    trained: Path, rows: list[Row], written: Callable[[Sequence[Row]], str], whole: Any, tmp_path: Path
) -> None:
    """The last window stays open until a message of a later one has come; a call cut in a day loses nothing."""
    state = tmp_path / "state.json"
    calls = [
        rows[:150],
        rows[150:345],
        rows[345:350],
        [*rows[350:], (str(START + timedelta(days=SURGE_DAY + 2)), "hello")],
    ]
    verdicts = []
    for part in calls:
        found = monitor_stream(str(trained), data=written(part), rule=RULE, topics=str(trained), state=state, threads=1)
        verdicts.append(found.judgement.verdict)
    assert verdicts == ["inconclusive", "pass", "pass", "fail"]
    assert found.judgement.alerts == whole.judgement.alerts
    assert found.judgement.points[: SURGE_DAY + 2] == whole.judgement.points
    assert (found.open, found.asked) == (1, 31)


def test_what_comes_too_late_is_refused_and_the_state_stays(
    trained: Path, rows: list[Row], written: Callable[[Sequence[Row]], str], tmp_path: Path
) -> None:
    state = tmp_path / "state.json"
    monitor_stream(str(trained), data=written(rows[:100]), rule=RULE, state=state, threads=1)
    before = state.read_bytes()
    with pytest.raises(DataError, match=r"csv: line 2: 2026-01-05 .* is before 2026-01-09 .* \(80 such messages\)"):
        monitor_stream(str(trained), data=written(rows[:120]), rule=RULE, state=state, threads=1)
    far = [(str(START + timedelta(days=900)), "hello")]
    with pytest.raises(DataError, match="days after the state"):
        monitor_stream(str(trained), data=written(far), rule=RULE, state=state, threads=1)
    hours = SurgeRule(negative="cancel", window_s=3600)
    with pytest.raises(UsageError, match="windows of 86400 s"):
        monitor_stream(str(trained), data=written(rows[100:]), rule=hours, state=state, threads=1)
    with pytest.raises(UsageError, match="without a model of the topics"):
        monitor_stream(str(trained), data=written(rows[100:]), rule=RULE, state=state, threads=1, topics=str(trained))
    assert state.read_bytes() == before


def test_another_model_is_said(
    trained: Path, tiny_checkpoint: Callable[..., Path], rows: list[Row], written: Callable[[Sequence[Row]], str],
    tmp_path: Path,
) -> None:  # fmt: skip
    state, heard = tmp_path / "state.json", list[Event]()
    monitor_stream(str(trained), data=written(rows[:20]), rule=RULE, state=state, threads=1)
    other = tiny_checkpoint("bert")
    monitor_stream(str(other), data=written(rows[20:40]), rule=RULE, state=state, threads=1, listener=heard.append)
    assert any(isinstance(event, Warn) and "another one than before" in event.message for event in heard)


def test_a_label_that_the_model_does_not_know_is_refused(trained: Path, rows: list[Row]) -> None:
    with pytest.raises(UsageError, match="knows no sentiment 'negative'") as raised:
        monitor_stream(str(trained), data="-", stdin=io.BytesIO(b""))
    assert "'cancel'" in raised.value.message
    assert raised.value.hint == "name it: --negative LABEL"


def test_the_command_takes_json_lines_and_its_exit_status_is_the_verdict(
    trained: Path, rows: list[Row], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from deploykit.cli.main import main

    monkeypatch.chdir(tmp_path)

    def run(part: Sequence[Row], *more: str) -> tuple[int, str, str]:
        lines = "\n".join(json.dumps({"time": time, "text": text}) for time, text in part)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
        code = main(
            ["monitor", str(trained), "--data", "-", "--negative", "cancel", "--reference-days", "14", "--threads", "1",
             "--false-alarm-days", "100", *more]
        )  # fmt: skip
        said = capsys.readouterr()
        return code, said.out, said.err

    code, out, _ = run(rows, "--page", "page.html")
    assert (code, out.splitlines()[-1]) == (6, "verdict: surge")
    assert (tmp_path / "page.html").is_file()
    code, out, _ = run(rows[:-40], "--json")
    assert (code, json.loads(out)["verdict"], json.loads(out)["exit_code"]) == (0, "pass", 0)
    code, out, _ = run(rows[:20])
    assert (code, out.splitlines()[-1]) == (5, "verdict: inconclusive")
    code, _, err = run(rows[:20], "--window", "5 days")
    assert (code, err.splitlines()[0]) == (2, "error: '5 days' is no length of time")
    code, _, err = run([("soon", "hello")])
    assert (code, err.splitlines()[0]) == (1, "error: standard input: line 1: 'soon' in 'time' is no time")
