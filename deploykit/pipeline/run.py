"""Runs a plan: finds what was made before, makes the rest, measures, publishes what passed, and says what came out."""

from __future__ import annotations

__all__ = ["join_run", "run_recipe"]

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

from deploykit.artifacts.store import Store
from deploykit.errors import ArtifactError, ExitCode, UsageError
from deploykit.events import Listener, StageFinished, StageStarted, Warn, ignore
from deploykit.latency.goal import judge_goal
from deploykit.latency.measure import Samples, measure
from deploykit.latency.messages import timed_messages
from deploykit.machine import cpu_model, instruction_set, usable_cores
from deploykit.parity.report import ParityReport
from deploykit.pipeline.context import Context
from deploykit.pipeline.order import STAGES, Stage
from deploykit.pipeline.plan import is_kept, make_plan, refuse_what_does_not_fit
from deploykit.pipeline.proof import serving_engine
from deploykit.pipeline.record import recorded
from deploykit.pipeline.selection import pruned_candidates
from deploykit.pipeline.stages import CACHED_STAGES, pruning_of, study_of
from deploykit.pipeline.study import check_storage
from deploykit.recipe import Recipe
from deploykit.recipe.machine import check_machine
from deploykit.report.page import write_report
from deploykit.report.result import Figures, GoalOutcome, Learned, RunResult, Shipped, exit_code_of, model_size_mb
from deploykit.runners import Target
from deploykit.runners.medium import medium_of

WORKSPACE = Path(".deploykit")
REPOSITORY = Path("model_repository")


def run_recipe(
    recipe: Recipe,
    *,
    base: Path = Path(),
    workspace: Path = WORKSPACE,
    repository: Path = REPOSITORY,
    until: Stage | None = None,
    start: Stage | None = None,
    study: str | None = None,
    listener: Listener = ignore,
) -> RunResult | None:
    """Run the whole pipeline of a recipe, or what is left of it to do.

    What a stage made before is found by the digest of everything that decides it. Latency is measured every time.
    The package is published only where parity passes and the goal is met; else the best so far stays in the workspace.

    Args:
        recipe: what to build.
        base: the folder that its relative paths start from.
        workspace: where artefacts, locks and logs are kept.
        repository: the Triton model repository to publish into.
        until: the last stage to run.
        start: the first stage to run anew, though its artefact may be there.
        study: a storage (see `open_study`) through which `join_run` takes part in the pruning elsewhere.
        listener: hears of progress.

    Returns:
        what came out, without times where `until` is parity; None where it ended the run before the verdict.

    Raises:
        DeploykitError: a stage failed; the artefacts of the stages before it stay.
        KeyboardInterrupt: interrupted; the next run goes on.
    """
    for warning in check_machine(recipe):
        listener(Warn(warning))
    last = STAGES.index(until) if until else len(STAGES) - 1
    first = STAGES.index(start) if start else len(STAGES)
    if first > last and start:
        raise UsageError(f"--from {start} comes after --until {until}", f"the order is {', '.join(STAGES)}")
    if study is not None:
        _check_shared(recipe, study)
    refuse_what_does_not_fit(recipe)
    plan = make_plan(recipe, base)
    context = Context(recipe, base, plan, Store(workspace / "store", listener), listener, study=study)
    with recorded(workspace, recipe.name) as at:
        return _run(context, repository, first=first, last=last, at=at)


def join_run(
    recipe: Recipe, study: str, *, base: Path = Path(), workspace: Path = WORKSPACE, listener: Listener = ignore
) -> int:
    """Train finalists of the pruning of a run elsewhere, which shares them through a study; how many.

    The run's data and whole model are read from the workspace, so it is the run's own or has copies of its artefacts.
    Nothing is timed, and nothing is left there.

    Args:
        recipe: the run's.
        study: the run's.
        base: the folder that its relative paths start from.
        workspace: where the artefacts are.
        listener: hears of progress.

    Raises:
        UsageError: the recipe shares nothing, an artefact is not there, or the study is none of this pruning.
    """
    from deploykit.pipeline.compression import join_pruning

    _check_shared(recipe, study)
    context = Context(recipe, base, make_plan(recipe, base), Store(workspace / "store", listener), listener)
    for stage in context.plan.step("prune").parents:
        step = context.plan.step(cast(Stage, stage))
        found = None if step.key is None else context.store.find(stage, step.key)
        if found is None:
            raise UsageError(
                f"{workspace} has no {stage} of this recipe: a worker trains what a run prunes, and makes no more",
                "give the run's own workspace with --workspace, or a copy, once the run has come to prune",
            )
        context.artifacts[stage] = found
    with tempfile.TemporaryDirectory(prefix="deploykit-worker-") as scratch:
        return join_pruning(
            context.whole,
            study=study_of(context, study, join=True),
            workspace=Path(scratch) / "prune",
            **pruning_of(context),
        )


