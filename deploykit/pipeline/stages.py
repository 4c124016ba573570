"""What each cached stage does: reads the artefacts before it, writes its own."""

from __future__ import annotations

__all__ = ["CACHED_STAGES", "CachedStage", "Candidate", "choose", "choose_variant", "package_settings", "sampled"]

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.artifacts.store import Draft
from deploykit.data.dataset import LabelledData, load_data
from deploykit.errors import ModelError
from deploykit.events import Listener, Note, Progress, Warn, ignore
from deploykit.parity.intervals import clopper_pearson_upper
from deploykit.parity.noninferiority import score_drop_bounds
from deploykit.pipeline.context import Context
from deploykit.pipeline.plan import Stage
from deploykit.recipe import Package, Quantize
from deploykit.recipe.machine import this_machine
from deploykit.runners import Target, infer_all, open_runner
from deploykit.tasks import Answer, Task


@dataclass(frozen=True)
class CachedStage:
    """A stage whose result is kept.

    Attributes:
        make: writes the draft.
        expects: what must be there in the end.
    """

    make: Callable[[Context, Draft], str]
    expects: tuple[str, ...]


def _make_data(context: Context, draft: Draft) -> str:
    recipe = context.recipe
    data, report = load_data(recipe.data, recipe.seed, context.base, context.task.label_form(recipe.data.label))
    for part in ("train", "validation", "test"):
        _write_json(draft.path / f"{part}.json", dataclasses.asdict(getattr(data, part)))
    _write_json(draft.path / "labels.json", list(data.label_names))
    _write_json(draft.path / "unlabelled.json", list(data.unlabelled))
    _write_json(draft.path / "report.json", dataclasses.asdict(report))
    for warning in report.warnings:
        context.listener(Warn(warning))
    return f"{len(data.train):,} to train, {len(data.validation):,} to choose, {len(data.test):,} to certify"


def _make_finetune(context: Context, draft: Draft) -> str:
    from deploykit.runners.checkpoint import resolve_model
    from deploykit.tasks.pruned import check_prunable
    from deploykit.train.finetune import finetune

    recipe, key = context.recipe, context.plan.step("finetune").key
    location = resolve_model(recipe.model, context.base).location
    if location is None or key is None:
        raise ModelError(f"{recipe.model} is not on this machine", "check the name, or give a folder")
    if recipe.prunes:
        check_prunable(location)  # before it is trained for nothing
    result = finetune(
        location,
        context.data(),
        recipe.finetune,
        context.task,
        draft.path,
        workspace=context.store.workspace("finetune", key),
        seed=recipe.seed,
        trust_pickle=recipe.trust_pickle,
        listener=context.listener,
    )
    draft.info.update(json.loads(json.dumps(dataclasses.asdict(result))))
    metric = result.metrics[context.task.metric]
    return f"{context.task.metric} {metric:.2%} on validation after {result.steps:,} steps on {result.device}"


def _make_prune(context: Context, draft: Draft) -> str:
    from deploykit.pipeline.compression import prune_to_goal

    recipe, key = context.recipe, context.plan.step("prune").key
    assert key is not None
    return prune_to_goal(
        context.folder("finetune"),
        draft.path,
        task=context.task,
        data=context.data(),
        settings=recipe.prune,
        finetune=recipe.finetune,
        goal=recipe.goal,
        quantize=recipe.quantize,
        target=recipe.export.target,
        threads=recipe.package.threads,
        seed=recipe.seed,
        workspace=context.store.workspace("prune", key),
        info=draft.info,
        listener=context.listener,
    )


def _make_export(context: Context, draft: Draft) -> str:
    from deploykit.export.to_onnx import export_onnx

    settings = context.recipe.export
    report = export_onnx(
        context.checkpoint,
        draft.path,
        context.task,
        target=settings.target,
        opset=settings.opset,
        messages=context.data().validation.texts[:16],
        listener=context.listener,
    )
    draft.info.update(dataclasses.asdict(report))
    largest = max(report.max_difference["fused" if report.fused else "plain"], 0.0)
    return f"opset {report.opset}, {sum(report.operators.values())} nodes, within {largest:.1g} of PyTorch"


def _make_quantize(context: Context, draft: Draft) -> str:
    recipe = context.recipe
    return choose_variant(
        context.folder("export"),
        draft.path,
        recipe.quantize,
        context.task,
        context.data(),
        max_drop=recipe.goal.max_drop,
        seed=recipe.seed,
        info=draft.info,
        listener=context.listener,
    )


