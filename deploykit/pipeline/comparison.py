"""Proves or refutes that one model answers like another: any two targets, on any messages."""

from __future__ import annotations

__all__ = ["Question", "compare_models"]

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deploykit.data.labels import Label, classes_of
from deploykit.errors import DataError
from deploykit.events import Listener, ignore
from deploykit.machine import instruction_set
from deploykit.parity.calibration import CALIBRATION_LIMIT
from deploykit.parity.contract import judge_epsilons, judge_interface
from deploykit.parity.fidelity import RELATIVE_RMS, TOLERANCES, compare_outputs, tolerance_of
from deploykit.parity.flips import judge_flips
from deploykit.parity.invariance import INVARIANCE, judge_invariance
from deploykit.parity.report import Basis, ParityReport, build_report
from deploykit.parity.verdict import Verdict
from deploykit.pipeline.measuring import (
    ModelOutputs,
    OutputCache,
    Steps,
    by_class,
    padded_batches,
    run_target,
    try_target,
)
from deploykit.pipeline.own_rounding import own_rounding
from deploykit.pipeline.pairs import architecture_of, judge_forms, labels_of, tokenizer_folder
from deploykit.pipeline.probes import Asked, Company, ask_in_company, make_probes
from deploykit.pipeline.served import check_endpoint
from deploykit.runners import Target, open_runner
from deploykit.runners.anatomy import Anatomy, Precision, anatomy_of, coarser
from deploykit.runners.medium import medium_of
from deploykit.tasks import Answer, Task

Question = Literal["auto", "fidelity", "equivalence"]

_SERVED_BATCH = 8
"""What any package takes as one request."""
_LARGEST_BATCH = 64
_EXTRA = 640
"""Messages that are asked beside the data, about: for the bar."""


@dataclass(frozen=True)
class _Measured:
    """What both gave: the data in padded batches, the candidate's alone too, and the texts chosen to break it."""

    reference: ModelOutputs
    alone: ModelOutputs
    together: ModelOutputs
    hard_reference: ModelOutputs
    hard: ModelOutputs
    probes: Asked
    company: Company


@dataclass(frozen=True)
class _Asked:
    """What a comparison rests on.

    Attributes:
        basis: as the report says it.
        precision: the coarser of both sides; None where one is not known.
        tolerance: on single logits.
        relative_rms: on all of them together.
        scales_by_batch: whether the candidate's answers may depend on its batch.
    """

    basis: Basis
    precision: Precision | None
    tolerance: float | None
    relative_rms: float | None
    scales_by_batch: bool


