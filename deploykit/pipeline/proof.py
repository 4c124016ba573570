"""The proof that a package answers like the PyTorch model: in process, then through a running server."""

from __future__ import annotations

__all__ = ["prove", "serving_engine"]

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from deploykit.artifacts.store import Draft
from deploykit.events import Listener, Warn, ignore
from deploykit.machine import instruction_set
from deploykit.parity.contract import judge_epsilons, judge_interface
from deploykit.parity.fidelity import compare_outputs, tolerance_of, within_rounding
from deploykit.parity.flips import judge_flips
from deploykit.parity.invariance import judge_invariance
from deploykit.parity.report import build_report
from deploykit.parity.verdict import Verdict
from deploykit.pipeline.context import Context
from deploykit.pipeline.localization import with_location
from deploykit.pipeline.measuring import ModelOutputs, Steps, by_class, padded_batches, run_target, try_target
from deploykit.pipeline.own_rounding import own_rounding
from deploykit.pipeline.packaging import package_settings
from deploykit.pipeline.pairs import judge_forms, labels_of
from deploykit.pipeline.probes import Asked, ask_in_company, make_probes
from deploykit.pipeline.reproducer import fill_reproducer
from deploykit.pipeline.served import check_served
from deploykit.runners import Target, open_runner
from deploykit.runners.anatomy import Precision, anatomy_of
from deploykit.runners.labels import labels_from_folder
from deploykit.runners.medium import medium_of
from deploykit.tasks import Task

_LARGEST_BATCH = 64
_EXTRA = 400
"""Messages that are asked beside the data, about: for the bar."""


def prove(context: Context, draft: Draft) -> str:
    """Prove or refute the staged package on the test split; writes `parity.json` and the outputs behind it.

    Five comparisons: the float32 ONNX against PyTorch, number by number, in padded batches and on hard texts; what
    ships alone against the same in company; the served model against the same file in process, message by message,
    over gRPC and HTTP; answers under load against answers given singly; and the served answers against PyTorch's at
    the task, which is the verdict on the drop.
    """
    task, data, goal, listener = context.task, context.data(), context.recipe.goal, context.listener
    texts = list(data.test.texts)
    right = task.right_answers(data.test.labels or (), data.label_names)
    whole, exported, shipped = context.whole, context.folder("export"), context.folder("quantize")
    engine = serving_engine(context.recipe.serve.engine, listener)
    pruned = context.checkpoint != whole
    total = (4 + pruned + (3 if engine else 0)) * len(texts) + _EXTRA
    steps = Steps("parity", total, listener)

    batches = padded_batches(texts)
    singles = [[index] for index in range(len(texts))]
    labels = labels_from_folder(whole)
    medium = medium_of(task)
    probes = make_probes(medium.encoder(whole), medium)
    gpu = package_settings(context.recipe.package).device == "gpu"
    on = partial(Target, task=task.name, device="cuda" if gpu else "cpu")  # where it is served
    tuned, converted = on("torch", str(whole)), on("torch", str(context.checkpoint))
    plain = on("onnxruntime", str(exported))
    final_target = on("onnxruntime", str(shipped), threads=context.recipe.package.threads)
    reference = run_target(tuned, texts, task, labels, batches, steps)
    source = run_target(converted, texts, task, labels, batches, steps) if pruned else reference
    fp32 = run_target(plain, texts, task, labels, batches, steps)
    in_process = run_target(final_target, texts, task, labels, singles, steps)
    weights = f"{'pruned ' * pruned}PyTorch"
    hard, plain_hard = (run_target(each, probes.texts, task, labels, probes.batches) for each in (converted, plain))
    same_weights = partial(_fidelity, task=task, precision="fp32", target=converted, labels=labels)
    on_hard = same_weights(hard, plain_hard, probes.texts, check=f"float32 ONNX against {weights} on hard texts")
    checks = [
        *judge_forms(tuned, final_target, labels, labels_of(final_target), [*texts, *probes.texts]),
        same_weights(source, fp32, texts, check=f"float32 ONNX against {weights}", exact_answers=True),
        replace(on_hard, details=(*on_hard.details, f"texts: {', '.join(probes.names)}")),
        *_check_form(
            converted, final_target, in_process, texts, task, labels, probes, goal.max_drop, goal.confidence, steps
        ),
    ]
    if context.info("quantize").get("scheme") == "fp16":
        in_half = partial(_fidelity, task=task, precision="fp16", target=converted, labels=labels)
        checks.append(in_half(source, in_process, texts, check="fp16 ONNX against PyTorch"))
    final = in_process
    served_info: dict[str, Any] = {}
    if engine:
        with _serving(context, engine) as urls:
            final, served_checks, served_info = check_served(
                urls, context.recipe.name, texts, task, in_process, steps, goal.confidence, goal.max_drop
            )
            checks += served_checks
    report = build_report(
        reference.predictions(task, right),
        final.predictions(task, right),
        texts,
        instruction_set=instruction_set(),
        served=engine is not None,
        labels=right,
        by_class=by_class(task, reference, final, right),
        metric=task.metric,
        margin=goal.max_drop,
        confidence=goal.confidence,
        checks=checks,
    )
    converts = not any(check.outcome == "fail" and check.check.startswith("float32") for check in checks)
    located = final_target if converts else plain
    report = with_location(report, converted, located, texts, task, listener)
    if report.verdict == "fail":
        (draft.path / "reproducer").mkdir()
        fill_reproducer(draft.path / "reproducer", report, converted, located, texts)
    (draft.path / "parity.json").write_text(report.model_dump_json(indent=1), encoding="utf-8")
    fp32_metric = task.scores(fp32.answers, right).value
    draft.info.update({"verdict": report.verdict, "fp32_onnx": float(fp32_metric), "engine": engine, **served_info})
    upper = "" if report.drop_upper is None else f", drop at most {report.drop_upper:.2%}"
    return f"{report.statement}{upper}"


