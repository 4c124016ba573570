"""Messages fall into windows that begin with the week; those without a message are there too."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.monitor.windows import phase_of, window_start, windows_of

MONDAY = datetime(2026, 1, 5)


def test_windows_begin_on_monday_at_midnight() -> None:
    assert window_start(datetime(2026, 1, 8, 13, 5), 7 * 86400) == MONDAY
    assert window_start(datetime(2026, 1, 8, 13, 5), 6 * 3600) == datetime(2026, 1, 8, 12)
    assert [phase_of(MONDAY + timedelta(days=day), 86400) for day in (0, 6, 7)] == [0, 6, 0]


def test_a_window_without_a_message_is_counted_as_one() -> None:
    """FAULTS 66."""
    found = windows_of([(MONDAY, "a", "good"), (MONDAY + timedelta(days=3), "a", "bad")], 86400)
    assert [window.messages for window in found] == [1, 0, 0, 1]
    assert windows_of([], 86400) == ()


def test_messages_join_the_windows_that_were_counted_before() -> None:
    first = windows_of([(MONDAY, "a", "bad")], 86400)
    both = windows_of([(MONDAY + timedelta(hours=3), "a", "bad"), (MONDAY, "b", "good")], 86400, before=first)
    assert [(window.start, dict(window.counts)) for window in both] == [(MONDAY, {("a", "bad"): 2, ("b", "good"): 1})]
    assert (both[0].of(topic="a"), both[0].of(sentiment="good"), both[0].messages) == (2, 1, 3)


@given(
    hours=st.lists(st.integers(0, 24 * 40), min_size=1, max_size=60),
    seconds=st.sampled_from([3600, 6 * 3600, 86400, 7 * 86400]),
)
def test_every_message_is_in_one_window_and_windows_follow_each_other(hours: list[int], seconds: int) -> None:
    found = windows_of([(MONDAY + timedelta(hours=hour), "t", "s") for hour in hours], seconds)
    assert sum(window.messages for window in found) == len(hours)
    starts = [window.start for window in found]
    assert all((later - earlier).total_seconds() == seconds for earlier, later in itertools.pairwise(starts))


@pytest.mark.parametrize("seconds", [3600, 86400])
def test_the_order_of_messages_does_not_matter(seconds: int) -> None:
    messages = [(MONDAY + timedelta(hours=5 * number), "t", "s") for number in range(30)]
    assert windows_of(messages, seconds) == windows_of(messages[::-1], seconds)