def compare_models(
    reference: Target,
    candidate: Target,
    texts: Sequence[str],
    given: Sequence[Label] | None,
    task: Task,
    *,
    labels: Sequence[str],
    max_drop: float,
    max_flips: float | None = None,
    tolerance: float | None = None,
    confidence: float = 0.95,
    question: Question = "auto",
    cache: OutputCache | None = None,
    also: Target | None = None,
    listener: Listener = ignore,
) -> ParityReport:
    """Prove or refute that a candidate answers like its reference: any two targets.

    Args:
        reference: what to live up to.
        candidate: what is on trial.
        texts: the messages.
        given: their right labels; None checks behaviour without the metric, and so do labels that the model does
            not know.
        task: what both do.
        labels: the reference's labels in index order.
        max_drop: the drop of the metric that is too much.
        max_flips: the rate of changed answers that passes; None reports it only (where there are labels).
        tolerance: on single logits; None takes what the coarser precision of the two explains.
        confidence: of the one-sided bounds.
        question: `fidelity` for the same weights in another form, whose numbers have to agree; `equivalence` for
            another model, held to the task alone; `auto` asks for fidelity where both config.json describe weights of
            the same shapes, or one has none.
        cache: where PyTorch's outputs are kept.
        also: a served candidate by its other address, which has to give the same.
        listener: hears of progress.

    Raises:
        ModelError: the reference can't be loaded or run, or the candidate can't be loaded.
        ParityError: there is nothing to compare.
    """
    anatomies = anatomy_of(reference), anatomy_of(candidate)
    # Each model's answers have the names that its own files give them: a label permuted on the way is wrong though its
    # logits are right.
    named = labels_of(candidate)
    own = labels if named is None else named
    steps = Steps("parity", _messages_asked(candidate, also, len(texts)), listener)
    measured = _measure(reference, candidate, texts, task, labels, own, anatomies, cache, steps)
    asked = _asked(reference, candidate, anatomies, question, tolerance, measured.reference.outputs[task.output])
    encodable = texts if tokenizer_folder(candidate) is None else [*texts, *measured.probes.texts]
    checks = judge_forms(reference, candidate, labels, named, encodable)
    checks += _form_checks(anatomies, measured, asked, task)
    # Who names a tolerance holds the numbers to it.
    roundings = (
        (None, None) if tolerance is not None else _own_roundings(reference, texts, measured, asked, task, labels)
    )
    checks += _number_checks(measured, asked, task, roundings)
    limit = max_drop if max_flips is None else max_flips
    if candidate.kind == "triton":
        checks += check_endpoint(candidate, also, texts, task, own, measured.alone, limit, confidence, steps)
    padded = judge_flips(measured.alone.answers, measured.together.answers, limit, confidence)
    checks.append(replace(padded, check="answers in padded batches against given singly", part="batching"))
    right, unknown = _right_answers(given, labels, task)
    if right is None and max_flips is None:
        max_flips = max_drop
    # Tokens that are cut otherwise can't be compared one by one.
    shapes = {each.outputs[task.output].shape for each in (measured.reference, measured.alone)}
    numbers = not task.per_token or len(shapes) == 1
    fidelity = asked.basis.question == "fidelity"
    return build_report(
        measured.reference.predictions(task, right, with_outputs=numbers),
        measured.alone.predictions(task, right, with_outputs=numbers),
        texts,
        instruction_set=instruction_set(),
        served=candidate.kind == "triton",
        labels=right,
        by_class=None if right is None else by_class(task, measured.reference, measured.alone, right),
        metric=task.metric,
        margin=max_drop if right is not None else None,
        max_flips=max_flips,
        tolerance=asked.tolerance if numbers else None,
        relative_rms=asked.relative_rms,
        rounding=roundings[0] if numbers else None,
        calibration_limit=CALIBRATION_LIMIT.get(asked.precision) if asked.precision and fidelity else None,
        confidence=confidence,
        checks=checks,
        basis=asked.basis,
        unchecked=unknown,
    )


def _right_answers(
    given: Sequence[Label] | None, labels: Sequence[str], task: Task
) -> tuple[list[Answer] | None, tuple[str, ...]]:
    """The right answers, and why the metric is not checked though the data has labels."""
    if given is None:
        return None, ()
    try:
        return task.right_answers(given, labels), ()
    except DataError:
        strange: dict[str, None] = {}
        count = 0
        for label in given:
            try:
                task.right_answers([label], labels)
            except DataError:
                count += 1
                strange.update(dict.fromkeys(map(str, classes_of(label))))
        shown = ", ".join(sorted(strange)[:3]) + (", ..." if len(strange) > 3 else "")
        said = f"the metric is not checked: the model does not know the labels of {count:,} messages ({shown})"
        return None, (said,)


def _messages_asked(candidate: Target, also: Target | None, count: int) -> int:
    """About how many messages a comparison asks: the reference once, the candidate twice; a server by many clients."""
    return (3 + (candidate.kind == "triton") + (also is not None)) * count + _EXTRA