def _check_shared(recipe: Recipe, study: str) -> None:
    if not recipe.prunes or recipe.prune.keep:
        raise UsageError(
            "the recipe searches for nothing that machines could share",
            "leave --study out; it shares the trials of pruning under goal.speedup, p50_ms, p99_ms or size_mb",
        )
    check_storage(study)


def _run(context: Context, repository: Path, *, first: int, last: int, at: Callable[[Stage], None]) -> RunResult | None:
    recipe = context.recipe
    for stage in CACHED_STAGES:
        if STAGES.index(stage) > last:
            return None
        if not any(step.stage == stage for step in context.plan.steps):
            continue
        at(stage)
        _ensure(context, stage, anew=STAGES.index(stage) >= first)
    parity = ParityReport.model_validate_json((context.folder("parity") / "parity.json").read_text(encoding="utf-8"))
    timed: dict[str, Samples] = {}
    goals: tuple[GoalOutcome, ...] = ()
    if last >= STAGES.index("latency"):
        at("latency")
        timed = _timed_stage(context)
        size_mb = model_size_mb(context.folder("quantize"))
        checks = judge_goal(recipe.goal, timed["reference"], timed["shipped"], size_mb)
        goals = tuple(GoalOutcome(**dataclasses.asdict(check)) for check in checks)
    published = None
    if last >= STAGES.index("publish") and exit_code_of(parity.verdict, goals) == ExitCode.PASS:
        at("publish")
        published = _publish(context, repository)
    result = _result(context, parity, timed, goals, published)
    write_report(result, parity, Path(result.report))
    return result


def _ensure(context: Context, stage: Stage, *, anew: bool) -> None:
    """Find the stage's artefact, or make it."""
    step = context.plan.step(stage)
    if step.key is None:
        raise ArtifactError(f"{stage} has no key")
    if anew:
        context.store.discard(stage, step.key)
    began = time.monotonic()
    with context.store.claim(stage, step.key) as found:
        if found is not None and is_kept(found.manifest):
            context.artifacts[stage] = found
            context.listener(
                StageFinished(stage, time.monotonic() - began, True, str(found.manifest.info.get("outcome", "")))
            )
            return
        if found is not None:
            context.store.discard(stage, step.key)
        context.listener(StageStarted(stage))
        code = CACHED_STAGES[stage]
        with context.store.create(
            stage,
            step.key,
            settings=step.settings,
            parents=step.parents,
            seed=context.recipe.seed,
            versions=step.versions,
            device=instruction_set(),
            expects=(*code.expects, *(medium_of(context.task).beside if code.model else ())),
        ) as draft:
            outcome = code.make(context, draft)
            draft.info["outcome"] = outcome
    if draft.artifact is None:
        raise ArtifactError(f"{stage} ended without an artefact")
    context.artifacts[stage] = draft.artifact
    context.listener(StageFinished(stage, time.monotonic() - began, False, outcome))


def _timed_stage(context: Context) -> dict[str, Samples]:
    began = time.monotonic()
    context.listener(StageStarted("latency"))
    recipe = context.recipe
    texts = context.data().test.texts
    lengths = recipe.goal.target.lengths
    messages = timed_messages(texts, recipe.latency.messages, lengths, context.whole)
    task = recipe.task
    targets = {
        "reference": Target("torch", str(context.whole), device="cpu", task=task),
        "onnx_fp32": Target("onnxruntime", str(context.folder("export")), task=task),
        "shipped": Target("onnxruntime", str(context.folder("quantize")), threads=recipe.package.threads, task=task),
    }
    if recipe.package.device != "cpu":
        targets["reference"] = dataclasses.replace(targets["reference"], device="auto")
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(_server(context))
        if url is not None:
            targets["served"] = Target("triton", f"{url}/{recipe.name}", task=task)
        timed = measure(
            targets, messages, blocks=recipe.latency.blocks, warmup=recipe.latency.warmup, listener=context.listener
        )
    outcome = f"{timed['reference'].p50_ms / timed['shipped'].p50_ms:.1f}x PyTorch at p50"
    context.listener(StageFinished("latency", time.monotonic() - began, False, outcome))
    return timed