def serving_engine(asked: str, listener: Listener = ignore) -> str | None:
    """The engine to prove on: what was asked, `embedded` for `auto` where it runs, None for no server."""
    from deploykit.triton.embedded import unsupported_reason

    if asked == "none":
        return None
    if asked != "auto":
        return asked
    reason = unsupported_reason()
    if reason is None:
        return "embedded"
    listener(Warn(f"no embedded Triton here ({reason}): proved in process only, not served"))
    return None


def _fidelity(
    reference: ModelOutputs,
    candidate: ModelOutputs,
    texts: Sequence[str],
    *,
    check: str,
    task: Task,
    precision: Precision,
    target: Target,
    labels: Sequence[str],
    exact_answers: bool = False,
) -> Verdict:
    """Whether the same weights in another form give the same numbers, and (where asked) not one other answer.

    `target` is the reference: of a few messages that differ its own rounding is asked. Where an answer hangs on less
    than that, another one is none.
    """
    name = task.output
    pairs = zip(reference.answers, candidate.answers, strict=True)
    flipped = [row for row, (ours, theirs) in enumerate(pairs) if ours != theirs] if exact_answers else []
    tolerance = tolerance_of(precision, {name: reference.outputs[name]})
    rounding = None
    if precision == "fp32":
        rounding = own_rounding(target, texts, reference, [candidate], tolerance, task, labels, flipped)
    fidelity = compare_outputs(
        {name: reference.outputs[name]}, {name: candidate.outputs[name]}, tolerance, logits=(name,), rounding=rounding
    )
    verdict = replace(fidelity.verdict, check=check)
    if flipped and verdict.outcome == "pass":
        near = within_rounding(reference.outputs[name], candidate.outputs[name], rounding)
        changed = sum(not near[row] for row in flipped)
        said = f"{changed or len(flipped)} answers changed"
        if not changed:
            return replace(verdict, details=(f"{said}, each within float32's own rounding", *verdict.details))
        return replace(verdict, outcome="fail", details=(said, *verdict.details))
    return verdict


@contextlib.contextmanager
def _serving(context: Context, engine: str) -> Iterator[Any]:
    from deploykit.triton.engines import open_server

    with open_server(engine, context.folder("package"), listener=context.listener) as server:
        yield server.urls


def _check_form(
    converted: Target,
    target: Target,
    alone: ModelOutputs,
    texts: Sequence[str],
    task: Task,
    labels: Sequence[str],
    probes: Asked,
    max_flips: float,
    confidence: float,
    steps: Steps,
) -> list[Verdict]:
    """What ships, in process: its interface, every batch size and length, and whether answers depend on the batch."""
    first, second = anatomy_of(converted), anatomy_of(target)
    like = alone.outputs[task.output]
    checks = []
    if second is not None:
        checks.append(judge_interface(second, task.output, like.shape[-1], medium_of(task)))
        epsilons = None if first is None else judge_epsilons(first, second)
        checks += [] if epsilons is None else [epsilons]
    scales_by_batch = second is None or second.dynamic_scales
    with open_runner(target) as runner:
        hard = try_target(
            runner, probes.texts, task, labels, [[index] for index in range(len(probes.texts))], like=like
        )
        together = try_target(runner, texts, task, labels, padded_batches(texts), like=like, steps=steps)
        company = ask_in_company(
            runner, texts, task, labels, probes, hard,
            max_batch=_LARGEST_BATCH, scales_by_batch=scales_by_batch, like=like, steps=steps,
        )  # fmt: skip
    again = judge_invariance(like, company.again, check="the same answers a second time", part="chance")
    checks += [company.shapes, again]
    if not scales_by_batch:
        everyone = ("in padded batches", range(len(texts)), together.outputs[task.output])
        checks.append(judge_invariance(like, [*company.others, everyone]))
    flips = judge_flips(alone.answers, together.answers, max_flips, confidence)
    checks.append(replace(flips, check="answers in padded batches against given singly", part="batching"))
    return checks
