"""Macro F1 is scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from deploykit.parity.classification import class_codes, macro_f1


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60))
def test_macro_f1_is_that_of_scikit_learn(rows: list[tuple[int, int]]) -> None:
    answers, labels = np.array(rows, dtype=np.int64).T
    theirs = f1_score(labels, answers, average="macro", zero_division=0)
    assert macro_f1(answers, labels) == pytest.approx(theirs, abs=1e-12)


def test_codes_are_shared_by_all_columns() -> None:
    first, second = class_codes(["b", "a", "b"], ["a", "c", ("a", 1)])
    assert first.tolist() == [0, 1, 0]
    assert second.tolist() == [1, 2, 3]
