"""Served answers are compared exactly."""

from __future__ import annotations

import numpy as np
import pytest

from deploykit.errors import ParityError
from deploykit.parity.identity import compare_answers


def logits(n: int = 4) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, 3)).astype(np.float32)


def test_equal_answers_and_logits_pass() -> None:
    identity = compare_answers(["a", "b", "a", "c"], ["a", "b", "a", "c"], logits(), logits())
    assert identity.verdict.outcome == "pass"
    assert (identity.verdict.figure, identity.verdict.n) == (0, 4)
    assert (identity.answers, identity.logits, identity.max_difference) == ((), (), 0.0)


def test_one_other_answer_fails_and_is_named() -> None:
    identity = compare_answers(["a", "b", "a"], ["a", "b", "c"])
    assert identity.verdict.outcome == "fail"
    assert identity.answers == (2,)
    assert identity.verdict.details == ("item 2: 'a' -> 'c'",)
    assert identity.max_difference is None


def test_the_last_digit_of_a_logit_counts() -> None:
    theirs = logits()
    theirs[2, 1] = np.nextafter(theirs[2, 1], np.float32(9))
    identity = compare_answers(["a"] * 4, ["a"] * 4, logits(), theirs)
    assert identity.verdict.outcome == "fail"
    assert (identity.answers, identity.logits, identity.verdict.figure) == ((), (2,), 1)
    assert identity.max_difference is not None
    assert 0 < identity.max_difference < 1e-6
    assert "answers are equal" in identity.verdict.next_step


def test_an_item_that_differs_twice_counts_once() -> None:
    theirs = logits() + np.array([[0], [1], [0], [1]], dtype=np.float32)
    identity = compare_answers(["a"] * 4, ["a", "b", "a", "a"], logits(), theirs)
    assert identity.verdict.figure == 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_row_48_nan_on_both_sides_is_not_identical(value: float) -> None:
    broken = logits()
    broken[1] = value
    identity = compare_answers(["a"] * 4, ["a"] * 4, broken, broken)
    assert identity.verdict.outcome == "fail"
    assert identity.logits == (1,)


@pytest.mark.parametrize("theirs", [logits().astype(np.float64), logits()[:, :2], logits(3)])
def test_row_48_logits_of_another_dtype_or_shape_fail(theirs: np.ndarray) -> None:
    identity = compare_answers(["a"] * 4, ["a"] * 4, logits(), theirs)
    assert identity.verdict.outcome == "fail"
    assert identity.logits == (0, 1, 2, 3)


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(ParityError, match="nothing to compare"):
        compare_answers([], [])
    with pytest.raises(ParityError, match="one side"):
        compare_answers(["a"], ["a"], logits(1))
    with pytest.raises(ParityError, match="for 2 answers"):
        compare_answers(["a", "b"], ["a", "b"], logits(), logits())
    with pytest.raises(ParityError, match="for 4 answers"):
        compare_answers(["a"] * 4, ["a"] * 4, logits()[:, :0], logits()[:, :0])