def _measure(
    reference: Target,
    candidate: Target,
    texts: Sequence[str],
    task: Task,
    labels: Sequence[str],
    own: Sequence[str],
    anatomies: tuple[Anatomy | None, Anatomy | None],
    cache: OutputCache | None,
    steps: Steps,
) -> _Measured:
    folder = tokenizer_folder(reference)
    medium = medium_of(task)
    probes = make_probes(None if folder is None else medium.encoder(folder), medium)
    small = candidate.kind == "triton" or reference.kind == "triton"
    batches = padded_batches(texts, _SERVED_BATCH) if small else padded_batches(texts)
    singles = [[index] for index in range(len(texts))]
    steady = anatomies[0] is not None and not anatomies[0].dynamic_scales
    ours, hard_ours = _reference(
        reference, (texts, probes.texts),
        (batches if steady else singles, probes.batches if steady else [[index] for index in range(len(probes.texts))]),
        task, labels, cache, steps,
    )  # fmt: skip
    like = ours.outputs[task.output]
    with open_runner(candidate) as runner:
        alone = try_target(runner, texts, task, own, singles, like=like, steps=steps)
        together = try_target(runner, texts, task, own, batches, like=like, steps=steps)
        each = [[index] for index in range(len(probes.texts))]
        hard = try_target(runner, probes.texts, task, own, each, like=like, steps=steps)
        company = ask_in_company(
            runner, texts, task, own, probes, hard,
            max_batch=_SERVED_BATCH if small else _LARGEST_BATCH,
            scales_by_batch=anatomies[1] is None or anatomies[1].dynamic_scales,
            like=like, steps=steps,
        )  # fmt: skip
    return _Measured(ours, alone, together, hard_ours, hard, probes, company)


def _reference(
    target: Target,
    texts: tuple[Sequence[str], Sequence[str]],
    batches: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
    task: Task,
    labels: Sequence[str],
    cache: OutputCache | None,
    steps: Steps,
) -> tuple[ModelOutputs, ModelOutputs]:
    """The reference's outputs for the data and for the texts chosen to break models; PyTorch's from the cache."""
    kept = cache is not None and target.kind == "torch" and not task.per_token
    key = cache.key(target, texts, batches) if cache is not None and kept else None
    found = cache.get(key) if cache is not None and key is not None else None
    if found is not None and [len(part) for part in found] == [len(part) for part in texts]:
        steps.skip(sum(len(part) for part in texts))
        data, hard = (
            ModelOutputs({task.output: part}, tuple(task.answers({task.output: part}, labels))) for part in found
        )
        return data, hard
    data = run_target(target, texts[0], task, labels, batches[0], steps)
    hard = run_target(target, texts[1], task, labels, batches[1], steps)
    if cache is not None and key is not None:
        cache.put(key, [data.outputs[task.output], hard.outputs[task.output]])
    return data, hard


def _asked(
    reference: Target,
    candidate: Target,
    anatomies: tuple[Anatomy | None, Anatomy | None],
    question: Question,
    tolerance: float | None,
    values: NDArray[Any],
) -> _Asked:
    first, second = anatomies
    precision = None if first is None or second is None else coarser(first.precision, second.precision)
    shapes = architecture_of(reference), architecture_of(candidate)
    if question == "auto":
        same = shapes[0] is None or shapes[1] is None or shapes[0] == shapes[1]
        # Asked for by the number: whoever names a tolerance holds the logits to it.
        question = "fidelity" if tolerance is not None or (same and precision is not None) else "equivalence"
    relative, source = None, ""
    if question == "fidelity" and tolerance is not None:
        source = "given"
    elif question == "fidelity" and precision is not None:
        tolerance = tolerance_of(precision, {"logits": values})
        relative = RELATIVE_RMS[precision]
        side = second if first is None or (second is not None and precision == second.precision) else first
        number = f"{relative:g} of the spread" if TOLERANCES[precision] is None else f"{tolerance:.2g}"
        source = f"{number} is what {precision} explains ({side.source if side else 'unknown'})"
    elif question == "equivalence":
        tolerance = None
    basis = Basis(
        question=question,
        reference=reference.location,
        candidate=candidate.location,
        precision=precision,
        tolerance_source=source,
        batch_dependent=second is not None and second.dynamic_scales,
    )
    return _Asked(basis, precision, tolerance, relative, second is None or second.dynamic_scales)


