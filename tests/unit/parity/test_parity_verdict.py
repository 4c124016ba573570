"""A verdict never rests on nothing, and the worst one decides."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import ParityError
from deploykit.parity.verdict import Outcome, Verdict, about, overall, paired_count


def verdict(outcome: Outcome = "pass", figure: float | None = 0.0, n: int = 10, limit: float | None = 0.01) -> Verdict:
    return Verdict("drop", outcome, figure, bound=0.001, limit=limit, n=n, unit="fraction")


def test_combining_nothing_is_an_error() -> None:
    with pytest.raises(ParityError, match="nothing was checked"):
        overall([])


@given(st.lists(st.sampled_from(get_args(Outcome)), min_size=1))
def test_fail_outranks_inconclusive_outranks_pass(outcomes: list[Outcome]) -> None:
    expected = next(outcome for outcome in ("fail", "inconclusive", "pass") if outcome in outcomes)
    assert overall(verdict(outcome) for outcome in outcomes) == expected


def test_a_verdict_on_no_items_is_an_error() -> None:
    with pytest.raises(ParityError, match="nothing was compared"):
        verdict(n=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_row_48_nan_never_becomes_a_verdict(value: float) -> None:
    with pytest.raises(ParityError, match="figure"):
        verdict(figure=value)
    with pytest.raises(ParityError, match="limit"):
        verdict(limit=value)


def test_a_pass_needs_a_figure() -> None:
    with pytest.raises(ParityError, match="figure"):
        verdict(figure=None)
    assert verdict("fail", figure=None).figure is None


def test_an_unknown_outcome_is_refused() -> None:
    with pytest.raises(ParityError, match="outcome"):
        verdict("passed")  # type: ignore[arg-type]


def test_a_verdict_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        verdict().outcome = "fail"  # type: ignore[misc]


def test_pairs_must_match_and_exist() -> None:
    assert paired_count("answers", [1, 2], [3, 4]) == 2
    with pytest.raises(ParityError, match="nothing to compare"):
        paired_count("answers", [], [])
    with pytest.raises(ParityError, match="2 of the reference against 1"):
        paired_count("answers", [1, 2], [3])


@pytest.mark.parametrize(("count", "words"), [(7, "7"), (268, "270"), (3011, "3,100"), (99, "99"), (991, "1,000")])
def test_about_rounds_up_to_two_digits(count: int, words: str) -> None:
    assert about(count) == words
