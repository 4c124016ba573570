"""Changed answers are counted, bounded and found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import ParityError
from deploykit.parity.flips import count_flips, judge_flips
from deploykit.parity.intervals import clopper_pearson_upper


def answers(changed: int, n: int) -> tuple[list[str], list[str]]:
    return ["card"] * n, ["loan"] * changed + ["card"] * (n - changed)


def test_an_equal_accuracy_does_not_hide_flips() -> None:
    labels = ["a", "b"] * 50
    reference, candidate = labels.copy(), labels.copy()
    reference[0], candidate[1] = "b", "a"
    flips = count_flips(reference, candidate, labels=labels)
    assert (flips.count, flips.n, flips.rate) == (2, 100, 0.02)
    assert flips.rate_upper == clopper_pearson_upper(2, 100)


def test_changed_items_come_worst_first() -> None:
    labels = ["a"] * 6
    reference = ["b", "a", "a", "b", "a", "b"]
    candidate = ["a", "b", "b", "c", "a", "a"]
    severity = np.array([9.0, 1.0, 2.0, 5.0, 8.0, 9.5])
    assert count_flips(reference, candidate, labels=labels, severity=severity).changed == (2, 1, 3, 5, 0)
    assert count_flips(reference, candidate, severity=severity).changed == (5, 0, 3, 2, 1)
    assert count_flips(reference, candidate).changed == (0, 1, 2, 3, 5)


def test_classes_show_the_recall_before_and_after() -> None:
    labels = ["a"] * 4 + ["b"] * 2 + ["c"] * 5
    reference = ["a"] * 4 + ["b", "c"] + ["c"] * 5
    candidate = ["a", "a", "b", "b"] + ["b", "a"] + ["c"] * 5
    flips = count_flips(reference, candidate, labels=labels)
    fallen = flips.classes[0]
    assert (fallen.name, fallen.n, fallen.flips) == ("a", 4, 2)
    assert (fallen.reference_recall, fallen.candidate_recall, fallen.recall_drop) == (1.0, 0.5, 0.5)
    assert [change.name for change in flips.classes] == ["a", "b", "c"]
    assert (flips.classes[1].flips, flips.classes[1].recall_drop) == (1, 0.0)
    # Equally low after, but "a" fell to it.
    assert flips.worst_class == fallen


def test_without_labels_classes_are_the_reference_s_answers() -> None:
    flips = count_flips(["a", "a", "b"], ["a", "b", "b"])
    assert [(change.name, change.n, change.flips) for change in flips.classes] == [("a", 2, 1), ("b", 1, 0)]
    assert flips.classes[0].reference_recall is None
    assert flips.worst_class is None


def test_answers_may_be_any_hashable() -> None:
    spans = ((0, 4, "name"),), ()
    flips = count_flips([spans, spans], [spans, ()])
    assert flips.changed == (1,)


@pytest.mark.parametrize(
    ("changed", "n", "outcome"),
    [
        (0, 3080, "pass"),
        (4, 3080, "pass"),
        (5, 3080, "inconclusive"),
        (12, 3080, "inconclusive"),  # above the limit, but not shown to be
        (30, 3080, "fail"),
        (0, 500, "inconclusive"),
    ],
)
def test_flips_are_judged_by_their_binomial_bounds(changed: int, n: int, outcome: str) -> None:
    verdict = judge_flips(*answers(changed, n), limit=0.003)
    assert verdict.outcome == outcome
    assert verdict.figure == changed / n


def test_too_few_items_say_how_many_would_do() -> None:
    # 1 - 0.05 ** (1 / n) <= 0.003 from n = 998 on.
    verdict = judge_flips(*answers(0, 500), limit=0.003)
    assert "about 1,000 items" in verdict.next_step
    assert judge_flips(*answers(0, 998), limit=0.003).outcome == "pass"
    assert judge_flips(*answers(0, 997), limit=0.003).outcome == "inconclusive"


def test_a_rate_at_the_limit_is_not_helped_by_more_items() -> None:
    verdict = judge_flips(*answers(3, 1000), limit=0.003)
    assert verdict.outcome == "inconclusive"
    assert "more items will not help" in verdict.next_step


@given(st.integers(1, 400), st.data(), st.sampled_from([0.003, 0.05, 0.5]))
def test_more_flips_never_judge_better(n: int, data: st.DataObject, limit: float) -> None:
    changed = data.draw(st.integers(0, n - 1))
    order = ["pass", "inconclusive", "fail"]
    fewer = judge_flips(*answers(changed, n), limit=limit)
    more = judge_flips(*answers(changed + 1, n), limit=limit)
    assert order.index(fewer.outcome) <= order.index(more.outcome)
    assert fewer.bound is not None
    assert more.bound is not None
    assert fewer.bound < more.bound


def test_an_empty_or_unequal_comparison_is_an_error() -> None:
    with pytest.raises(ParityError, match="nothing to compare"):
        judge_flips([], [], limit=0.003)
    with pytest.raises(ParityError, match="1 of the reference against 2"):
        count_flips(["a"], ["a", "b"])
    with pytest.raises(ParityError, match="labels"):
        count_flips(["a"], ["a"], labels=["a", "b"])


@pytest.mark.parametrize("limit", [0.0, 1.0, -0.1, float("nan")])
def test_a_limit_that_is_no_fraction_is_refused(limit: float) -> None:
    with pytest.raises(ParityError, match="flip limit"):
        judge_flips(["a"], ["a"], limit=limit)


def test_row_48_an_answer_of_nan_is_a_change() -> None:
    nan = float("nan")
    assert count_flips([1.0, nan], [1.0, float("nan")]).changed == (1,)
