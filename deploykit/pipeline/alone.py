"""One stage at a time, on folders and files of the user's own."""

from __future__ import annotations

__all__ = [
    "bench_alone",
    "finetune_alone",
    "package_alone",
    "parity_alone",
    "prune_alone",
    "quantize_alone",
]

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from deploykit.artifacts.atomic import new_folder
from deploykit.artifacts.digest import digest_json, digest_tree
from deploykit.data.dataset import LabelledData, hold_out, load_training_data
from deploykit.data.entries import entries_from_columns
from deploykit.data.readers import read_rows
from deploykit.data.table import Columns
from deploykit.errors import UsageError
from deploykit.events import Listener, ignore
from deploykit.export.compatibility import preflight
from deploykit.latency.measure import Samples, measure, spread_over
from deploykit.latency.messages import timed_messages
from deploykit.parity.report import ParityReport
from deploykit.pipeline.choice import choose_variant
from deploykit.pipeline.comparison import Question, compare_models
from deploykit.pipeline.latency import timed_target
from deploykit.pipeline.localization import with_location
from deploykit.pipeline.measuring import OutputCache
from deploykit.pipeline.packaging import package_settings
from deploykit.pipeline.pairs import labels_or_error, pair_from_text
from deploykit.pipeline.plan import refuse_where_no_texts
from deploykit.pipeline.reproducer import write_reproducer
from deploykit.pipeline.study import open_study
from deploykit.recipe import Finetune, Goal, Package, Prune, Quantize
from deploykit.runners import target_from_text
from deploykit.runners.checkpoint import resolve_model, resolve_or_error
from deploykit.runners.labels import labels_from_folder
from deploykit.runners.medium import columns_of
from deploykit.tasks import find_task
from deploykit.tasks.pruned import check_prunable
from deploykit.triton.package import build_package
from deploykit.triton.repository import Published, publish

if TYPE_CHECKING:
    from deploykit.train.finetune import FinetuneResult


LabelColumns = str | tuple[str, ...]
"""The column of a label, or those of its parts."""


def finetune_alone(
    model: str,
    out: Path,
    settings: Finetune,
    *,
    train: str,
    validation: float | str,
    columns: tuple[str, LabelColumns],
    task: str,
    seed: int,
    trust_pickle: bool = False,
    entries: str | None = None,
    track: Sequence[str] = (),
    listener: Listener = ignore,
) -> FinetuneResult:
    """Fine-tune a model on a data file and write the checkpoint folder `out`.

    Args:
        model: a model reference.
        out: the folder to write; not there yet.
        settings: how to train.
        train: a data reference.
        validation: a data reference, or the fraction of the training rows to hold out.
        columns: of the message and the label.
        task: its name.
        seed: of every random choice.
        trust_pickle: load pickled weights.
        entries: a data reference: what messages are compared with, for the loss of two towers.
        track: what hears of the curves: tensorboard, wandb, mlflow; files go to `OUT.tracking`.
        listener: hears of progress.

    Raises:
        UsageError: the task's messages are no texts and what works on words is asked for, or it takes no entries.
    """
    from deploykit.train.finetune import finetune
    from deploykit.train.lesson import lesson_from_teacher
    from deploykit.train.objective import asked_loss
    from deploykit.train.processes import is_main_process
    from deploykit.train.tracking import Tracking
    from deploykit.train.translate import with_located_translators

    refuse_where_no_texts(task, settings.for_texts())
    if entries is not None and asked_loss(settings, find_task(task)) != "two_towers":
        raise UsageError(f"{task} is not trained on entries, and --entries names some", "leave it out")
    settings = with_located_translators(settings, Path())
    reference = resolve_model(model, Path())
    location = resolve_or_error(model, Path())
    data = load_training_data(train, validation, _columns(columns, task), seed)
    towers = None
    if entries is not None:
        towers = entries_from_columns(entries, columns[0], str(columns[1]), None)
        data = data.with_labels(towers.names)
    # The workspace belongs to this model, data and these settings alone: other ones do not go on from it.
    rows, lesson = _rows(data), None
    if towers is not None:
        rows.append([*towers.texts, *towers.labels])
    if settings.teacher is not None:
        teacher = resolve_or_error(settings.teacher, Path())
        lesson = lesson_from_teacher(settings, teacher, location, data.label_names)
        rows.append(dict(digest_tree(teacher)))
    rows += [dict(digest_tree(Path(name))) for name in (settings.translator, settings.translator_back) if name]
    key = digest_json([reference.identity, settings.model_dump(mode="json"), task, seed, *rows])
    workspace = out.absolute().with_name(f"{out.name}.work") / key[:16]
    # Under torchrun one process writes; the others only train with it.
    main = is_main_process()
    with new_folder(out) if main else contextlib.nullcontext(workspace) as folder:
        result = finetune(
            location,
            data,
            settings,
            find_task(task),
            folder,
            workspace=workspace,
            seed=seed,
            trust_pickle=trust_pickle,
            entries=towers,
            lesson=lesson,
            tracking=Tracking(tuple(track), out.absolute().with_name(f"{out.name}.tracking"), out.name)
            if track
            else None,
            listener=listener,
        )
    if main:
        shutil.rmtree(workspace.parent, ignore_errors=True)
    return result


