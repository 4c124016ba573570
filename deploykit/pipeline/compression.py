"""Pruning to a goal: measure what the parts cost on this machine, choose what stays, and let it learn from the whole.

ZipLM (Kurtic, Frantar and Alistarh 2023): scores by the optimal brain surgeon, times measured in the final graph and
precision, levels by dynamic programming; then distillation. The test split is not looked at.
"""

from __future__ import annotations

__all__ = ["join_pruning", "prune_to_goal"]

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.artifacts.atomic import write_atomic
from deploykit.compress.search import LayerChoice, choice_of
from deploykit.compress.vocabulary import trim_vocabulary
from deploykit.data.dataset import LabelledData
from deploykit.errors import ModelError
from deploykit.events import Listener, Note, Warn, ignore
from deploykit.latency.messages import timed_messages
from deploykit.pipeline.choice import sampled
from deploykit.pipeline.clock import Bench, read_note
from deploykit.pipeline.recovery import Recovery
from deploykit.pipeline.selection import CutModels, Selection, in_words, tried
from deploykit.pipeline.study import Study
from deploykit.recipe import Finetune, Goal, Prune, Quantize
from deploykit.tasks import Task
from deploykit.tasks.pruned import encoder_layers, heads_fixed

_TIMED_MESSAGES = 160
_FITTED_ROWS = 1024
"""Messages that the output matrices of a cut model are fitted on."""
_SCALED_ON = 16
"""Messages that static scales of what is timed are taken from."""