@contextlib.contextmanager
def _server(context: Context) -> Iterator[str | None]:
    engine = serving_engine(context.recipe.serve.engine)
    if engine is None:
        yield None
        return
    from deploykit.triton.engines import open_server

    with open_server(engine, context.folder("package"), listener=context.listener) as server:
        yield server.urls.grpc or server.urls.http


def _publish(context: Context, repository: Path) -> tuple[Path, int]:
    from deploykit.triton.repository import publish

    began = time.monotonic()
    artifact = context.artifacts["package"]
    published = publish(artifact.path, repository, expected=artifact.manifest.files, listener=context.listener)
    outcome = f"version {published.version}" + ("" if published.new else " is there already, unchanged")
    context.listener(StageFinished("publish", time.monotonic() - began, not published.new, outcome))
    return published.paths[context.recipe.name], published.version


def _result(
    context: Context,
    parity: ParityReport,
    timed: Mapping[str, Samples],
    goals: tuple[GoalOutcome, ...],
    published: tuple[Path, int] | None,
) -> RunResult:
    exported, shipped = context.folder("export"), context.folder("quantize")
    reference, served = timed.get("reference"), timed.get("served")
    fp32 = context.info("parity").get("fp32_onnx")
    return RunResult(
        name=context.recipe.name,
        verdict=parity.verdict,
        statement=parity.statement,
        n=parity.n,
        metric=parity.metric,
        reference=_figures("PyTorch fp32", parity.reference, reference, context.whole),
        onnx_fp32=_figures("ONNX fp32", fp32 if isinstance(fp32, float) else None, timed.get("onnx_fp32"), exported),
        shipped=Shipped(
            **_figures("shipped", parity.candidate, timed.get("shipped"), shipped).model_dump(),
            drop=parity.drop,
            drop_upper=parity.drop_upper,
            discordant=parity.discordant,
            flips=parity.flips,
            speedup=_speedup(reference, timed.get("shipped")),
            served_p50_ms=None if served is None else served.p50_ms,
            served_p99_ms=None if served is None else served.p99_ms,
            served_speedup=_speedup(reference, served),
        ),
        goal=goals,
        candidates=pruned_candidates(context.info("prune")) if context.recipe.prunes else (),
        learned=_learned(context.info("finetune")),
        suspects=context.info("data").get("suspects", {}),
        scheme=str(context.info("quantize").get("variant", "")),
        messages=0 if reference is None else reference.n,
        stolen=0.0 if reference is None else reference.stolen,
        machine=f"{cpu_model()}, {usable_cores()} cores, {instruction_set()}",
        package=None if published is None else str(published[0]),
        version=None if published is None else published[1],
        kept=str(context.folder("package").absolute()),
        parity=str((context.folder("parity") / "parity.json").absolute()),
        report=str((context.store.root.parent / "reports" / f"{context.recipe.name}.html").absolute()),
        exit_code=int(exit_code_of(parity.verdict, goals)),
    )


def _learned(info: Mapping[str, object]) -> Learned:
    found = {"loss": info.get("curve", ()), "metric": info.get("watched", ()), "warning": info.get("warning")}
    return Learned.model_validate(found, strict=False)


def _figures(name: str, value: float | None, samples: Samples | None, folder: Path) -> Figures:
    return Figures(
        name=name,
        value=value,
        p50_ms=None if samples is None else samples.p50_ms,
        p50_range_ms=None if samples is None else samples.p50_range_ms,
        p99_ms=None if samples is None else samples.p99_ms,
        size_mb=model_size_mb(folder),
    )


def _speedup(reference: Samples | None, samples: Samples | None) -> float | None:
    return None if reference is None or samples is None else reference.p50_ms / samples.p50_ms
