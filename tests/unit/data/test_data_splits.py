"""Holding out rows for validation."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.data.splits import draw_per_class, split_validation

LABELS = ["a"] * 50 + ["b"] * 30 + ["c"] * 19 + ["single"]


def test_classes_keep_their_proportions() -> None:
    train, held_out = split_validation(LABELS, 0.1, seed=0)
    assert Counter(LABELS[index] for index in held_out) == {"a": 5, "b": 3, "c": 2}
    assert sorted([*train, *held_out]) == list(range(100))
    assert list(train) == sorted(train)
    assert list(held_out) == sorted(held_out)


def test_the_seed_decides() -> None:
    first, again, other = (split_validation(LABELS, 0.2, seed)[1] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_order_of_rows_decides_not_the_names_of_labels() -> None:
    renamed = [{"a": "a1", "b": "b1", "c": "c1", "single": "d1"}[label] for label in LABELS]
    assert np.array_equal(split_validation(LABELS, 0.2, 1)[1], split_validation(renamed, 0.2, 1)[1])


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_every_class_keeps_a_row_to_train_on(fraction: float) -> None:
    labels = [f"class {index % 40}" for index in range(70)] + ["single"]
    train, held_out = split_validation(labels, fraction, seed=0)
    assert {labels[index] for index in train} == set(labels)
    assert "single" not in {labels[index] for index in held_out}
    assert len(held_out) == min(round(71 * fraction), 30)


def test_small_classes_share_what_is_held_out() -> None:
    labels = [f"class {index % 20}" for index in range(60)]
    _, held_out = split_validation(labels, 0.1, seed=0)
    assert Counter(Counter(labels[index] for index in held_out).values()) == {1: 6}


def test_nothing_is_held_out_where_every_class_has_one_row() -> None:
    train, held_out = split_validation(["a", "b", "c"], 0.5, seed=0)
    assert (len(train), len(held_out)) == (3, 0)


@given(st.lists(st.sampled_from("abc"), min_size=1), st.integers(1, 5), st.integers(0, 3))
def test_equally_many_of_each_class_are_drawn(labels: list[str], count: int, seed: int) -> None:
    drawn = draw_per_class(labels, count, seed)
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert Counter(labels[row] for row in drawn) == {name: min(count, labels.count(name)) for name in set(labels)}
    assert drawn.tolist() == draw_per_class(labels, count, seed).tolist()