def prune_alone(
    model: Path,
    out: Path,
    settings: Prune,
    goal: Goal,
    *,
    train: str,
    validation: float | str,
    unlabelled: str | None = None,
    columns: tuple[str, LabelColumns],
    task: str,
    target: str,
    threads: int,
    seed: int,
    study: str | None = None,
    worker: bool = False,
    teachers: Sequence[Path] = (),
    listener: Listener = ignore,
) -> tuple[str, dict[str, Any]]:
    """Prune a fine-tuned checkpoint folder until it is as fast and small as the goal asks, and let it recover.

    What was measured and trained is kept in `OUT.work` until the end, so an interrupted call goes on.

    Args:
        model: the fine-tuned checkpoint folder.
        out: the folder to write; not there yet.
        settings: how to prune and recover.
        goal: `speedup`, `p50_ms`, `p99_ms` or `size_mb`, of the int8 ONNX model in process on this machine.
        train: a data reference.
        validation: a data reference, or the fraction of the training rows to hold out.
        unlabelled: a data reference to more messages, of which only the text is read; None for none.
        columns: of the message and the label.
        task: its name.
        target: the Triton release to export for.
        threads: of a session; 0 for all cores.
        seed: of every random choice.
        study: a storage (see `open_study`) through which processes elsewhere take part in the short recoveries.
        worker: take part in the pruning that another process shares there, in place of pruning.
        teachers: checkpoint folders of more fine-tunings of the same model, that teach too.
        listener: hears of progress.

    Returns:
        what stayed in words, and what was measured.

    Raises:
        UsageError: the goal has no limit on speed or size, or the study is not there.
        ModelError: a teacher has another tokenizer or other labels.
        MissingDependencyError: a study is asked for, and Optuna is not installed.
    """
    from deploykit.pipeline.compression import join_pruning, prune_to_goal
    from deploykit.train.lesson import check_teaches

    refuse_where_no_texts(task, ["pruning"])
    if worker and study is None:
        raise UsageError("a worker needs a study to work for", "give --study")
    if goal.speedup is goal.p50_ms is goal.p99_ms is goal.size_mb is None and not settings.keep:
        hint = "give --speedup, --p50-ms, --p99-ms or --size-mb, or --keep"
        raise UsageError("there is no speed or size to prune to", hint)
    check_prunable(model)
    labels = labels_from_folder(model)
    for teacher in teachers:
        check_teaches(teacher, model, labels)
    data = load_training_data(train, validation, _columns(columns, task), seed, unlabelled=unlabelled)
    data = replace(data, label_names=tuple(labels))
    find_task(task).right_answers(data.train.labels or (), labels)
    rows = _rows(data)
    dumps = [settings.model_dump(mode="json"), goal.model_dump(mode="json")]
    rows.append(list(data.unlabelled))
    rows += [dict(digest_tree(teacher)) for teacher in teachers]
    key = digest_json([dict(digest_tree(model)), *dumps, task, target, threads, seed, *rows])
    workspace = out.absolute().with_name(f"{out.name}.work") / key[:16]
    shared = None if study is None else open_study(study, key, listener, join=worker)
    info: dict[str, Any] = {}
    same: dict[str, Any] = {
        "task": find_task(task), "data": data, "settings": settings, "finetune": Finetune(), "goal": goal,
        "quantize": Quantize(), "target": target, "threads": threads, "seed": seed, "study": shared,
        "others": teachers, "listener": listener,
    }  # fmt: skip
    if worker:
        with tempfile.TemporaryDirectory(prefix="deploykit-worker-") as scratch:  # OUT.work may be the other process's
            count = join_pruning(model, workspace=Path(scratch) / "prune", **same)
        return f"trained {count} finalist{'s' * (count != 1)} of another process; nothing is written", info
    with new_folder(out) as folder:
        outcome = prune_to_goal(model, folder, workspace=workspace, info=info, **same)
        if shared is not None:
            shared.close()
    shutil.rmtree(workspace.parent, ignore_errors=True)
    return outcome, info


def quantize_alone(
    model: Path,
    out: Path,
    settings: Quantize,
    *,
    data: str,
    columns: tuple[str, LabelColumns],
    max_drop: float,
    task: str,
    seed: int,
    listener: Listener = ignore,
) -> tuple[str, dict[str, Any]]:
    """Quantize an ONNX folder, choosing on labelled rows; half of them calibrate, the other half judges.

    Returns:
        the choice in words, and what was measured.
    """
    table = read_rows(data, _columns(columns, task))
    calibration, validation = hold_out(table, 0.5, seed, "validation")
    labelled = LabelledData(calibration, validation, validation, labels_from_folder(model))
    info: dict[str, Any] = {}
    with new_folder(out) as folder:
        outcome = choose_variant(
            model,
            folder,
            settings,
            find_task(task),
            labelled,
            max_drop=max_drop,
            seed=seed,
            info=info,
            listener=listener,
        )
    return outcome, info


