"""Recommendation: rankings, what they earn, and what is served."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import ndcg_score

from deploykit.errors import DataError
from deploykit.tasks import find_task, task_of_outputs
from deploykit.tasks.recommendation import Recommended

TASK = find_task("recommendation")
NAMES = tuple(f"item {number:02}" for number in range(12))


@given(
    arrays.arrays(np.float32, (7, 12), elements=st.floats(-3, 3, width=32), unique=True),
    arrays.arrays(np.int64, 7, elements=st.integers(0, 11)),
)
def test_the_metric_is_the_ndcg_of_the_first_ten_places(logits: Any, targets: Any) -> None:
    expected = ndcg_score(np.eye(12)[targets], logits, k=10)
    right = TASK.right_answers([NAMES[target] for target in targets], NAMES)
    scores = TASK.scores(TASK.answers({"logits": logits}, NAMES), right)
    assert scores.value == pytest.approx(expected)
    assert TASK.metrics(logits, targets, NAMES)["ndcg@10"] == pytest.approx(expected)
    assert TASK.scores(right, right).value == 1.0


def test_a_client_is_given_the_places_that_count_unless_it_says_how_many() -> None:
    logits = np.zeros((1, 12), dtype=np.float32)
    logits[0, [3, 5]] = 2.0, 1.0
    (ten,) = TASK.answers({"logits": logits}, NAMES)
    (two,) = TASK.answers({"logits": logits}, NAMES, top_k=2)
    assert [item["item"] for item in ten.as_json("")["items"]] == [
        NAMES[place] for place in (3, 5, *range(3), 4, 6, 7, 8, 9)
    ]
    total = np.exp(logits).sum()
    assert two.as_json("")["items"][1] == {
        "item": "item 05", "score": pytest.approx(np.e / total), "answer": ""
    }  # fmt: skip
    assert two.line("bought a tent") == f"item 03 {np.e**2 / total:.1%}, item 05 {np.e / total:.1%}  bought a tent"
    assert ten == two == Recommended("item 03")
    assert str(ten) == "item 03"
    with pytest.raises(DataError, match="unknown"):
        TASK.right_answers(["unknown"], NAMES)


def test_what_is_behind_the_tenth_place_earns_nothing_and_is_not_wholly_right() -> None:
    logits = -np.arange(12, dtype=np.float32)[np.newaxis].repeat(3, axis=0)
    scores = TASK.scores(TASK.answers({"logits": logits}, NAMES), TASK.right_answers([*NAMES[:2], NAMES[10]], NAMES))
    assert scores.earned.tolist() == [1.0, pytest.approx(1 / np.log2(3)), 0.0]
    assert scores.correct.tolist() == [True, False, False]
    assert not scores.is_share
    found = TASK.metrics(logits, np.array([0, 1, 10]), NAMES)
    assert (found["hit_rate@10"], found["mrr"]) == (pytest.approx(2 / 3), pytest.approx((1 + 1 / 2 + 1 / 11) / 3))


def test_what_is_served_is_read() -> None:
    assert task_of_outputs(["item", "answer", "score", "logits"]).name == "recommendation"  # type: ignore[union-attr]
    found = {
        "item": np.array([[b"tent", b"stove"]], dtype=np.object_),
        "answer": np.array([["Für zwei".encode(), b""]], dtype=np.object_),
        "score": np.array([[0.75, 0.25]], dtype=np.float32),
        "logits": np.zeros((1, 2), dtype=np.float32),
    }
    (answer,) = TASK.served_answers(found)
    assert answer.as_json("") == {
        "items": [
            {"item": "tent", "score": 0.75, "answer": "Für zwei"}, {"item": "stove", "score": 0.25, "answer": ""}
        ]
    }  # fmt: skip
    with pytest.raises(ValueError, match="scores"):
        TASK.served_answers({**found, "score": found["score"][:, :1]})
