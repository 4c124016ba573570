"""The smallest set: found whatever it is, never one that does not hold, and never beyond the budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deploykit.export.smallest import smallest_set


@given(st.sets(st.integers(0, 15), min_size=1, max_size=4))
def test_with_trials_enough_exactly_the_needed_items_are_found(needed: set[int]) -> None:
    found = smallest_set(range(16), lambda chosen: needed <= set(chosen), budget=500)
    assert set(found.items) == needed
    assert found.minimal


@given(st.sets(st.integers(0, 15), min_size=1), st.integers(0, 12))
def test_the_budget_holds_and_what_is_found_was_tried(needed: set[int], budget: int) -> None:
    tried: list[set[int]] = []

    def holds(chosen: tuple[int, ...]) -> bool:
        tried.append(set(chosen))
        return needed <= set(chosen)

    found = smallest_set(range(16), holds, budget=budget)
    assert len(tried) == found.trials <= budget
    assert len(tried) == len({frozenset(each) for each in tried}), "nothing is tried twice"
    if found.items:
        assert set(found.items) in tried
        assert needed <= set(found.items)


def test_the_likeliest_comes_first() -> None:
    assert smallest_set("abcdefgh", lambda chosen: "a" in chosen, budget=1) == smallest_set(
        "a", lambda chosen: True, budget=1
    )


def test_a_set_above_the_limit_is_not_tried() -> None:
    sizes: list[int] = []
    found = smallest_set(range(8), lambda chosen: bool(sizes.append(len(chosen))), budget=99, most=3)
    assert found.items == ()
    assert sizes == [1, 2, 3]
