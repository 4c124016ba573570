"""What each cached stage does: reads the artefacts before it, writes its own."""

from __future__ import annotations

__all__ = ["CACHED_STAGES", "CachedStage", "pruning_of", "study_of"]

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from deploykit.artifacts.digest import digest_json
from deploykit.artifacts.store import Draft
from deploykit.data.dataset import load_data
from deploykit.data.kept import write_table, write_texts
from deploykit.data.suspects import find_suspects
from deploykit.events import Note, Warn
from deploykit.export.compatibility import preflight
from deploykit.pipeline.choice import choose_variant, sampled
from deploykit.pipeline.context import Context, data_from_artifact
from deploykit.pipeline.packaging import package_settings
from deploykit.pipeline.plan import Stage
from deploykit.pipeline.study import Study, open_study
from deploykit.runners.medium import columns_of, medium_of

if TYPE_CHECKING:
    from deploykit.train.finetune import FinetuneResult
    from deploykit.train.tracking import Tracking


@dataclass(frozen=True)
class CachedStage:
    """A stage whose result is kept.

    Attributes:
        make: writes the draft.
        expects: what must be there in the end.
        model: whether it writes a model, which needs what its messages become inputs by.
    """

    make: Callable[[Context, Draft], str]
    expects: tuple[str, ...]
    model: bool = False


def _make_data(context: Context, draft: Draft) -> str:
    recipe = context.recipe
    task, medium = context.task, medium_of(context.task)
    columns = columns_of(task, recipe.data.text, task.label_form(recipe.data.label))
    data, report = load_data(recipe.data, recipe.seed, context.base, columns.form, columns.read)
    for part in ("train", "validation", "test"):
        write_table(draft.path / f"{part}.jsonl", getattr(data, part))
    _write_json(draft.path / "labels.json", list(data.label_names))
    write_texts(draft.path / "unlabelled.jsonl", data.unlabelled)
    _write_json(draft.path / "report.json", dataclasses.asdict(report))
    looked = {
        name: find_suspects(table, recipe.seed, textual=medium.textual)
        for name, table in (("train", data.train), ("test", data.test))
    }
    draft.info["suspects"] = json.loads(json.dumps({name: dataclasses.asdict(each) for name, each in looked.items()}))
    for warning in report.warnings:
        context.listener(Warn(warning))
    return f"{len(data.train):,} to train, {len(data.validation):,} to choose, {len(data.test):,} to certify"


def _make_pretrain(context: Context, draft: Draft) -> str:
    from deploykit.runners.checkpoint import resolve_or_error
    from deploykit.train.pretrain import pretrain

    recipe, key, data = context.recipe, context.plan.step("pretrain").key, context.data()
    assert key is not None
    result = pretrain(
        resolve_or_error(recipe.model, context.base),
        (*data.train.texts, *data.unlabelled),
        data.validation.texts,
        recipe.pretrain,
        draft.path,
        workspace=context.store.workspace("pretrain", key),
        medium=medium_of(context.task),
        max_length=recipe.finetune.max_length,
        seed=recipe.seed,
        trust_pickle=recipe.trust_pickle,
        listener=context.listener,
    )
    draft.info.update(json.loads(json.dumps(dataclasses.asdict(result))))
    return (
        f"loss of what is hidden {result.loss_before:.3f} -> {result.loss:.3f} on validation after {result.steps:,}"
        f" steps over {result.texts:,} messages"
    )


def _make_finetune(context: Context, draft: Draft) -> str:
    from deploykit.train.tracking import Tracking

    recipe, key = context.recipe, context.plan.step("finetune").key
    assert key is not None
    tracking = Tracking(recipe.track, context.store.root.parent / "tracking", recipe.name) if recipe.track else None
    result = _finetuned(
        context, draft.path, context.store.workspace("finetune", key), seed=recipe.seed, tracking=tracking
    )
    draft.info.update(json.loads(json.dumps(dataclasses.asdict(result))))
    metric = result.metrics[context.task.metric]
    return f"{context.task.metric} {metric:.2%} on validation after {result.steps:,} steps on {result.device}"


def _make_teachers(context: Context, draft: Draft) -> str:
    from deploykit.data.entries import read_entries
    from deploykit.train.index import index_checkpoint

    recipe, key = context.recipe, context.plan.step("teachers").key
    assert key is not None
    workspace, found = context.store.workspace("teachers", key), dict[str, Any]()
    for number in range(1, recipe.prune.teachers):
        context.listener(Note(f"teacher {number} of {recipe.prune.teachers - 1} beside the model"))
        out, seed = draft.path / str(number), recipe.seed + number
        trained = out if recipe.data.entries is None else workspace / f"{number}-trained"
        result = _finetuned(context, trained, workspace / str(number), seed=seed, stage="teachers")
        if recipe.data.entries is not None:
            index_checkpoint(trained, out, context.task, read_entries(recipe.data, context.base))
        found[str(seed)] = json.loads(json.dumps(dataclasses.asdict(result)))
    draft.info["seeds"] = found
    metrics = ", ".join(f"{each['metrics'][context.task.metric]:.2%}" for each in found.values())
    return f"{context.task.metric} {metrics} on validation"


