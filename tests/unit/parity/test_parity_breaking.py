"""Which errors are enough to break a model, on one whose answer is a sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from deploykit.parity.activations import Facts
from deploykit.parity.breaking import find_breaking
from deploykit.parity.localize import Batch

POINTS = tuple(f"encoder.layer.{number}.output.dense" for number in range(6))
RIGHT = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
MASK = np.ones((4, 3), dtype=np.bool_)


class Sum:
    """A reference whose output is what all points give, added up."""

    precision, facts = "fp32", Facts()

    def __init__(self) -> None:
        self.runs = 0

    def run(self, feed: Any, given: Any = None, added: Mapping[str, Any] | None = None) -> dict[str, Any]:
        self.runs += 1
        return {"logits": RIGHT + sum((added or {}).values(), np.zeros_like(RIGHT))}


def breaking(errors: Mapping[str, Any]) -> Any:
    whole = {point: errors.get(point, np.zeros_like(RIGHT)) for point in POINTS}
    batch = Batch({"logits": RIGHT}, {"logits": RIGHT + sum(whole.values())}, {}, MASK)
    return find_breaking(Sum(), POINTS, [whole], [batch], [{}], "logits")


def toward_the_other_class(by: float) -> Any:
    return np.tile([-by / 2, by / 2], (4, 1))


def test_one_module_that_changes_all_answers_is_found() -> None:
    found = breaking({POINTS[4]: toward_the_other_class(10), POINTS[1]: toward_the_other_class(0.1)})
    assert found.modules == ("layer 4 ffn output",)
    assert (found.share, found.answers, found.minimal) == (1.0, 4, True)
    assert found.line() == "enough to break it, with 100% of 4 changed answers: layer 4 ffn output"


def test_two_that_break_it_only_together_are_found() -> None:
    found = breaking({POINTS[1]: toward_the_other_class(1.6), POINTS[5]: toward_the_other_class(1.6)})
    assert found.modules == ("layer 1 ffn output", "layer 5 ffn output")
    assert found.share >= 0.5
    assert found.minimal


def test_half_of_the_change_is_enough() -> None:
    found = breaking({POINTS[0]: toward_the_other_class(2.5), POINTS[2]: toward_the_other_class(9)})
    assert found.modules in {("layer 0 ffn output",), ("layer 2 ffn output",)}


def test_without_a_changed_answer_the_error_counts() -> None:
    found = breaking({POINTS[3]: np.full_like(RIGHT, 0.2), POINTS[0]: np.full_like(RIGHT, 0.01)})
    assert found.modules == ("layer 3 ffn output",)
    assert found.answers == 0
    assert "of the output's error" in found.line()


def test_what_the_modules_do_not_explain_gives_no_set() -> None:
    batch = Batch({"logits": RIGHT}, {"logits": RIGHT[:, ::-1]}, {}, MASK)
    none = {point: np.zeros_like(RIGHT) for point in POINTS}
    assert find_breaking(Sum(), POINTS, [none], [batch], [{}], "logits") is None


def test_an_error_that_does_not_fit_is_left_out() -> None:
    batch = Batch({"logits": RIGHT}, {"logits": RIGHT + toward_the_other_class(10)}, {}, MASK)
    found = find_breaking(Sum(), POINTS, [{POINTS[2]: toward_the_other_class(10)}], [batch], [{}], "logits")
    assert found is not None
    assert found.modules == ("layer 2 ffn output",)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_trials_are_bounded(count: int) -> None:
    reference = Sum()
    rng = np.random.default_rng(count)
    errors = {point: toward_the_other_class(float(rng.uniform(0.2, 3))) for point in POINTS}
    batch = Batch({"logits": RIGHT}, {"logits": RIGHT + sum(errors.values())}, {}, MASK)
    find_breaking(reference, POINTS, [errors], [batch], [{}], "logits")
    assert reference.runs <= 25