def choose_variant(
    source: Path,
    out: Path,
    settings: Quantize,
    task: Task,
    data: LabelledData,
    *,
    max_drop: float,
    seed: int,
    info: dict[str, Any],
    listener: Listener = ignore,
) -> str:
    """Quantize in every way that the settings leave open and keep the fastest that answers as well on validation.

    A variant whose drop on the validation split is shown to exceed `max_drop`, or whose answers change in batches, is
    out (see `choose`). Where all are, the products of the most accurate one that suffer most go back to float, 1, 2, 4
    and so on up to half of them, until it keeps its answers. Where none does, the most accurate is kept, and parity
    will say what it lost.

    Args:
        source: the exported ONNX folder.
        out: the folder to write.
        settings: the recipe's `quantize` section.
        task: what the model does.
        data: calibration messages come from its training split.
        max_drop: the recipe's goal.
        seed: picks the calibration messages.
        info: is filled with what was measured.
        listener: hears of progress.

    Returns:
        the choice in words.
    """
    from deploykit.compress.quantize import quantize, scheme_variants, sensitivity
    from deploykit.latency.measure import measure

    if settings.scheme == "none":
        shutil.copytree(source, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("plain.onnx", "manifest.json"))
        info.update({"variant": "fp32", "scheme": "none"})
        return "none: float32 as exported"
    variants = scheme_variants(settings.scheme, settings.fusions)
    calibration = sampled(data.train.texts, settings.calibration_rows, seed)
    right = task.right_answers(data.validation.labels or (), data.label_names)
    total = len(variants) * 2 + 1
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        folders, reports = {}, {}
        for number, variant in enumerate(variants):
            listener(Progress("quantize", number, total, "step", {}))
            folder = Path(scratch) / variant.name
            reports[variant.name] = quantize(source, folder, variant, calibration=calibration, listener=listener)
            folders[variant.name] = folder
        listener(Progress("quantize", len(variants), total, "step"))

        def answered(folder: Path, batch: int = 1) -> list[Answer]:
            return task.answers(_logits(folder, data.validation.texts, batch, task=task), data.label_names)

        reference = answered(source)

        def compared(folder: Path) -> Candidate:
            return _compared(reference, answered(folder), answered(folder, _BATCH), right, task)

        found = {}
        for number, (name, folder) in enumerate(folders.items()):
            found[name] = compared(folder)
            listener(Progress("quantize", len(variants) + number + 1, total, "step", {"drop": found[name].drop}))
        if len(folders) > 1:
            timed = measure(
                {name: Target("onnxruntime", str(folder), task=task.name) for name, folder in folders.items()},
                sampled(data.validation.texts, 120, seed),
                blocks=4,
            )
            found = {name: dataclasses.replace(found[name], p50_ms=timed[name].p50_ms) for name in found}
        chosen = choose(found, max_drop)
        worst: list[tuple[str, float]] = []
        if not found[chosen].keeps_answers(max_drop) and settings.scheme != "fp16":
            variant = next(each for each in variants if each.name == chosen)
            worst = sensitivity(source, variant, calibration[:_RANKED_ON])
            for count in (1, 2, 4, 8, 16):
                if count > len(worst) // 2:
                    break
                name = f"{variant.name}-{count}-in-float"
                folders[name], left = Path(scratch) / name, [node for node, _ in worst[:count]]
                reports[name] = quantize(source, folders[name], variant, calibration=calibration, in_float=left)
                found[name] = compared(folders[name])
                listener(Note(f"{count} of {len(worst)} products in float: drop {found[name].drop:.2%} on validation"))
                if found[name].keeps_answers(max_drop):
                    break
            chosen = choose(found, max_drop)
        if found[chosen].drop_lower > max_drop:
            listener(Warn(f"every way to quantize loses more than {max_drop:.2%} on validation; kept {chosen}"))
        listener(Progress("quantize", total, total, "step"))
        for path in folders[chosen].iterdir():
            shutil.move(path, out / path.name)
    info.update(
        {
            "variant": chosen,
            "scheme": settings.scheme,
            "sensitivity_db": {name: round(ratio, 1) for name, ratio in worst},
            "candidates": {
                name: {**dataclasses.asdict(found[name]), **dataclasses.asdict(reports[name])} for name in folders
            },
        }
    )
    report = reports[chosen]
    counted = ", ".join(f"{count} {kind}" for kind, count in report.products.items()) or "fp16"
    return f"{chosen}: {counted}, {report.float_products} products in float, {report.size_bytes / 1e6:.1f} MB"


