"""Answers that depend on their batch, models that are surer than they were, and contracts that are not kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import ParityError
from deploykit.parity.calibration import calibration_error, compare_calibration, judge_calibration
from deploykit.parity.contract import judge_epsilons, judge_interface, judge_tokenizer_settings
from deploykit.parity.invariance import INVARIANCE, judge_invariance
from deploykit.runners.anatomy import Anatomy, TensorForm
from deploykit.runners.hard_texts import HARD_TEXTS, UNENCODABLE, text_of_length

ALONE = np.random.default_rng(0).normal(scale=5, size=(20, 4)).astype(np.float32)


# --- company ---


def test_the_same_numbers_in_company_pass_and_say_in_which() -> None:
    verdict = judge_invariance(ALONE, [("in a batch of 3", (4, 5, 6), ALONE[4:7])])
    assert (verdict.outcome, verdict.figure, verdict.n, verdict.part) == ("pass", 0.0, 3, "batching")
    assert verdict.details == ("also: in a batch of 3",)


@given(st.floats(1e-7, 1.0), st.integers(0, 19))
def test_the_largest_difference_decides(size: float, row: int) -> None:
    moved = ALONE.copy()
    moved[row, 1] += np.float32(size)
    verdict = judge_invariance(ALONE, [("together", range(20), moved)])
    share = float(np.abs(moved - ALONE).max()) / float(np.abs(ALONE).max())
    assert (verdict.outcome == "fail") == (share > INVARIANCE)
    assert bool(verdict.next_step) == (verdict.outcome == "fail")
    if verdict.outcome == "fail":
        assert f"most {row}" in verdict.details[0]


@pytest.mark.parametrize("found", [np.full((2, 4), np.nan, np.float32), np.zeros((2, 5), np.float32)])
def test_row_48_no_numbers_or_another_shape_in_company_fail(found: Any) -> None:
    assert judge_invariance(ALONE, [("in a batch of 2", (0, 1), found)]).outcome == "fail"


def test_what_is_no_number_alone_does_not_depend_on_company() -> None:
    lost = ALONE.copy()
    lost[3] = np.nan
    assert judge_invariance(lost, [("together", range(20), lost)]).outcome == "pass"
    assert judge_invariance(ALONE, [("together", range(20), lost)]).outcome == "fail"


def test_a_comparison_in_no_company_is_an_error() -> None:
    with pytest.raises(ParityError):
        judge_invariance(ALONE, [("nobody", (), ALONE[:0])])


# --- calibration ---


def test_a_temperature_shows_as_a_shift_of_confidence() -> None:
    sure = compare_calibration(ALONE, ALONE * 3, (np.ones(20, np.bool_), np.ones(20, np.bool_)))
    assert sure.shift > 0.02
    assert sure.candidate_ece is not None
    assert sure.reference_ece is not None
    assert sure.candidate_ece < sure.reference_ece  # all are right, so it should be surer
    assert judge_calibration(sure, 0.001, 20).outcome == "fail"
    assert judge_calibration(compare_calibration(ALONE, ALONE), 0.05, 20).outcome == "pass"
    torn = judge_calibration(compare_calibration(ALONE, ALONE * 3), sure.shift, 20)
    assert (torn.outcome, bool(torn.next_step)) == ("inconclusive", True)


def test_the_calibration_error_is_the_gap_by_bins() -> None:
    # Two bins: 0.9 sure and half right, 0.3 sure and none right.
    error = calibration_error(np.array([0.9, 0.9, 0.3, 0.3]), np.array([True, False, False, False]))
    assert error == pytest.approx((0.4 * 2 + 0.3 * 2) / 4)


@pytest.mark.parametrize("other", [ALONE[:5], ALONE[:, :2], np.full_like(ALONE, np.nan)])
def test_what_has_no_confidence_is_refused(other: Any) -> None:
    with pytest.raises(ParityError):
        compare_calibration(ALONE, other)


# --- the contract ---

IDS, MASK = (TensorForm(name, "int64", (None, None)) for name in ("input_ids", "attention_mask"))
GRAPH = Anatomy(
    "fp32", "float32 weights", inputs=(IDS, MASK), outputs=(TensorForm("logits", "float32", (None, 4)),), opset=18,
    epsilons=(("norm_0", 9.999999960041972e-13),),
)  # fmt: skip


def test_a_good_interface_passes_and_says_what_it_is() -> None:
    verdict = judge_interface(GRAPH, "logits", 4)
    assert (verdict.outcome, verdict.part) == ("pass", "interface")
    assert "opset 18; input_ids int64[?, ?]" in verdict.details[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": (IDS,)}, "no input 'attention_mask'"),
        ({"inputs": (IDS, replace(MASK, dtype="float32"))}, "is float32, not int64"),
        ({"inputs": (replace(IDS, shape=(1, None)), MASK)}, "the batch axis of 'input_ids' is frozen at 1"),
        ({"inputs": (replace(IDS, shape=(None, 128)), MASK)}, "the length axis of 'input_ids' is frozen at 128"),
        ({"outputs": (TensorForm("probabilities", "float32", (None, 4)),)}, "no output 'logits', only probabilities"),
        ({"outputs": (TensorForm("logits", "float64", (None, 4)),)}, "is float64, not float32"),
        ({"outputs": (TensorForm("logits", "float32", (None, 384)),)}, "has 384 values, and there are 4 labels"),
        ({"outputs": (TensorForm("logits", "float32", (8, 4)),)}, "the batch axis of 'logits' is frozen at 8"),
    ],
)
def test_row_48_a_broken_interface_fails_and_says_how(change: dict[str, Any], message: str) -> None:
    verdict = judge_interface(replace(GRAPH, **change), "logits", 4)
    assert verdict.outcome == "fail"
    assert any(message in line for line in verdict.details), verdict.details


def test_an_epsilon_that_the_reference_has_not_fails() -> None:
    reference = Anatomy("fp32", "", epsilons=(("layer_norm_eps", 1e-12),))
    agreed = judge_epsilons(reference, GRAPH)
    assert agreed is not None
    assert agreed.outcome == "pass"  # a graph's is a float32
    wrong = judge_epsilons(reference, replace(GRAPH, epsilons=(("norm_0", 1e-12), ("norm_1", 1e-9))))
    assert wrong is not None
    assert (wrong.outcome, wrong.details) == ("fail", ("norm_1 has epsilon 1e-09, the reference 1e-12",))
    assert judge_epsilons(Anatomy("fp32", ""), GRAPH) is None


def test_row_49_tokenizers_that_pad_or_cut_otherwise_fail() -> None:
    ours = {"max_length": 128, "padding_side": "right"}
    assert judge_tokenizer_settings(ours, dict(ours)).outcome == "pass"
    verdict = judge_tokenizer_settings(ours, ours | {"padding_side": "left"})
    assert verdict.outcome == "fail"
    assert "padding_side is 'right' in the reference and 'left' in the candidate" in verdict.details


# --- hard texts ---


def test_row_54_the_hard_texts_hold_what_breaks_models() -> None:
    texts = dict(HARD_TEXTS)
    assert texts["empty"] == ""
    assert "\x00" in texts["NUL"]
    assert texts["one blank"].isspace()
    assert {"emoji", "Hebrew", "Arabic", "Chinese", "unknown pieces", "one word"} <= texts.keys()
    for text in texts.values():
        text.encode("utf-8")
    with pytest.raises(UnicodeEncodeError):
        UNENCODABLE.encode("utf-8")


@given(st.integers(2, 600))
def test_a_text_has_the_length_that_was_asked_for(length: int) -> None:
    def count(text: str) -> int:
        return len(text.split()) + 2

    assert count(text_of_length(length, count)) == length
