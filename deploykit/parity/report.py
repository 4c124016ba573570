"""The parity report: one comparison's figures, checks and changed samples, as a file can hold them."""

from __future__ import annotations

__all__ = ["ALONE", "Basis", "ChangedSample", "MacroF1", "ParityReport", "Predictions", "build_report"]

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from deploykit.errors import ParityError
from deploykit.parity.calibration import Calibration, compare_calibration, judge_calibration
from deploykit.parity.classification import class_codes, macro_f1
from deploykit.parity.fidelity import Fidelity, TensorFigures, compare_outputs
from deploykit.parity.flips import ByClass, ClassChange, Flips, count_flips, judge_flips
from deploykit.parity.further import FurtherMetric, further_metrics
from deploykit.parity.intervals import bootstrap_drop_upper
from deploykit.parity.localize import Localization
from deploykit.parity.noninferiority import discordant_counts, judge_score_drop, score_drop_bounds, score_interval
from deploykit.parity.verdict import Outcome, Part, Verdict, overall, paired_count
from deploykit.runners.anatomy import Precision
from deploykit.runners.base import Outputs
from deploykit.tasks import Scores

_CHANGED_SAMPLES = 50
ALONE = "fidelity"
"""The check that compares numbers message by message, each alone."""


@dataclass(frozen=True)
class Predictions:
    """What one model said about the messages.

    Attributes:
        answers: [n], what a client would be told.
        correct: bool [n], which of them are right, as the task judges it; None where the data has no labels.
        outputs: the arrays behind the answers, where at hand.
        scores: how right they are, where the metric is not the share of right ones.
    """

    answers: Sequence[Hashable]
    correct: NDArray[np.bool_] | None = None
    outputs: Outputs | None = None
    scores: Scores | None = None


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ChangedSample(_Model):
    """A message that is answered otherwise now."""

    index: int = Field(ge=0, description="position in the data, from 0")
    text: str
    reference: str = Field(description="the reference's answer")
    candidate: str = Field(description="the candidate's answer")
    label: str | None = Field(description="the right answer, where known")


class Basis(_Model):
    """What was compared, and what was asked of it."""

    question: Literal["fidelity", "equivalence"] = Field(
        description="the same weights in another form, whose numbers must agree; or another model, as good at the task"
    )
    reference: str
    candidate: str
    precision: Precision | None = Field(description="the coarser of the two; null where a server hides it")
    tolerance_source: str = Field(description="what the tolerance on the numbers rests on; empty where none is judged")
    batch_dependent: bool = Field(description="whether activations' scales are taken over the batch")


class MacroF1(_Model):
    """Macro F1 of both, and its drop: reported, not judged."""

    reference: float
    candidate: float
    drop: float
    drop_upper: float = Field(description="one-sided upper bound by the paired bootstrap")


