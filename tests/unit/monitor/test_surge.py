"""A surge is found soon, named, and ended; quiet weeks, sales and Mondays raise no alarm."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from deploykit.errors import ArtifactError, UsageError
from deploykit.monitor import Alert, SurgeRule, Window, judge_stream
from deploykit.monitor.state import read_state, state_of, write_state

MONDAY = datetime(2026, 1, 5)
TOPICS = {"delivery": 40, "billing": 40, "account": 20}
RULE = SurgeRule()


def stream(
    days: int, seed: int, *, surge: Callable[[int, str], float] = lambda day, topic: 1.0,
    volume: Callable[[int], float] = lambda day: 1.0, weekday: Sequence[float] = (1.0,) * 7, base: float = 0.2,
) -> list[Window]:  # fmt: skip
    """Days of messages: `surge`, by day and topic, and `weekday` multiply the odds of a negative one."""
    rng = np.random.default_rng(seed)
    found = []
    for day in range(days):
        counts = {}
        for topic, mean in TOPICS.items():
            odds = base / (1 - base) * weekday[day % 7] * surge(day, topic)
            messages = rng.poisson(mean * volume(day))
            negatives = rng.binomial(messages, odds / (1 + odds))
            counts |= {(topic, "negative"): int(negatives), (topic, "neutral"): int(messages - negatives)}
        found.append(Window(MONDAY + timedelta(days=day), {key: count for key, count in counts.items() if count}))
    return found


def delivery_fails(day: int, topic: str) -> float:
    return 4.0 if topic == "delivery" and 40 <= day < 52 else 1.0


def one_alert(windows: Sequence[Window]) -> Alert:
    (alert,) = judge_stream(windows, RULE).alerts
    return alert


def test_a_surge_is_found_dated_and_laid_to_its_topic() -> None:
    windows = stream(46, 1, surge=delivery_fails)
    alert = one_alert(windows)
    assert abs((alert.began - MONDAY).days - 40) <= 1
    assert 40 <= (alert.found - MONDAY).days <= 44
    assert alert.state == "open"
    assert alert.ratio > 1.5
    assert [share.topic for share in alert.topics] == ["delivery"]
    assert alert.evidence >= RULE.limit
    assert judge_stream(windows, RULE).verdict == "fail"


def test_it_ends_and_what_came_then_is_not_what_is_usual() -> None:
    judged = judge_stream(stream(80, 1, surge=delivery_fails), RULE)
    (alert,) = judged.alerts
    assert alert.state == "ended"
    assert alert.ended is not None
    assert abs((alert.ended - MONDAY).days - 52) <= 2
    assert judged.points[-1].usual == pytest.approx(0.2, abs=0.03)


def test_a_level_that_stays_becomes_what_is_usual() -> None:
    judged = judge_stream(stream(120, 2, surge=lambda day, topic: 4.0 if day >= 40 else 1.0), RULE)
    assert [alert.state for alert in judged.alerts] == ["settled"]
    assert judged.points[-1].usual == pytest.approx(0.5, abs=0.05)
    assert judged.verdict == "fail"
    assert (
        judge_stream(stream(120, 2, surge=lambda day, topic: 4.0 if day >= 40 else 1.0), RULE, new=5).verdict == "pass"
    )


def test_quiet_weeks_mondays_and_sales_raise_no_alarm() -> None:
    """A bound of one false alarm a year leaves 10 streams of 60 days less than two in the mean."""
    alarms = 0
    for seed in range(10):
        volume = lambda day: 3.0 if day in (45, 46, 47) else 0.5 if day % 7 >= 5 else 1.0  # noqa: E731
        windows = stream(28 + 60, 100 + seed, volume=volume, weekday=(1.8, 1, 1, 1, 1, 0.7, 0.7))
        alarms += len(judge_stream(windows, RULE).alerts)
    assert alarms <= 3


def test_a_surge_of_the_usual_monday_size_on_a_friday_is_one() -> None:
    """What the days of the week excuse, they excuse on their day only."""
    weekday = (2.5, 1, 1, 1, 1, 1, 1)
    windows = stream(70, 5, weekday=weekday, surge=lambda day, topic: 2.5 if day >= 60 and day % 7 != 0 else 1.0)
    found = [(alert.found - MONDAY).days for alert in judge_stream(windows, RULE).alerts]
    assert found
    assert min(found) in (60, 61, 62)


def test_windows_without_messages_are_no_evidence() -> None:
    windows = stream(45, 6)
    quiet = judge_stream(windows, RULE)
    gap = [Window(MONDAY + timedelta(days=45 + day), {}) for day in range(20)]
    judged = judge_stream([*windows, *gap], RULE)
    assert judged.alerts == quiet.alerts == ()
    assert judged.points[-1].share is None


@pytest.mark.parametrize("days", [1, 27])
def test_nothing_is_judged_before_what_is_usual_is_known(days: int) -> None:
    judged = judge_stream(stream(days, 7), RULE)
    assert (judged.verdict, judged.learning) == ("inconclusive", 28 - days)
    assert all(point.usual is None for point in judged.points)


def test_a_few_messages_are_too_little_to_learn_from() -> None:
    windows = stream(60, 8, volume=lambda day: 0.002)
    assert judge_stream(windows, RULE).verdict == "inconclusive"


@pytest.mark.parametrize(
    "settings",
    [{"window_s": 100_000}, {"window_s": 30}, {"reference_days": 3}, {"false_alarm_days": 0.5}, {"window_s": 0}],
)
def test_a_rule_that_makes_no_sense_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        SurgeRule(**settings)  # type: ignore[arg-type]


def test_smaller_windows_find_a_surge_the_same_day() -> None:
    rule = SurgeRule(window_s=6 * 3600)
    windows = []
    for number, window in enumerate(stream(44, 9, surge=delivery_fails)):
        for part in range(4):
            counts = {key: (count + part) // 4 for key, count in window.counts.items() if (count + part) // 4}
            windows.append(Window(MONDAY + timedelta(days=number, hours=6 * part), counts))
    alert = judge_stream(windows, rule).alerts[-1]
    assert alert.began >= MONDAY + timedelta(days=39)
    assert rule.limit == 4 * 365


def test_the_state_comes_back_as_it_was(tmp_path: Path) -> None:
    windows = stream(5, 10)
    path = tmp_path / "deep" / "state.json"
    kept = state_of(windows, window_s=86400, zone="UTC", models={"sentiment": "a"}, closed=4)
    write_state(path, kept)
    found = read_state(path)
    assert found is not None
    assert [each.window() for each in found.windows] == windows
    assert found == kept
    assert read_state(tmp_path / "none.json") is None


@pytest.mark.parametrize("damage", ["", "{}", "[1", '{"version": 2}', "\x00"])
def test_a_damaged_state_is_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(damage)
    with pytest.raises(ArtifactError, match="is no monitor's state") as raised:
        read_state(path)
    assert "\n" not in raised.value.message


def test_a_count_below_zero_in_a_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_state(path, state_of(stream(1, 1), window_s=86400, zone="UTC", models={}, closed=0))
    content = json.loads(path.read_text())
    content["windows"][0]["counts"]["delivery"]["negative"] = -1
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="is no monitor's state"):
        read_state(path)