def prune_to_goal(
    teacher: Path,
    out: Path,
    *,
    task: Task,
    data: LabelledData,
    settings: Prune,
    finetune: Finetune,
    goal: Goal,
    quantize: Quantize,
    target: str,
    threads: int,
    seed: int,
    workspace: Path,
    info: dict[str, Any],
    others: Sequence[Path] = (),
    study: Study | None = None,
    listener: Listener = ignore,
) -> str:
    """Prune a fine-tuned model until it is as fast as the goal asks, and distil it from the unpruned one.

    Args:
        teacher: the fine-tuned checkpoint folder; it is the model that is pruned and that teaches.
        out: the folder to write: a checkpoint, with `pruning.json` beside it.
        task: what the model does.
        data: training rows calibrate and teach, validation rows are timed.
        settings: the recipe's `prune` section.
        finetune: the recipe's `finetune` section, for what the recovery has in common with it.
        goal: what speed to reach.
        quantize: the recipe's `quantize` section: times are taken in that precision.
        target: the Triton release to export for.
        threads: of a session; 0 for all cores.
        seed: of the calibration messages, the search and the recovery.
        workspace: keeps what was measured and the recovery's checkpoints.
        info: is filled with what was found.
        others: checkpoint folders of more fine-tunings of the same model, that teach too.
        study: shares the short recoveries of finalists with other machines.
        listener: hears of progress.

    Returns:
        what stayed, in words. Where nothing is fast enough it is the smallest that can be made, with a Warn.

    Raises:
        ModelError: the model can't be pruned.
    """
    work = _set_up(
        teacher, task=task, data=data, settings=settings, finetune=finetune, goal=goal, quantize=quantize,
        target=target, threads=threads, seed=seed, workspace=workspace, others=others, listener=listener,
    )  # fmt: skip
    bench, recovery, cuts = work.bench, work.recovery, work.cuts
    info.update(work.trimmed)
    named = _named(settings.keep, cuts.model)
    kept = (
        read_note(workspace / "choice.json")
        if named is None
        else {"choice": [layer and list(layer) for layer in named]}
    )
    if kept is None:
        selection = Selection(bench, cuts, recovery, goal, settings, study)
        kept = json.loads(json.dumps({"choice": selection.choose(), **selection.info()}))
        write_atomic(workspace / "choice.json", json.dumps(kept).encode())
    choice = [None if layer is None else (int(layer[0]), int(layer[1])) for layer in kept["choice"]]
    info.update(kept)
    if choice == cuts.whole:
        kept_as_is = teacher if goal.size_mb is None else cuts.checkpoint  # for speed alone no piece need go
        shutil.copytree(kept_as_is, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        return "no layer pruned: the whole model is fast and small enough"
    pruned, words = cuts.saved(choice), in_words(choice)
    del work, cuts
    if not settings.retrains:
        shutil.copytree(pruned, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("trial.json", "measured.json"))
        return f"{words}; not retrained"
    info["recovery"] = recovery.best(pruned, out, workspace)
    shutil.copy2(pruned / "pruning.json", out / "pruning.json")
    return f"{words}; {task.metric} {info['recovery']['metrics'][task.metric]:.2%} on validation"


def join_pruning(teacher: Path, *, task: Task, study: Study, settings: Prune, **same: Any) -> int:
    """Train finalists of a pruning that runs elsewhere with the same model, data and settings; how many.

    Nothing is timed: that is for the machine that prunes.

    Args:
        teacher: the same model folder.
        task: what the model does.
        study: that the pruning shares.
        settings: the same.
        **same: the other arguments of `prune_to_goal` but `out` and `info`.
    """
    work = _set_up(teacher, task=task, settings=settings, **same)
    return study.work(lambda name: tried(work.bench, work.cuts, work.recovery, choice_of(name)))


@dataclass(frozen=True)
class _Work:
    """What pruning works with."""

    bench: Bench
    recovery: Recovery
    cuts: CutModels
    trimmed: dict[str, Any]


def _set_up(
    teacher: Path,
    *,
    task: Task,
    data: LabelledData,
    settings: Prune,
    finetune: Finetune,
    goal: Goal,
    quantize: Quantize,
    target: str,
    threads: int,
    seed: int,
    workspace: Path,
    listener: Listener,
    others: Sequence[Path] = (),
) -> _Work:
    import torch

    from deploykit.runners.tokenize import Encoder

    whole, trimmed = teacher, dict[str, Any]()
    if settings.retrains or goal.size_mb is not None:  # a word that is cut finer has to be learned
        (teacher, *others), trimmed = _trimmed((teacher, *others), task, data, settings, workspace, listener)
    texts = sampled(data.train.texts, settings.calibration_rows, seed)
    bench = Bench(
        task,
        teacher,
        quantize,
        target,
        threads,
        timed_messages(data.validation.texts, _TIMED_MESSAGES, goal.target.lengths, whole),
        texts[:_SCALED_ON],
        workspace / "bench",
        seed,
        listener,
    )
    bench.folder.mkdir(parents=True, exist_ok=True)
    frozen = finetune.freeze_embeddings and not trimmed
    recovery = Recovery(teacher, task, data, settings, finetune, seed, listener, frozen, others)
    model = task.load_model(teacher, dtype=torch.float32, attn_implementation="sdpa").eval()
    encoder = Encoder(teacher)
    batches, more = (_batches(encoder, sampled(data.train.texts, rows, seed)) for rows in (len(texts), _FITTED_ROWS))
    named = _named(settings.keep, model)
    cuts = CutModels(model, teacher, batches, more, bench.folder, listener, named=named or ())
    return _Work(bench, recovery, cuts, trimmed)


def _named(keep: Sequence[str], model: Any) -> list[LayerChoice] | None:
    """The choice that `prune.keep` names; None where it names none.

    Raises:
        ModelError: the model has no such layer, or fewer heads or columns.
    """
    if not keep:
        return None
    layers = encoder_layers(model)
    choice: list[LayerChoice] = [None] * len(layers)
    for text in keep:
        number, heads, columns = (int(part) for part in text.split("/"))
        if number >= len(layers):
            raise ModelError(f"prune.keep names layer {number}, and the model's last is {len(layers) - 1}")
        whole = layers[number].shape
        if heads > whole[0] or columns > whole[1]:
            raise ModelError(f"prune.keep: {text} is more than layer {number} has: {number}/{whole[0]}/{whole[1]}")
        if heads < whole[0] and heads_fixed(model):
            raise ModelError(f"prune.keep: the heads of this model stay as they are: {number}/{whole[0]}/{columns}")
        choice[number] = (heads, columns)
    return choice


def _trimmed(
    teachers: Sequence[Path], task: Task, data: LabelledData, settings: Prune, workspace: Path, listener: Listener
) -> tuple[Sequence[Path], dict[str, Any]]:
    """The teachers with a trimmed vocabulary, and what stayed; they themselves, and nothing, where none was."""
    outs = [workspace / "trimmed" / str(number) for number in range(len(teachers))]
    kept = read_note(workspace / "trimmed.json")
    if kept is None and settings.vocabulary != "all":
        shutil.rmtree(workspace / "trimmed", ignore_errors=True)
        texts = (*data.train.texts, *data.validation.texts, *data.unlabelled)
        found = None
        try:
            for teacher, out in zip(teachers, outs, strict=True):
                found = trim_vocabulary(teacher, out, task, texts, commonest=settings.vocabulary)
        except ModelError as error:
            listener(Warn(f"{error.message}: the whole vocabulary stays"))
            found = None
        kept = {} if found is None else {"vocabulary": {"pieces": found.pieces, "kept": len(found.kept)}}
        workspace.mkdir(parents=True, exist_ok=True)
        write_atomic(workspace / "trimmed.json", json.dumps(kept).encode())
    if not kept:
        return teachers, {}
    count = kept["vocabulary"]
    listener(Note(f"vocabulary: {count['kept']:,} of {count['pieces']:,} pieces stay"))
    return outs, kept


def _batches(encoder: Any, texts: Sequence[str]) -> list[dict[str, Any]]:
    import torch

    ordered = sorted(texts, key=len)
    return [
        {name: torch.tensor(values) for name, values in encoder.encode(ordered[start : start + 16]).items()}
        for start in range(0, len(ordered), 16)
    ]
