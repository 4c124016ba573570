"""The report says what was compared, what was judged and what was not."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from deploykit.errors import ParityError
from deploykit.parity.contract import judge_labels
from deploykit.parity.intervals import clopper_pearson_upper, paired_drop_upper
from deploykit.parity.report import ParityReport, Predictions, build_report

NAMES = ("card", "loan", "fees")


def made(labels: Sequence[Hashable], wrong: dict[int, str] | None = None, *, labelled: bool = True) -> Predictions:
    """Right answers but for the wrong ones, with logits that say so."""
    answers = [(wrong or {}).get(item, label) for item, label in enumerate(labels)]
    logits = np.array([[4.0 if name == answer else 0.0 for name in NAMES] for answer in answers], dtype=np.float32)
    correct = np.array([answer == label for answer, label in zip(answers, labels, strict=True)])
    return Predictions(answers, correct if labelled else None, {"logits": logits})


def labels(n: int) -> list[str]:
    return [NAMES[item % 3] for item in range(n)]


def report(
    n: int = 1200, before: dict[int, str] | None = None, after: dict[int, str] | None = None, **given: Any
) -> ParityReport:
    given = {"labels": labels(n), "margin": 0.01, "instruction_set": "avx512_vnni", "served": True} | given
    texts = [f"message {item}" for item in range(n)]
    return build_report(made(labels(n), before), made(labels(n), after), texts, **given)


def test_a_report_holds_every_figure() -> None:
    made_report = report(before={0: "loan", 3: "fees"}, after={0: "loan", 1: "card", 2: "card", 3: "loan"}, margin=0.05)
    assert made_report.verdict == "pass"
    assert (made_report.n, made_report.metric) == (1200, "accuracy")
    assert made_report.reference == pytest.approx(1198 / 1200)
    assert made_report.candidate == pytest.approx(1196 / 1200)
    assert (made_report.b, made_report.c, made_report.discordant) == (2, 0, 2)
    assert made_report.drop == pytest.approx(2 / 1200)
    assert made_report.drop_upper == paired_drop_upper(2, 0, 1200)
    assert made_report.flips == 3
    assert made_report.flips_upper == clopper_pearson_upper(3, 1200)
    assert made_report.macro_f1 is not None
    assert made_report.macro_f1.drop == made_report.macro_f1.reference - made_report.macro_f1.candidate
    assert 0 < made_report.macro_f1.drop < made_report.macro_f1.drop_upper < 0.01
    assert made_report.worst_class is not None
    assert made_report.worst_class.name == "card"
    assert [sample.index for sample in made_report.changed] == [1, 2, 3]
    assert made_report.changed[0].model_dump() == {
        "index": 1,
        "text": "message 1",
        "reference": "loan",
        "candidate": "card",
        "label": "loan",
    }
    assert made_report.tensors[0].max_abs == 4
    assert [check.check for check in made_report.checks] == ["fidelity", "accuracy drop"]
    assert (made_report.instruction_set, made_report.served) == ("avx512_vnni", True)
    assert (made_report.unchecked, made_report.statement) == ((), "pass")


def test_a_report_survives_its_json() -> None:
    original = report(after={5: "card"}, max_flips=0.01)
    assert ParityReport.model_validate_json(original.model_dump_json()) == original


def test_the_worst_check_decides() -> None:
    assert report(n=30).verdict == "inconclusive"
    assert report(after=dict.fromkeys(range(120), "fees")).verdict == "fail"
    swapped = judge_labels(NAMES, ("loan", "card", "fees"))
    assert report(checks=[swapped]).verdict == "fail"
    assert report(after={5: "card"}, tolerance=1e-4).verdict == "fail"
    assert report(max_flips=0.001).verdict == "inconclusive"


def test_at_most_fifty_changed_samples_are_kept_and_all_are_counted() -> None:
    made_report = report(after=dict.fromkeys(range(0, 240, 3), "fees"))
    assert (len(made_report.changed), made_report.flips) == (50, 80)


def test_data_without_labels_says_that_the_metric_was_not_checked() -> None:
    n = 1200
    sides = made(labels(n), labelled=False), made(labels(n), {4: "card"}, labelled=False)
    made_report = build_report(
        *sides, ["?"] * n, instruction_set="avx2", served=False, margin=0.01, max_flips=0.01, tolerance=None
    )
    assert made_report.verdict == "pass"
    assert made_report.unchecked == ("accuracy not checked: the data has no labels",)
    assert made_report.statement == "pass (accuracy not checked: the data has no labels; not served)"
    assert made_report.reference is made_report.drop is made_report.drop_upper is made_report.discordant is None
    assert made_report.macro_f1 is made_report.worst_class is None
    assert made_report.changed[0].label is None
    assert [check.check for check in made_report.checks] == ["fidelity", "changed answers"]


def test_answers_that_nothing_judges_are_an_error_whatever_else_passed() -> None:
    sides = made(labels(9), labelled=False), made(labels(9), labelled=False)
    with pytest.raises(ParityError, match="nothing judges"):
        build_report(
            *sides, ["?"] * 9, instruction_set="avx2", served=False, margin=0.01, checks=[judge_labels(NAMES, NAMES)]
        )


def test_labels_without_a_margin_are_reported_and_not_judged() -> None:
    made_report = report(margin=None, max_flips=0.01)
    assert made_report.drop == 0
    assert made_report.unchecked == ("accuracy not checked: no margin given",)


def test_an_answer_need_not_be_one_class() -> None:
    n = 400
    spans = [((0, item % 7, "name"),) for item in range(n)]
    right = np.ones(n, dtype=np.bool_)
    made_report = build_report(
        Predictions(spans, right),
        Predictions([*spans[:-1], ()], right),
        ["?"] * n,
        instruction_set="avx2",
        served=False,
        metric="exact match",
        margin=0.05,
    )
    assert (made_report.verdict, made_report.metric, made_report.flips) == ("pass", "exact match", 1)
    assert made_report.macro_f1 is None
    assert made_report.changed[0].candidate == "()"


def test_row_48_nan_logits_fail_whatever_the_answers_say() -> None:
    n = 1200
    broken = made(labels(n))
    assert broken.outputs is not None
    broken.outputs["logits"][3] = np.nan
    made_report = build_report(
        made(labels(n)), broken, ["?"] * n, instruction_set="avx2", served=False, labels=labels(n), margin=0.01
    )
    assert made_report.drop == 0
    assert made_report.verdict == "fail"
    assert made_report.tensors == ()


def test_an_empty_comparison_is_an_error() -> None:
    nothing = Predictions([], np.zeros(0, dtype=np.bool_))
    with pytest.raises(ParityError, match="nothing to compare"):
        build_report(nothing, nothing, [], instruction_set="avx2", served=False, margin=0.01)


def test_sides_that_do_not_fit_together_are_refused() -> None:
    full, unlabelled = made(labels(9)), made(labels(9), labelled=False)
    bare = Predictions(full.answers, full.correct)
    shared: dict[str, Any] = {"instruction_set": "avx2", "served": False, "margin": 0.5, "max_flips": 0.9}
    texts = ["?"] * 9
    with pytest.raises(ParityError, match="only one side"):
        build_report(full, unlabelled, texts, **shared)
    with pytest.raises(ParityError, match="outputs of one side"):
        build_report(full, bare, texts, **shared)
    with pytest.raises(ParityError, match="no outputs"):
        build_report(bare, bare, texts, tolerance=1e-4, **shared)
    with pytest.raises(ParityError, match="labels without"):
        build_report(unlabelled, unlabelled, texts, labels=labels(9), **shared)
    with pytest.raises(ParityError, match="texts and answers"):
        build_report(full, full, texts[:8], **shared)
    short = Predictions(full.answers, np.ones(8, dtype=np.bool_))
    with pytest.raises(ParityError, match="judged answers"):
        build_report(short, short, texts, **shared)
    other = Predictions(full.answers, full.correct, made(labels(8)).outputs)
    with pytest.raises(ParityError, match="samples for 9 answers"):
        build_report(other, other, texts, **shared)


def test_a_verdict_that_the_checks_do_not_give_is_refused() -> None:
    written = report(n=30).model_dump()
    assert written["verdict"] == "inconclusive"
    with pytest.raises(ValidationError, match="not what the checks give"):
        ParityReport.model_validate(written | {"verdict": "pass"})


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="extra"):
        ParityReport.model_validate(report(n=30).model_dump() | {"verdict_of": "x"})


def test_what_float32_itself_explains_is_said_where_it_excused_a_sample() -> None:
    before = made(labels(12))
    assert before.outputs is not None
    moved = {"logits": before.outputs["logits"] + np.float32(3e-4) * (np.arange(12) == 5)[:, np.newaxis]}
    texts, steep = [f"message {item}" for item in range(12)], 1e-4 * (np.arange(12) == 5)

    def proved(rounding: Any) -> ParityReport:
        after = replace(before, outputs=moved)
        return build_report(
            before, after, texts, labels=labels(12), margin=0.9, instruction_set="", served=True, tolerance=1e-4,
            rounding=rounding,
        )  # fmt: skip

    assert proved(None).verdict == "fail"
    excused = proved(steep)
    assert excused.verdict == "pass"
    assert any("0.0001, or than float32 itself explains (0.0003 at most)" in said for said in excused.proved)
