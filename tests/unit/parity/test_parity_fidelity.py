"""The same weights in another form: what differs fails, and the worst sample is shown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import rel_entr, softmax

from deploykit.errors import ParityError
from deploykit.parity.fidelity import TOLERANCES, compare_outputs, within_rounding

FP32 = 1e-4


def logits(n: int = 20, labels: int = 5) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(scale=4, size=(n, labels)).astype(np.float32)


def test_equal_outputs_pass() -> None:
    fidelity = compare_outputs({"logits": logits()}, {"logits": logits()}, FP32)
    assert fidelity.verdict.outcome == "pass"
    assert (fidelity.verdict.figure, fidelity.verdict.n, fidelity.verdict.limit) == (0.0, 20, FP32)
    assert fidelity.tensors[0].min_cosine == pytest.approx(1)
    assert fidelity.tensors[0].max_kl == 0


def test_figures_are_what_they_say() -> None:
    ours = logits()
    theirs = ours.copy()
    theirs[7, 2] += 0.5
    fidelity = compare_outputs({"logits": ours}, {"logits": theirs}, FP32)
    figures = fidelity.tensors[0]
    assert figures.max_abs == pytest.approx(0.5, abs=1e-6)
    assert (figures.p50_abs, figures.p50_rel) == (0, 0)
    assert figures.max_rel == pytest.approx(0.5 / np.abs(ours[7]).max(), rel=1e-5)
    assert figures.worst_sample == fidelity.worst_sample == 7
    kl = rel_entr(softmax(ours[7].astype(float)), softmax(theirs[7].astype(float))).sum()
    assert figures.max_kl == pytest.approx(kl, rel=1e-9)
    assert figures.mean_kl == pytest.approx(kl / 20, rel=1e-9)
    cosine = ours[7] @ theirs[7] / np.linalg.norm(ours[7]) / np.linalg.norm(theirs[7])
    assert figures.min_cosine == pytest.approx(cosine, rel=1e-5)
    assert fidelity.by_sample is not None
    assert np.flatnonzero(fidelity.by_sample).tolist() == [7]


def test_a_difference_beyond_the_tolerance_shows_the_worst_sample() -> None:
    theirs = logits()
    theirs[3, 1] += 0.01
    theirs[11, 4] -= 0.02
    verdict = compare_outputs({"logits": logits()}, {"logits": theirs}, FP32).verdict
    assert verdict.outcome == "fail"
    assert verdict.details[0].startswith("worst sample 11: 'logits' [4] ")
    assert verdict.next_step


@given(st.floats(1e-6, 1.0), st.integers(0, 19), st.integers(0, 4), st.booleans())
def test_the_tolerance_decides(size: float, row: int, column: int, down: bool) -> None:
    ours = np.zeros((20, 5))
    theirs = ours.copy()
    theirs[row, column] += -size if down else size
    verdict = compare_outputs({"logits": ours}, {"logits": theirs}, 0.01).verdict
    assert verdict.outcome == ("pass" if size <= 0.01 else "fail")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tolerance", [FP32, 1e9, None])
def test_row_48_nan_fails_and_shows_the_sample(value: float, tolerance: float | None) -> None:
    theirs = logits()
    theirs[13, 0] = value
    fidelity = compare_outputs({"logits": logits()}, {"logits": theirs}, tolerance)
    assert fidelity.verdict.outcome == "fail"
    assert fidelity.worst_sample == 13
    assert "NaN or infinity in 1 samples, first in 13" in fidelity.verdict.details[0]
    assert "worst sample 13: 'logits' [0]" in fidelity.verdict.details[1]
    assert fidelity.verdict.figure is None


def test_row_48_nan_on_both_sides_still_fails() -> None:
    broken = logits()
    broken[:] = np.nan
    assert compare_outputs({"logits": broken}, {"logits": broken}, FP32).verdict.outcome == "fail"


@pytest.mark.parametrize("tolerance", [FP32, None])
def test_row_48_another_dtype_fails_and_shows_the_worst_sample(tolerance: float | None) -> None:
    theirs = logits().astype(np.float64)
    theirs[4, 0] += 1e-6
    fidelity = compare_outputs({"logits": logits()}, {"logits": theirs}, tolerance)
    assert fidelity.verdict.outcome == "fail"
    assert fidelity.verdict.details[0] == "'logits' is float64, not float32"
    assert fidelity.worst_sample == 4
    assert "float32" in fidelity.verdict.next_step


def test_row_48_another_shape_fails_and_shows_a_sample() -> None:
    fidelity = compare_outputs({"logits": logits()}, {"logits": logits()[:, :4]}, FP32)
    assert fidelity.verdict.outcome == "fail"
    assert fidelity.verdict.details == (
        "'logits' has shape [20, 4], not [20, 5]",
        "worst sample 0: 'logits' has 5 values in the reference, 4 in the candidate",
    )


@pytest.mark.parametrize(("rows", "sample"), [(17, 17), (0, 0)])
def test_row_48_missing_samples_fail_and_the_first_missing_is_shown(rows: int, sample: int) -> None:
    fidelity = compare_outputs({"logits": logits()}, {"logits": logits()[:rows]}, FP32)
    assert fidelity.verdict.outcome == "fail"
    assert fidelity.worst_sample == sample
    assert "no such sample" in fidelity.verdict.details[-1]


def test_row_48_surplus_samples_and_scalars_fail() -> None:
    assert compare_outputs({"logits": logits()}, {"logits": logits(21)}, FP32).verdict.outcome == "fail"
    assert (
        compare_outputs({"logits": logits()}, {"logits": np.float32(1) * np.ones(())}, FP32).verdict.outcome == "fail"
    )


def test_row_48_labels_in_another_order_fail_and_are_recognised() -> None:
    theirs = logits()[:, [0, 3, 2, 1, 4]]
    fidelity = compare_outputs({"logits": logits()}, {"logits": theirs}, FP32)
    assert fidelity.verdict.outcome == "fail"
    assert "another label order" in fidelity.verdict.details[0]
    assert "id2label" in fidelity.verdict.next_step
    assert f"worst sample {fidelity.worst_sample}:" in fidelity.verdict.details[1]
    assert fidelity.by_sample is not None
    assert fidelity.worst_sample == fidelity.by_sample.argmax()


def test_other_weights_are_not_taken_for_another_label_order() -> None:
    fidelity = compare_outputs({"logits": logits()}, {"logits": logits()[::-1].copy()}, FP32)
    assert fidelity.verdict.outcome == "fail"
    assert not any("label order" in line for line in fidelity.verdict.details)


def test_row_48_missing_and_surplus_outputs_fail() -> None:
    missing = compare_outputs({"logits": logits(), "hidden": logits()}, {"logits": logits()}, FP32)
    assert missing.verdict.outcome == "fail"
    assert "output 'hidden' is missing" in missing.verdict.details
    assert compare_outputs({"logits": logits()}, {}, FP32).verdict.outcome == "fail"
    surplus = compare_outputs({"logits": logits()}, {"logits": logits(), "hidden": logits()}, FP32)
    assert surplus.verdict.outcome == "fail"


def test_whole_numbers_and_text_must_be_equal() -> None:
    ids = np.arange(6).reshape(3, 2)
    assert compare_outputs({"ids": ids}, {"ids": ids.copy()}, 2.0).verdict.outcome == "pass"
    fidelity = compare_outputs({"ids": ids}, {"ids": ids + np.array([[0, 0], [0, 1], [0, 0]])}, 2.0)
    assert fidelity.verdict.outcome == "fail"
    assert fidelity.worst_sample == 1
    text = np.array(["a", "b"])
    assert compare_outputs({"label": text}, {"label": text}, FP32).verdict.outcome == "pass"
    assert compare_outputs({"label": text}, {"label": text[::-1].copy()}, FP32).verdict.outcome == "fail"


def test_the_worst_of_several_outputs_decides() -> None:
    hidden = logits()
    hidden[9] += 1
    fidelity = compare_outputs({"logits": logits(), "hidden": logits()}, {"logits": logits(), "hidden": hidden}, FP32)
    assert fidelity.verdict.outcome == "fail"
    assert fidelity.worst_sample == 9
    by_name = {tensor.name: tensor for tensor in fidelity.tensors}
    assert by_name["logits"].max_abs == 0
    assert by_name["hidden"].max_kl is None


def test_int8_is_not_judged_by_its_numbers() -> None:
    assert TOLERANCES["int8"] is None
    fidelity = compare_outputs({"logits": logits()}, {"logits": logits() + np.float32(3)}, TOLERANCES["int8"])
    assert fidelity.verdict.outcome == "pass"
    assert fidelity.verdict.figure == pytest.approx(3, abs=1e-5)
    assert fidelity.verdict.limit is None


def test_values_that_overflow_a_difference_fail_and_do_not_crash() -> None:
    huge = np.full((2, 2), 1e308)
    fidelity = compare_outputs({"logits": huge}, {"logits": -huge}, 1.0)
    assert fidelity.verdict.outcome == "fail"
    assert fidelity.tensors[0].min_cosine == pytest.approx(-1)


def test_zero_vectors_agree_with_each_other_only() -> None:
    zero, one = np.zeros((1, 3)), np.ones((1, 3))
    assert compare_outputs({"x": zero}, {"x": zero}, 2.0).tensors[0].min_cosine == 1
    assert compare_outputs({"x": zero}, {"x": one}, 2.0).tensors[0].min_cosine == 0


@pytest.mark.parametrize("reference", [{}, {"logits": logits(0)}, {"logits": logits()[:, :0]}, {"logits": np.ones(())}])
def test_a_reference_of_nothing_is_an_error(reference: dict[str, np.ndarray]) -> None:
    with pytest.raises(ParityError, match="no outputs"):
        compare_outputs(reference, reference, FP32)


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan"), float("inf")])
def test_a_tolerance_that_is_no_positive_number_is_refused(tolerance: float) -> None:
    with pytest.raises(ParityError, match="tolerance"):
        compare_outputs({"logits": logits()}, {"logits": logits()}, tolerance)


def test_reference_outputs_of_unequal_length_are_refused() -> None:
    with pytest.raises(ParityError, match="samples"):
        compare_outputs({"a": logits(3), "b": logits(4)}, {}, FP32)


def test_a_sample_may_differ_by_what_float32_itself_is_off_there() -> None:
    reference = {"logits": np.array([[1.0, 2.0], [3.0, 1.0]], dtype=np.float32)}
    candidate = {"logits": reference["logits"] + np.array([[0, 0], [2e-4, 0]], dtype=np.float32)}
    steep = np.array([0.0, 6e-5])
    assert compare_outputs(reference, candidate, 1e-4).verdict.outcome == "fail"
    excused = compare_outputs(reference, candidate, 1e-4, rounding=steep).verdict
    assert excused.outcome == "pass"
    assert "1 of 2 differ by more than 0.0001" in excused.details[0]
    assert compare_outputs(reference, candidate, 1e-4, rounding=steep / 2).verdict.outcome == "fail"
    assert compare_outputs(reference, candidate, 1e-4, rounding=steep[::-1]).verdict.outcome == "fail"


def test_what_is_excused_is_neither_a_fault_nor_the_worst_sample() -> None:
    reference = {"logits": np.array([[6.0, -6.0], [1.0, 2.0], [3.0, 1.0]], dtype=np.float32)}
    excused = {"logits": reference["logits"] * np.float32(1.00003)}  # the first by 1.8e-4, which looks like a factor
    steep = np.array([6e-5, 0.0, 0.0])
    assert compare_outputs(reference, excused, 1e-4, rounding=steep).verdict.outcome == "pass"
    assert "times 1" in compare_outputs(reference, excused, 1e-4).verdict.details[0]
    faulty = {"logits": excused["logits"] + np.array([[0, 0], [0, 0], [0, 1.2e-4]], dtype=np.float32)}
    found = compare_outputs(reference, faulty, 1e-4, rounding=steep)
    assert (found.verdict.outcome, found.worst_sample) == ("fail", 2)


def test_only_what_the_references_own_rounding_explains_is_near() -> None:
    reference = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], np.float32)
    candidate = reference + np.array([[0.0], [3e-6], [5e-6]], np.float32)
    rounding = np.array([0.0, 1e-6, 1e-6])
    assert within_rounding(reference, candidate, rounding).tolist() == [True, True, False]
    assert not within_rounding(reference, candidate, None).any()