def _finetuned(
    context: Context, out: Path, workspace: Path, *, seed: int, tracking: Tracking | None = None,
    stage: Stage = "finetune",
) -> FinetuneResult:  # fmt: skip
    """Fine-tune the recipe's model on its data into `out`."""
    from deploykit.data.entries import read_entries
    from deploykit.runners.checkpoint import resolve_or_error
    from deploykit.tasks.pruned import check_prunable
    from deploykit.train.finetune import finetune
    from deploykit.train.lesson import lesson_from_teacher
    from deploykit.train.objective import asked_loss
    from deploykit.train.translate import with_located_translators

    recipe = context.recipe
    pretrained = context.folder("pretrain") if recipe.pretrains else None
    location = pretrained or resolve_or_error(recipe.model, context.base)
    if recipe.prunes:
        check_prunable(location)  # before it is trained for nothing
    data, entries, lesson = data_from_artifact(context.folder("data")), None, None
    if asked_loss(recipe.finetune, context.task) == "two_towers":
        entries = read_entries(recipe.data, context.base)
        data = data.with_labels(entries.names)
    if recipe.finetune.teacher is not None:
        teacher = resolve_or_error(recipe.finetune.teacher, context.base)
        lesson = lesson_from_teacher(recipe.finetune, teacher, location, data.label_names)
    return finetune(
        location,
        data,
        with_located_translators(recipe.finetune, context.base),
        context.task,
        out,
        workspace=workspace,
        seed=seed,
        trust_pickle=recipe.trust_pickle,
        entries=entries,
        lesson=lesson,
        tracking=tracking,
        stage=stage,
        listener=context.listener,
    )


def _make_index(context: Context, draft: Draft) -> str:
    from deploykit.data.entries import read_entries
    from deploykit.train.index import index_checkpoint

    section = context.recipe.data
    entries = read_entries(section, context.base)
    before = context.data()
    after = before.with_labels(entries.names)
    left_out = sum(len(getattr(before, part)) - len(getattr(after, part)) for part in ("train", "validation", "test"))
    if left_out:
        context.listener(Warn(f"{left_out:,} rows have labels that no entry has: they are left out from here on"))
    each = index_checkpoint(context.folder("finetune"), draft.path, context.task, entries)
    draft.info.update({"entries": len(entries.names), "texts": len(entries.texts), "each": each})
    return f"{len(entries.names):,} entries of {len(entries.texts):,} texts"


def _make_prune(context: Context, draft: Draft) -> str:
    from deploykit.pipeline.compression import prune_to_goal

    key = context.plan.step("prune").key
    assert key is not None
    study = None if context.study is None else study_of(context, context.study)
    workspace = context.store.workspace("prune", key)
    outcome = prune_to_goal(
        context.whole, draft.path, workspace=workspace, info=draft.info, study=study, **pruning_of(context)
    )
    if study is not None:
        study.close()
    return outcome


def pruning_of(context: Context) -> dict[str, Any]:
    """What a recipe says of its pruning, as `prune_to_goal` and `join_pruning` take it."""
    recipe = context.recipe
    return {
        "task": context.task,
        "data": context.data(),
        "settings": recipe.prune,
        "finetune": recipe.finetune,
        "goal": recipe.goal,
        "quantize": recipe.quantize,
        "target": recipe.export.target,
        "threads": recipe.package.threads,
        "seed": recipe.seed,
        "others": _teachers(context),
        "listener": context.listener,
    }


def _teachers(context: Context) -> list[Path]:
    """The other fine-tunings that teach."""
    count = context.recipe.prune.teachers if context.recipe.has_teachers else 1
    return [context.folder("teachers") / str(number) for number in range(1, count)]


def study_of(context: Context, url: str, *, join: bool = False) -> Study:
    """The study that the pruning of a recipe is shared through: the same on every machine that has the same model.

    Raises:
        UsageError: the storage can't be opened, or, to join, has no such study.
    """
    step = context.plan.step("prune")
    settings = {name: value for name, value in step.settings.items() if name != "machine"}
    files: list[JsonValue] = [dict(context.artifacts[stage].manifest.files) for stage in step.parents]
    return open_study(url, digest_json([settings, files]), context.listener, join=join)


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
    outcome = choose_variant(
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
    preflight(draft.path / "model.onnx", recipe.export.target)  # few bits need newer operators than the export
    return outcome


def _make_package(context: Context, draft: Draft) -> str:
    from deploykit.triton.package import build_package

    recipe = context.recipe
    settings = package_settings(recipe.package)
    samples = sampled(context.data().train.texts, 3, recipe.seed)
    build_package(context.folder("quantize"), draft.path, recipe.name, context.task, settings, samples=samples)
    size = sum(path.stat().st_size for path in draft.path.rglob("*") if path.is_file()) / 1e6
    return f"{recipe.name} ({medium_of(context.task).name}) and {recipe.name}_onnx (tensors), {size:.1f} MB"


def _make_parity(context: Context, draft: Draft) -> str:
    from deploykit.pipeline.proof import prove

    return prove(context, draft)


CACHED_STAGES: Mapping[Stage, CachedStage] = {
    "data": CachedStage(_make_data, ("train.jsonl", "validation.jsonl", "test.jsonl", "labels.json")),
    "pretrain": CachedStage(_make_pretrain, ("model.safetensors", "config.json"), True),
    "finetune": CachedStage(_make_finetune, ("model.safetensors", "config.json"), True),
    "index": CachedStage(_make_index, ("model.safetensors", "config.json"), True),
    "teachers": CachedStage(_make_teachers, ("1/model.safetensors", "1/config.json")),
    "prune": CachedStage(_make_prune, ("model.safetensors", "config.json"), True),
    "export": CachedStage(_make_export, ("model.onnx", "plain.onnx", "config.json"), True),
    "quantize": CachedStage(_make_quantize, ("model.onnx", "config.json"), True),
    "package": CachedStage(_make_package, ()),
    "parity": CachedStage(_make_parity, ("parity.json",)),
}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