def package_alone(
    model: Path,
    repository: Path,
    name: str,
    settings: Package,
    *,
    task: str,
    target: str,
    listener: Listener = ignore,
) -> Published:
    """Publish an ONNX folder into a repository as the next version of `name` and `name_onnx`."""
    preflight(model / "model.onnx", target)
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch) / "package"
        build_package(model, staged, name, find_task(task), package_settings(settings), samples=())
        return publish(staged, repository, listener=listener)


def parity_alone(
    reference: str,
    candidate: str,
    *,
    data: str,
    columns: tuple[str, LabelColumns | None],
    max_drop: float,
    max_flips: float | None,
    tolerance: float | None,
    confidence: float,
    tokenizer: Path | None,
    task: str,
    question: Question = "auto",
    cache: Path | None = None,
    also: str | None = None,
    reproduce: Path | None = None,
    listener: Listener = ignore,
) -> ParityReport:
    """Compare two models on a data file.

    Args:
        reference: what to live up to: a folder, an .onnx file, a model's folder in a repository, or a server's URL.
        candidate: what is on trial, likewise.
        data: a data reference.
        columns: of the message and of the label; None for the label compares without the metric.
        max_drop: the drop of the metric that is too much.
        max_flips: the rate of changed answers that is too much.
        tolerance: the difference of logits that is too much; what the precision explains unless told.
        confidence: of the one-sided bounds.
        tokenizer: the tokenizer's folder of a bare .onnx file; the other model's own unless told.
        task: its name.
        question: see `compare_models`.
        cache: the folder that keeps PyTorch's outputs; None keeps none.
        also: the URL of a served candidate by the server's other protocol.
        reproduce: a folder to write where it fails: the messages that show it, both outputs and the command.
        listener: hears of progress.

    Raises:
        ParityError: neither side says what its labels are called.
        UsageError: `also` is given, and one of both is no URL.
    """
    first, second = pair_from_text(reference, candidate, task=task, tokenizer=tokenizer)
    other = None if also is None else target_from_text(also, task=task)
    if other is not None and not other.kind == second.kind == "triton":
        raise UsageError(
            "--also is a second URL of a served CANDIDATE", "write both as grpc:// or http://HOST:PORT/MODEL"
        )
    nameless = columns[1] is None and first.kind == second.kind == "triton"
    labels = labels_or_error(first, second, needed=not nameless)
    table = read_rows(data, _columns(columns, task))
    report = compare_models(
        first,
        second,
        list(table.texts),
        table.labels,
        find_task(task),
        labels=labels,
        max_drop=max_drop,
        max_flips=max_flips,
        tolerance=tolerance,
        confidence=confidence,
        question=question,
        cache=None if cache is None else OutputCache(cache),
        also=other,
        listener=listener,
    )
    report = with_location(report, first, second, table.texts, find_task(task), listener)
    if reproduce is not None and report.verdict == "fail":
        options = [] if tolerance is None else ["--tolerance", f"{tolerance:g}"]
        options += [] if tokenizer is None else ["--tokenizer", str(tokenizer.absolute())]
        write_reproducer(reproduce, report, first, second, table.texts, options)
    return report


def bench_alone(
    targets: Sequence[str],
    *,
    data: str,
    text: str,
    messages: int,
    blocks: int,
    warmup: int,
    threads: int,
    tokenizer: Path | None,
    task: str,
    lengths: Sequence[int] = (),
    listener: Listener = ignore,
) -> dict[str, Samples]:
    """Time targets on the messages of a data file, in alternating blocks.

    With `lengths`, tokens of a message by the first target's tokenizer, the messages are made of the file's words.

    Raises:
        LatencyError: a length is above the model's, or no message can be given it.
        UsageError: lengths are asked for, and the first target has no tokenizer at hand.
    """
    found = {name: timed_target(name, threads=threads, tokenizer=tokenizer, task=task) for name in targets}
    texts = read_rows(data, columns_of(task, text, None)).texts
    timed = spread_over(texts, messages)
    if lengths:
        folder = tokenizer or Path(targets[0])
        if not (folder / "tokenizer.json").is_file():
            raise UsageError(f"{targets[0]} has no tokenizer at hand, which counts tokens", "name one: --tokenizer")
        timed = timed_messages(texts, messages, lengths, folder)
    return measure(found, timed, blocks=blocks, warmup=warmup, listener=listener)


def _columns(columns: tuple[str, LabelColumns | None], task: str) -> Columns:
    text, label = columns
    return columns_of(task, text, None if label is None else find_task(task).label_form(label))


def _rows(data: LabelledData) -> list[JsonValue]:
    """What a key says of the rows to train on and to watch."""
    return [data.train.digest(), data.validation.digest()]