def _form_checks(
    anatomies: tuple[Anatomy | None, Anatomy | None], measured: _Measured, asked: _Asked, task: Task
) -> list[Verdict]:
    """The interface as written, as tried, and the epsilons."""
    first, second = anatomies
    checks = []
    if second is not None and second.inputs:
        width = measured.reference.outputs[task.output].shape[-1]
        checks.append(judge_interface(second, task.output, width, medium_of(task)))
    checks.append(measured.company.shapes)
    if first is not None and second is not None and asked.basis.question == "fidelity":
        epsilons = judge_epsilons(first, second)
        checks += [] if epsilons is None else [epsilons]
    return checks


_Rounding = NDArray[np.float64] | None


def _own_roundings(
    reference: Target, texts: Sequence[str], measured: _Measured, asked: _Asked, task: Task, labels: Sequence[str]
) -> tuple[_Rounding, _Rounding]:
    """The reference's own rounding on the data's messages and on the hard texts, where it may excuse a difference."""
    if asked.precision != "fp32" or asked.basis.question != "fidelity":
        return None, None
    of_data = own_rounding(
        reference, texts, measured.reference, [measured.alone, measured.together], asked.tolerance, task, labels
    )
    hard = measured.probes.texts
    return of_data, own_rounding(
        reference, hard, measured.hard_reference, [measured.hard], asked.tolerance, task, labels
    )


def _number_checks(
    measured: _Measured, asked: _Asked, task: Task, roundings: tuple[_Rounding, _Rounding]
) -> list[Verdict]:
    """The numbers in padded batches and on hard texts, and whether they depend on the batch."""
    name = task.output
    checks = []

    def logits(found: ModelOutputs) -> dict[str, NDArray[Any]]:
        return {name: found.outputs[name]}

    judged = asked.basis.question == "fidelity"
    hard_limits = (asked.tolerance, None) if judged else (None, None)  # garbage may saturate int8: only reported
    for check, ours, theirs, (tolerance, relative), names, rounding in (
        (
            "numbers in padded batches", measured.reference, measured.together,
            (asked.tolerance, asked.relative_rms) if judged else (None, None), (), roundings[0],
        ),
        (
            "numbers on hard texts", measured.hard_reference, measured.hard, hard_limits, measured.probes.names,
            roundings[1],
        ),
    ):  # fmt: skip
        compared = compare_outputs(
            logits(ours), logits(theirs), tolerance, logits=(name,), relative_rms=relative, rounding=rounding
        )
        details = compared.verdict.details
        if names and compared.worst_sample is not None:
            details = (f"sample {compared.worst_sample} is: {names[compared.worst_sample]}", *details)
        details = (*details, *_reasons(theirs))
        checks.append(replace(compared.verdict, check=check, details=details))
    limit = INVARIANCE
    if asked.precision in ("fp16", "bf16") and asked.tolerance is not None:
        limit = asked.tolerance
    others = list(measured.company.others)
    if not asked.scales_by_batch and measured.together.outputs[name].shape == measured.alone.outputs[name].shape:
        everything = tuple(range(len(measured.alone.answers)))
        others.append(("in padded batches", everything, measured.together.outputs[name]))
    alone = measured.alone.outputs[name]
    checks.append(
        judge_invariance(
            alone, measured.company.again, limit=limit, check="the same answers a second time", part="chance"
        )
    )
    if others:
        checks.append(judge_invariance(alone, others, limit=limit))
    return checks


def _reasons(found: ModelOutputs) -> tuple[str, ...]:
    """Why messages have no answer, once each."""
    return tuple(f"no answer: {reason}" for reason in list(dict.fromkeys(found.failures.values()))[:2])
