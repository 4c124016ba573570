"""Runs a plan: finds what was made before, makes the rest, measures, publishes what passed, and says what came out."""

from __future__ import annotations

__all__ = ["last_run", "run_recipe"]

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from deploykit.artifacts.atomic import write_atomic
from deploykit.artifacts.store import Artifact, Store
from deploykit.errors import ModelError, UsageError
from deploykit.events import Listener, StageFinished, StageStarted, Warn, ignore
from deploykit.latency.goal import judge_goal
from deploykit.latency.measure import Samples, measure
from deploykit.machine import cpu_model, instruction_set, usable_cores
from deploykit.parity.report import ParityReport
from deploykit.pipeline.context import Context
from deploykit.pipeline.plan import STAGES, Stage, make_plan
from deploykit.pipeline.proof import serving_engine
from deploykit.pipeline.stages import CACHED_STAGES
from deploykit.recipe import Recipe
from deploykit.recipe.machine import check_machine
from deploykit.report.result import Figures, GoalOutcome, RunResult, Shipped, exit_code_of, model_size_mb
from deploykit.runners import Target

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
        listener: hears of progress.

    Returns:
        what came out; None where `until` ended the run before the verdict.

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
    plan = make_plan(recipe, base)
    context = Context(recipe, base, plan, Store(workspace / "store", listener), listener)
    with _recorded(workspace, recipe.name) as at:
        return _run(context, repository, first=first, last=last, at=at)


def last_run(workspace: Path, name: str) -> dict[str, str] | None:
    """How the last run of this name ended: `status` (running, interrupted, failed, finished) and `stage`."""
    try:
        found = json.loads((workspace / "runs" / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return {"status": str(found.get("status")), "stage": str(found.get("stage"))}


@contextlib.contextmanager
def _recorded(workspace: Path, name: str) -> Iterator[Callable[[Stage], None]]:
    """Keeps a note of how far a run is and how it ended, for the next one and for `check`."""
    path = workspace / "runs" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    stage: Stage = "data"

    def write(status: str) -> None:
        write_atomic(path, json.dumps({"status": status, "stage": stage}).encode())

    def at(now: Stage) -> None:
        nonlocal stage
        stage = now
        write("running")

    try:
        yield at
    except KeyboardInterrupt:
        write("interrupted")
        raise
    except BaseException:
        write("failed")
        raise
    write("finished")


def _run(context: Context, repository: Path, *, first: int, last: int, at: Callable[[Stage], None]) -> RunResult | None:
    recipe = context.recipe
    for stage in CACHED_STAGES:
        if STAGES.index(stage) > last:
            return None
        at(stage)
        _ensure(context, stage, anew=STAGES.index(stage) >= first)
    parity = ParityReport.model_validate_json((context.folder("parity") / "parity.json").read_text(encoding="utf-8"))
    if last < STAGES.index("latency"):
        return None
    at("latency")
    timed = _timed_stage(context)
    goals = tuple(
        GoalOutcome(**dataclasses.asdict(check))
        for check in judge_goal(
            recipe.goal, timed["reference"], timed["shipped"], model_size_mb(context.folder("quantize"))
        )
    )
    ready = exit_code_of(parity.verdict, goals) == 0
    at("publish")
    published = _publish(context, repository) if ready and last >= STAGES.index("publish") else None
    result = _result(context, parity, timed, goals, published)
    from deploykit.report.page import write_report

    write_report(result, parity, Path(result.report))
    return result


def _ensure(context: Context, stage: Stage, *, anew: bool) -> None:
    """Find the stage's artefact, or make it."""
    step = context.plan.step(stage)
    if step.key is None:
        raise ModelError(f"{stage} has no key")
    if anew:
        context.store.discard(stage, step.key)
    began = time.monotonic()
    with context.store.claim(stage, step.key) as found:
        if found is not None and _still_good(stage, found):
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
            expects=code.expects,
        ) as draft:
            outcome = code.make(context, draft)
            draft.info["outcome"] = outcome
    if draft.artifact is None:
        raise ModelError(f"{stage} ended without an artefact")
    context.artifacts[stage] = draft.artifact
    context.listener(StageFinished(stage, time.monotonic() - began, False, outcome))


def _still_good(stage: Stage, found: Artifact) -> bool:
    """A verdict that is no pass is not kept: the next run looks again."""
    return stage != "parity" or found.manifest.info.get("verdict") == "pass"


def _timed_stage(context: Context) -> dict[str, Samples]:
    began = time.monotonic()
    context.listener(StageStarted("latency"))
    recipe = context.recipe
    texts = context.data().test.texts
    count = recipe.latency.messages
    messages = [texts[index * len(texts) // count] for index in range(min(count, len(texts)))]
    task = recipe.task
    targets = {
        "reference": Target("torch", str(context.folder("finetune")), device="cpu", task=task),
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
    finetuned, exported, shipped = (context.folder(stage) for stage in ("finetune", "export", "quantize"))
    reference, served = timed["reference"], timed.get("served")
    fp32 = context.info("parity").get("fp32_onnx")
    proof = context.folder("parity")
    return RunResult(
        name=context.recipe.name,
        verdict=parity.verdict,
        statement=parity.statement,
        n=parity.n,
        metric=parity.metric,
        reference=_figures("PyTorch fp32", parity.reference, reference, model_size_mb(finetuned)),
        onnx_fp32=_figures(
            "ONNX fp32", fp32 if isinstance(fp32, float) else None, timed["onnx_fp32"], model_size_mb(exported)
        ),
        shipped=Shipped(
            **_figures("shipped", parity.candidate, timed["shipped"], model_size_mb(shipped)).model_dump(),
            drop=parity.drop,
            drop_upper=parity.drop_upper,
            discordant=parity.discordant,
            flips=parity.flips,
            speedup=reference.p50_ms / timed["shipped"].p50_ms,
            served_p50_ms=None if served is None else served.p50_ms,
            served_p99_ms=None if served is None else served.p99_ms,
            served_speedup=None if served is None else reference.p50_ms / served.p50_ms,
        ),
        goal=goals,
        scheme=str(context.info("quantize").get("variant", "")),
        messages=reference.n,
        stolen=reference.stolen,
        machine=f"{cpu_model()}, {usable_cores()} cores, {instruction_set()}",
        package=None if published is None else str(published[0]),
        version=None if published is None else published[1],
        kept=str(context.folder("package")),
        parity=str(proof / "parity.json"),
        report=str(context.store.root.parent / "reports" / f"{context.recipe.name}.html"),
        exit_code=int(exit_code_of(parity.verdict, goals)),
    )


def _figures(name: str, value: float | None, samples: Samples, size_mb: float) -> Figures:
    return Figures(
        name=name,
        value=value,
        p50_ms=samples.p50_ms,
        p50_range_ms=samples.p50_range_ms,
        p99_ms=samples.p99_ms,
        size_mb=size_mb,
    )