@dataclass(frozen=True)
class Candidate:
    """One quantized form, compared with float32 on the validation split.

    Attributes:
        drop: of the metric.
        drop_lower: what the drop is shown to exceed (one-sided 95 %).
        flips: changed answers, right or not.
        batched_flips: answers that change when the messages come in padded batches and not singly.
        n: messages compared.
        p50_ms: in process, one message at a time; 0 where it was not timed.
    """

    drop: float
    drop_lower: float
    flips: int
    batched_flips: int
    n: int
    p50_ms: float = 0.0

    def keeps_answers(self, max_drop: float) -> bool:
        """Whether it is not shown to lose too much, and answers in batches as it does singly."""
        steady = not self.batched_flips or clopper_pearson_upper(self.batched_flips, self.n, 0.95) <= max_drop
        return steady and self.drop_lower <= max_drop


def choose(candidates: Mapping[str, Candidate], max_drop: float) -> str:
    """The form to keep: the fastest that keeps its answers.

    Among those within a quarter of the fastest, which a noisy machine can't tell apart, static scales come first (their
    answers do not depend on the batch), then the fewest changed answers.
    """
    eligible = {name: found for name, found in candidates.items() if found.keeps_answers(max_drop)}
    if not eligible:
        return min(candidates, key=lambda name: (candidates[name].batched_flips > 0, candidates[name].drop))
    fastest = min(found.p50_ms for found in eligible.values())
    near = [name for name, found in eligible.items() if found.p50_ms <= 1.25 * fastest]
    return min(near, key=lambda name: (not name.startswith("int8_static"), eligible[name].flips))


def _compared(
    reference: Sequence[Answer],
    answers: Sequence[Answer],
    batched: Sequence[Answer],
    right: Sequence[Answer],
    task: Task,
) -> Candidate:
    before, after = task.scores(reference, right), task.scores(answers, right)
    return Candidate(
        drop=before.value - after.value,
        drop_lower=score_drop_bounds(before, after)[0],
        flips=sum(ours != theirs for ours, theirs in zip(reference, answers, strict=True)),
        batched_flips=sum(ours != theirs for ours, theirs in zip(batched, answers, strict=True)),
        n=len(right),
    )


def _make_package(context: Context, draft: Draft) -> str:
    from deploykit.triton.package import build_package

    recipe = context.recipe
    settings = package_settings(recipe.package)
    samples = sampled(context.data().train.texts, 3, recipe.seed)
    build_package(context.folder("quantize"), draft.path, recipe.name, context.task, settings, samples=samples)
    size = sum(path.stat().st_size for path in draft.path.rglob("*") if path.is_file()) / 1e6
    return f"{recipe.name} (text) and {recipe.name}_onnx (tensors), {size:.1f} MB"


def package_settings(section: Package) -> Any:
    """The recipe's `package` section with `auto` resolved for this machine."""
    from deploykit.triton.package import PackageSettings

    device = section.device if section.device != "auto" else ("gpu" if this_machine().gpu else "cpu")
    return PackageSettings(
        max_batch_size=section.max_batch_size,
        instances=section.instances,
        device=device,
        threads=section.threads,
        queue_delay_us=section.queue_delay_us,
        preferred_batch_size=section.preferred_batch_size,
    )


def _make_parity(context: Context, draft: Draft) -> str:
    from deploykit.pipeline.proof import prove

    return prove(context, draft)


_BATCH = 16
_RANKED_ON = 64
"""Messages that products are ranked on by what quantizing does to them."""

CACHED_STAGES: Mapping[Stage, CachedStage] = {
    "data": CachedStage(_make_data, ("train.json", "validation.json", "test.json", "labels.json")),
    "finetune": CachedStage(_make_finetune, ("model.safetensors", "config.json", "tokenizer.json")),
    "prune": CachedStage(_make_prune, ("model.safetensors", "config.json", "tokenizer.json")),
    "export": CachedStage(_make_export, ("model.onnx", "plain.onnx", "config.json", "tokenizer.json")),
    "quantize": CachedStage(_make_quantize, ("model.onnx", "config.json", "tokenizer.json")),
    "package": CachedStage(_make_package, ()),
    "parity": CachedStage(_make_parity, ("parity.json",)),
}


def _logits(folder: Path, texts: Sequence[str], batch: int = 1, *, task: Task) -> dict[str, NDArray[Any]]:
    batches = [list(range(start, min(start + batch, len(texts)))) for start in range(0, len(texts), batch)]
    with open_runner(Target("onnxruntime", str(folder), task=task.name)) as runner:
        return infer_all(runner, texts, batches)


def sampled(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """That many of the texts at random, all where there are fewer."""
    if len(texts) <= count:
        return list(texts)
    return [texts[index] for index in np.random.default_rng(seed).choice(len(texts), count, replace=False)]


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