class ParityReport(_Model):
    """Whether a candidate still answers like its reference. Metrics, drops and rates are fractions."""

    schema_version: Literal[1] = 1
    verdict: Outcome
    unchecked: tuple[str, ...] = Field(description="what was not judged, and why")
    n: int = Field(ge=1, description="messages compared")
    metric: str
    reference: float | None = Field(description="the reference's metric; null without labels")
    candidate: float | None
    interval: tuple[float, float] | None = Field(
        default=None, description="two-sided interval of the candidate's metric: exact for a share, else bootstrapped"
    )
    drop: float | None
    drop_upper: float | None = Field(description="one-sided upper bound of the drop")
    bound: Literal["score", "bootstrap"] = Field(default="score", description="how that was found")
    further: tuple[FurtherMetric, ...] = Field(
        default=(), description="metrics that have to hold as well: each is a claim of its own"
    )
    confidence: float
    discordant: int | None = Field(description="b + c")
    b: int | None = Field(description="wholly right to not")
    c: int | None = Field(description="not wholly right to right")
    flips: int = Field(description="changed answers, right or not")
    flips_upper: float = Field(description="one-sided Clopper-Pearson bound of the rate of changed answers")
    classes: tuple[ClassChange, ...] = Field(description="by label, or by the reference's answer without labels")
    worst_class: ClassChange | None = Field(description="the class with the candidate's lowest recall")
    macro_f1: MacroF1 | None
    tensors: tuple[TensorFigures, ...] = Field(description="differences of the outputs")
    checks: tuple[Verdict, ...]
    changed: tuple[ChangedSample, ...] = Field(max_length=_CHANGED_SAMPLES, description="worst first")
    instruction_set: str = Field(description="what the verdict holds on: int8 kernels differ elsewhere")
    served: bool = Field(description="whether the candidate answered through a server, from raw text")
    basis: Basis | None = Field(None, description="what was compared, and what was asked of it")
    calibration: Calibration | None = Field(None, description="how sure both are of their answers")
    localized: Localization | None = Field(default=None, description="where a failure begins, and why")

    @model_validator(mode="after")
    def _verdict_follows_from_checks(self) -> Self:
        if self.verdict != overall(self.checks):
            raise ValueError(f"the verdict {self.verdict!r} is not what the checks give")
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics that are judged, the first one first."""
        return self.metric, *(each.metric for each in self.further)

    @property
    def suspect(self) -> Part | None:
        """What between text and answer is at fault; None where no check failed.

        Numbers that differ only among other messages point at the batch, not at the weights.
        """
        failed = [check for check in self.checks if check.outcome == "fail"]
        parts = {check.part for check in failed}
        alone = next((check.outcome for check in self.checks if check.check == ALONE), None)
        if alone == "pass" and "batching" in parts:
            parts -= {"model"}
        return next((part for part in get_args(Part) if part in parts), None)

    @property
    def proved(self) -> tuple[str, ...]:
        """What the checks that passed say, with bounds, a sentence each; what it does not cover is in `statement`."""
        passed = {check.check: check for check in self.checks if check.outcome == "pass"}
        sure = f"With {100 * self.confidence:g} % confidence"
        said = []
        for metric in self.metrics:
            drop = passed.get(f"{metric} drop")
            if drop is not None and drop.bound is not None:
                said.append(
                    f"{sure} the {metric} fell by less than {100 * max(drop.bound, 0):.2f} points "
                    f"(seen: {100 * (drop.figure or 0):.2f}), on {self.n:,} messages."
                )
        if "changed answers" in passed:
            said.append(f"{sure} at most {100 * self.flips_upper:.2f} % of answers changed ({self.flips:,} did).")
        alone = passed.get(ALONE)
        if alone is not None and alone.limit is not None:
            steep = (alone.figure or 0.0) > alone.limit
            beyond = f"{alone.limit:.2g}, or than float32 itself explains" if steep else f"{alone.limit:.2g}"
            said.append(f"No logit differs by more than {beyond} ({alone.figure:.2g} at most).")
        if "answers alone and among others" in passed:
            said.append("An answer does not depend on the other messages of its batch, their order or padding.")
        if "every batch size and length" in passed:
            said.append(f"Batches and lengths were tried: {passed['every batch size and length'].details[0]}.")
        return tuple(said)

    @property
    def statement(self) -> str:
        """The verdict in words, with what it does not cover."""
        notes = [*self.unchecked, *([] if self.served else ["not served"])]
        return self.verdict + (f" ({'; '.join(notes)})" if notes else "")


def build_report(
    reference: Predictions,
    candidate: Predictions,
    texts: Sequence[str],
    *,
    instruction_set: str,
    served: bool,
    labels: Sequence[Hashable] | None = None,
    by_class: ByClass | None = None,
    metric: str = "accuracy",
    margin: float | None = None,
    max_flips: float | None = None,
    tolerance: float | None = None,
    relative_rms: float | None = None,
    rounding: NDArray[np.float64] | None = None,
    calibration_limit: float | None = None,
    confidence: float = 0.95,
    checks: Sequence[Verdict] = (),
    basis: Basis | None = None,
    unchecked: Sequence[str] = (),
) -> ParityReport:
    """Compare two models' predictions on the same messages and judge them.

    Args:
        reference: what the model to live up to said.
        candidate: what the model on trial said.
        texts: the messages, or how else the items are shown.
        instruction_set: of the machine the candidate ran on.
        served: whether the candidate answered through a server.
        labels: the right answers [n].
        by_class: what recall by class is counted on, where an answer is not one class; there is no macro F1 then.
        metric: what the share of right answers is called.
        margin: the drop of the metric that is too much; judged where both sides have `correct`.
        max_flips: the rate of changed answers that passes; None reports it only.
        tolerance: for the outputs, where both sides have them (see `compare_outputs`); None judges form and NaN only.
        relative_rms: for the outputs, all together (see `compare_outputs`).
        rounding: how far the reference is from itself in float64 (see `compare_outputs`).
        calibration_limit: how far the mean confidence may move; None reports it only.
        confidence: of every one-sided bound.
        checks: verdicts made elsewhere on the same models (labels, tokenizer, identity).
        basis: what was compared, for the report.
        unchecked: what else was not judged, and why.

    Raises:
        ParityError: nothing to compare, nothing that judges the answers (no labels, flip limit or tolerance), sides of
            unequal length, or `correct` or outputs on one side only.
    """
    n = paired_count("answers", reference.answers, candidate.answers)
    paired_count("texts and answers", texts, reference.answers)
    correct = _correct(reference, candidate, labels, n)
    fidelity = _fidelity(reference, candidate, tolerance, relative_rms, rounding, n)
    calibration = _calibration(reference, candidate, correct, confidence)
    flips = count_flips(
        reference.answers,
        candidate.answers,
        labels=labels,
        by_class=by_class,
        severity=None if fidelity is None else fidelity.by_sample,
        confidence=confidence,
    )
    judged = _judge(
        reference,
        candidate,
        correct=correct,
        metric=metric,
        margin=margin,
        max_flips=max_flips,
        confidence=confidence,
    )
    if calibration is not None and calibration_limit is not None:
        judged.append(judge_calibration(calibration, calibration_limit, n))
    if not judged and tolerance is None:
        raise ParityError(
            "nothing judges the answers: no margin with labels, no flip limit, no tolerance",
            "label the data, or set a limit for changed answers",
        )
    verdicts = (*checks, *(() if fidelity is None else (fidelity.verdict,)), *judged)
    b, c = (None, None) if correct is None else discordant_counts(*correct)[:2]
    scores = None if correct is None else (_scored(reference, correct[0]), _scored(candidate, correct[1]))
    macro = None
    if labels is not None and by_class is None:
        macro = _macro_f1(reference.answers, candidate.answers, labels, confidence)
    return ParityReport(
        verdict=overall(verdicts),
        unchecked=tuple(unchecked) or _unchecked(correct is not None, margin, metric),
        n=n,
        metric=metric,
        reference=None if scores is None else scores[0].value,
        candidate=None if scores is None else scores[1].value,
        interval=None if scores is None or not scores[1].possible.any() else score_interval(scores[1], confidence),
        drop=None if scores is None else scores[0].value - scores[1].value,
        drop_upper=None if scores is None else score_drop_bounds(scores[0], scores[1], confidence)[1],
        bound="score" if scores is None or all(each.is_share for each in scores) else "bootstrap",
        further=() if scores is None else further_metrics(*scores, confidence),
        confidence=confidence,
        discordant=None if b is None or c is None else b + c,
        b=b,
        c=c,
        flips=flips.count,
        flips_upper=flips.rate_upper,
        classes=flips.classes,
        worst_class=flips.worst_class,
        macro_f1=macro,
        tensors=() if fidelity is None else fidelity.tensors,
        checks=verdicts,
        changed=_changed_samples(flips, texts, reference, candidate, labels),
        instruction_set=instruction_set,
        served=served,
        basis=basis,
        calibration=calibration,
    )


def _calibration(
    reference: Predictions,
    candidate: Predictions,
    correct: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None,
    confidence: float,
) -> Calibration | None:
    """How sure both are, where both have the logits of a class each."""
    if reference.outputs is None or candidate.outputs is None:
        return None
    ours, theirs = reference.outputs.get("logits"), candidate.outputs.get("logits")
    comparable = ours is not None and theirs is not None and ours.ndim == 2 and ours.shape == theirs.shape
    if ours is None or theirs is None or not comparable or ours.dtype.kind != "f" or theirs.dtype.kind != "f":
        return None
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return None
    return compare_calibration(ours, theirs, correct, confidence)


def _correct(
    reference: Predictions, candidate: Predictions, labels: Sequence[Hashable] | None, n: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    if reference.correct is None and candidate.correct is None:
        if labels is not None:
            raise ParityError("labels without `correct`", "let the task say which answers are right")
        return None
    if reference.correct is None or candidate.correct is None:
        raise ParityError("only one side says which answers are right", "judge both against the same labels")
    if len(reference.correct) != n or len(candidate.correct) != n:
        raise ParityError(f"{len(reference.correct)} and {len(candidate.correct)} judged answers of {n}")
    return reference.correct, candidate.correct


def _scored(side: Predictions, correct: NDArray[np.bool_]) -> Scores:
    return Scores(correct.astype(np.float64), np.ones(len(correct))) if side.scores is None else side.scores


def _fidelity(
    reference: Predictions,
    candidate: Predictions,
    tolerance: float | None,
    relative_rms: float | None,
    rounding: NDArray[np.float64] | None,
    n: int,
) -> Fidelity | None:
    if reference.outputs is None and candidate.outputs is None:
        if tolerance is not None:
            raise ParityError("a tolerance, but no outputs to hold it against", "pass the outputs of both")
        return None
    if reference.outputs is None or candidate.outputs is None:
        raise ParityError("outputs of one side only", "pass the outputs of both, or neither")
    fidelity = compare_outputs(
        reference.outputs, candidate.outputs, tolerance, relative_rms=relative_rms, rounding=rounding
    )
    if fidelity.verdict.n != n:
        raise ParityError(f"outputs of {fidelity.verdict.n} samples for {n} answers")
    return fidelity


def _judge(
    reference: Predictions,
    candidate: Predictions,
    *,
    correct: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None,
    metric: str,
    margin: float | None,
    max_flips: float | None,
    confidence: float,
) -> list[Verdict]:
    judged = []
    if correct is not None and margin is not None:
        ours, theirs = (
            _scored(side, right).by_metric(metric) for side, right in zip((reference, candidate), correct, strict=True)
        )
        judged += [judge_score_drop(ours[name], theirs[name], margin, confidence, metric=name) for name in ours]
    if max_flips is not None:
        judged.append(judge_flips(reference.answers, candidate.answers, max_flips, confidence))
    return judged


def _unchecked(labelled: bool, margin: float | None, metric: str) -> tuple[str, ...]:
    if not labelled:
        return (f"{metric} not checked: the data has no labels",)
    return () if margin is not None else (f"{metric} not checked: no margin given",)


def _macro_f1(
    reference: Sequence[Hashable], candidate: Sequence[Hashable], labels: Sequence[Hashable], confidence: float
) -> MacroF1:
    before, after, truth = class_codes(reference, candidate, labels)
    figures = macro_f1(before, truth), macro_f1(after, truth)
    return MacroF1(
        reference=figures[0],
        candidate=figures[1],
        drop=figures[0] - figures[1],
        drop_upper=bootstrap_drop_upper(macro_f1, before, after, truth, confidence=confidence),
    )


def _changed_samples(
    flips: Flips,
    texts: Sequence[str],
    reference: Predictions,
    candidate: Predictions,
    labels: Sequence[Hashable] | None,
) -> tuple[ChangedSample, ...]:
    return tuple(
        ChangedSample(
            index=item,
            text=texts[item],
            reference=str(reference.answers[item]),
            candidate=str(candidate.answers[item]),
            label=None if labels is None else str(labels[item]),
        )
        for item in flips.changed[:_CHANGED_SAMPLES]
    )
