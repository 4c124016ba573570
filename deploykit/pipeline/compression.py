"""Pruning to a goal: measure what the parts cost on this machine, choose what stays, and let it learn from the whole.

ZipLM (Kurtic, Frantar and Alistarh 2023): scores by the optimal brain surgeon, times measured in the final graph and
precision, levels by dynamic programming; then distillation. The test split is not looked at.
"""

from __future__ import annotations

__all__ = ["Recovery", "prune_to_goal"]

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.artifacts.atomic import write_atomic
from deploykit.compress.search import LayerChoice, Option, Sizes, cheapest, layer_options, spaced
from deploykit.compress.vocabulary import trim_vocabulary
from deploykit.data.dataset import LabelledData
from deploykit.errors import ModelError
from deploykit.events import Listener, Note, Progress, Warn, ignore
from deploykit.latency.measure import spread_over
from deploykit.pipeline.clock import (
    COLUMNS_MULTIPLE,
    Bench,
    Timings,
    levels_of,
    quiet_ms,
    read_note,
    read_sizes,
    save_model,
    time_shapes,
)
from deploykit.pipeline.stages import sampled
from deploykit.recipe import Finetune, Goal, Prune, Quantize
from deploykit.runners import Target
from deploykit.tasks import Task
from deploykit.tasks.pruned import encoder_layers

if TYPE_CHECKING:
    from deploykit.train.finetune import FinetuneResult

_HEADS = (1.0, 2 / 3, 1 / 2, 1 / 3, 1 / 6)
_COLUMNS = (1.0, 3 / 4, 1 / 2, 3 / 8, 1 / 4, 1 / 8, 1 / 16)
"""Levels that are scored, as shares of the unpruned layer."""
_MARGIN = 0.95
"""Of the goal's time that is aimed at: a machine is never as quiet again."""
_ROUNDS = 3
"""Assembled models that are measured at most before the recovery."""
_TRIAL_ROWS = 2000
_TRIAL_EPOCHS = 3.0
"""Of the short recovery that finalists are compared after."""
_TIMED_MESSAGES = 160


@dataclass(frozen=True)
class Recovery:
    """How a pruned model learns from the whole one.

    Attributes:
        teacher: the whole model's checkpoint folder.
        task: what both do.
        data: the training rows to learn on, and the validation rows to judge by.
        settings: the recipe's `prune` section.
        finetune: the recipe's `finetune` section, for what both trainings have in common.
        seed: of the order of the rows, and of those for a trial.
        listener: hears of progress.
        freeze_embeddings: whether they stay as they are; those of a trimmed vocabulary cost little to train.
    """

    teacher: Path
    task: Task
    data: LabelledData
    settings: Prune
    finetune: Finetune
    seed: int
    listener: Listener
    freeze_embeddings: bool

    def run(self, pruned: Path, out: Path, workspace: Path, *, trial: bool = False) -> FinetuneResult:
        """Train the checkpoint in `pruned` and write it to `out`; a trial is short, and on some of the rows."""
        from deploykit.train.finetune import Lesson, finetune

        data, epochs, copies = self.data, self.settings.epochs, self.settings.copies
        if trial:
            rows = np.random.default_rng(self.seed).permutation(len(data.train))[:_TRIAL_ROWS]
            data = replace(data, train=data.train.take(sorted(rows.tolist())), unlabelled=())
            epochs, copies = min(epochs, _TRIAL_EPOCHS), 0
        return finetune(
            pruned,
            data,
            self.finetune.model_copy(
                update={
                    "epochs": epochs,
                    "learning_rate": self.settings.learning_rate,
                    "strategy": "full",
                    "dropout": 0.0,
                    "freeze_embeddings": self.freeze_embeddings,
                }
            ),
            self.task,
            out,
            workspace=workspace,
            seed=self.seed,
            lesson=Lesson(
                self.teacher,
                self.settings.temperature,
                self.settings.soft_weight,
                self.settings.hidden_weight,
                cache=workspace.parent / f"teacher-{len(data.train)}",
                unlabelled=data.unlabelled,
                copies=copies,
            ),
            stage="prune",
            listener=self.listener,
        )


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
        listener: hears of progress.

    Returns:
        what stayed, in words. Where nothing is fast enough it is the smallest that can be made, with a Warn.

    Raises:
        ModelError: the model can't be pruned.
    """
    import torch

    from deploykit.runners.tokenize import Encoder

    whole, (teacher, trimmed) = teacher, _trimmed(teacher, task, data, settings, workspace, listener)
    info.update(trimmed)
    texts = sampled(data.train.texts, settings.calibration_rows, seed)
    bench = Bench(
        task,
        quantize,
        target,
        threads,
        spread_over(data.validation.texts, _TIMED_MESSAGES),
        texts,
        workspace / "bench",
        seed,
        listener,
    )
    bench.folder.mkdir(parents=True, exist_ok=True)
    frozen = finetune.freeze_embeddings and not trimmed
    recovery = Recovery(teacher, task, data, settings, finetune, seed, listener, frozen)
    model = task.load_model(teacher, dtype=torch.float32, attn_implementation="sdpa").eval()
    encoder = Encoder(teacher)
    batches = _calibration_batches(encoder, texts)
    kept = read_note(workspace / "choice.json")
    if kept is None:
        choice, found = _choose(bench, recovery, model, batches, goal, settings)
        kept = json.loads(json.dumps({"choice": choice, **found}))
        write_atomic(workspace / "choice.json", json.dumps(kept).encode())
    choice = [None if layer is None else (int(layer[0]), int(layer[1])) for layer in kept["choice"]]
    info.update(kept)
    if choice == [layer.shape for layer in encoder_layers(model)]:
        kept_as_is = whole if goal.size_mb is None else teacher  # for speed alone no piece need go
        shutil.copytree(kept_as_is, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        return "no layer pruned: the whole model is fast and small enough"
    if not (workspace / "pruned" / "config.json").is_file():
        _save(_levels(model, batches, listener), model, choice, teacher, workspace / "pruned")
    del model
    result = recovery.run(workspace / "pruned", out, workspace / "recovery")
    info["recovery"] = json.loads(json.dumps(asdict(result)))
    shutil.copy2(workspace / "pruned" / "pruning.json", out / "pruning.json")
    layers = ", ".join(f"{n}: {c[0]} heads, {c[1]} columns" for n, c in enumerate(choice) if c)
    return f"layers {layers}; {task.metric} {result.metrics[task.metric]:.2%} on validation"


def _choose(
    bench: Bench, recovery: Recovery, model: Any, batches: Any, goal: Goal, settings: Prune
) -> tuple[list[LayerChoice], dict[str, Any]]:
    """The levels to prune to, and how they were found."""
    teacher = recovery.teacher
    unpruned: list[LayerChoice] = [layer.shape for layer in encoder_layers(model)]
    reference = Target("torch", str(teacher), device="cpu", task=bench.task.name)
    timings = time_shapes(bench, model, teacher, reference)
    sizes = read_sizes(bench)
    whole_ms = timings.table().model_ms(unpruned)
    wanted = _aim_ms(goal, timings)
    aim = (whole_ms if wanted is None else wanted * _MARGIN) + 1e-9
    found: dict[str, Any] = {"aim_ms": aim, "rounds": []}

    def small(choice: Sequence[LayerChoice]) -> bool:
        return goal.size_mb is None or sizes.model_mb(choice) <= goal.size_mb

    if whole_ms <= aim and small(unpruned):
        return unpruned, found | {"table": asdict(timings.table())}
    levels = _levels(model, batches, bench.listener)

    def options() -> list[tuple[Option, ...]]:
        table = timings.table()
        return [
            layer_options(
                {n: level.error for n, level in heads.items()}, {n: level.error for n, level in columns.items()}, table
            )
            for heads, columns in zip(levels.heads, levels.columns, strict=True)
        ]

    def fits(choice: Sequence[LayerChoice]) -> bool:
        """Time the assembled model, as the run of the table would have seen it, and learn from it."""
        nonlocal timings
        folder = _assembled(bench, levels, model, choice, teacher)
        timed = bench.time({"candidate": bench.build(folder, folder.name), "reference": reference})
        ms = quiet_ms(timed["candidate"]) * timings.reference_ms / quiet_ms(timed["reference"])
        predicted = timings.table().model_ms(choice)
        found["rounds"].append({"choice": list(choice), "predicted_ms": predicted, "measured_ms": ms})
        bench.listener(Note(f"{_words(choice)}: {predicted:.2f} ms predicted, {ms:.2f} measured, {aim:.2f} aimed at"))
        timings = timings.seen(choice, ms)
        return ms <= max(aim / _MARGIN, whole_ms if wanted is None else 0.0)

    choice: list[LayerChoice] = unpruned
    finalists: list[list[LayerChoice]] = []
    for _ in range(_ROUNDS):
        budget = aim - timings.table().fixed_ms
        searched = _search(bench, model, levels, options(), budget, small, batches, settings)
        if searched is None:
            smallest = _smallest(options())
            bench.listener(Warn(_too_much(smallest, timings.table().model_ms(smallest), aim, goal, sizes)))
            return smallest, found | {"table": asdict(timings.table())}
        choice = searched
        if fits(choice):
            finalists = [choice]
            break
    evenly = spaced(options(), aim - timings.table().fixed_ms, small)
    finalists += [each for each in evenly if each not in finalists]
    ranked = _by_trial(bench, recovery, levels, model, finalists or [choice], found)
    for choice in ranked:
        if found["rounds"][-1]["choice"] == choice or fits(choice):
            break
    else:
        bench.listener(Warn("no choice was as quick as predicted: the last one stays"))
    return choice, found | {"table": asdict(timings.table())}


def _by_trial(
    bench: Bench, recovery: Recovery, levels: Any, model: Any, fits: Sequence[list[LayerChoice]], found: dict[str, Any]
) -> list[list[LayerChoice]]:
    """The choices in the order of their loss on validation after a short recovery on some of the rows.

    How near a cut model is to the whole one says little once most layers are gone: layers next to each other and next
    to the head look best then, and recover worst.
    """
    if len(fits) == 1:
        return list(fits)
    losses: dict[str, float] = {}
    for number, choice in enumerate(fits):
        folder = _assembled(bench, levels, model, choice, recovery.teacher)
        bench.listener(Note(f"trying {_words(choice)}, {number + 1} of {len(fits)}"))
        kept = read_note(folder / "trial.json") or {}
        if not kept:
            with tempfile.TemporaryDirectory(dir=bench.folder) as scratch:
                result = recovery.run(folder, Path(scratch), bench.folder / f"trial-{folder.name}", trial=True)
            kept = {"loss": result.metrics["loss"], recovery.task.metric: result.metrics[recovery.task.metric]}
            write_atomic(folder / "trial.json", json.dumps(kept).encode())
        losses[str(choice)] = kept["loss"]
        found.setdefault("trials", []).append({"choice": list(choice), **kept})
    return sorted(fits, key=lambda choice: losses[str(choice)])


def _assembled(bench: Bench, levels: Any, model: Any, choice: Sequence[LayerChoice], teacher: Path) -> Path:
    folder = bench.folder / ("assembled-" + "-".join("x" if c is None else f"{c[0]}.{c[1]}" for c in choice))
    if not (folder / "config.json").is_file():
        _save(levels, model, choice, teacher, folder)
    return folder


def _aim_ms(goal: Goal, timings: Timings) -> float | None:
    """The p50 that the goal asks for; None where it has no limit on speed."""
    aims = []
    if goal.speedup is not None:
        aims.append(timings.reference_ms / goal.speedup)
    if goal.p50_ms is not None:
        aims.append(goal.p50_ms)
    if goal.p99_ms is not None:
        aims.append(goal.p99_ms / timings.tail)
    return min(aims, default=None)


def _too_much(smallest: Sequence[LayerChoice], ms: float, aim: float, goal: Goal, sizes: Sizes) -> str:
    """What keeps the smallest model from the goal."""
    made = "it is made all the same"
    if goal.size_mb is not None and sizes.model_mb(smallest) > goal.size_mb:
        size = f"{sizes.model_mb(smallest):.1f} MB, {sizes.fixed_mb:.1f} of them outside of its layers"
        advice = "raise goal.size_mb, or lower prune.vocabulary"
        return f"even {_words(smallest)} takes {size}, and {goal.size_mb:g} are asked for: {made}; {advice}"
    return (
        f"even {_words(smallest)} takes {ms:.2f} ms here, and {aim:.2f} are aimed at: {made};"
        " ask for less speed, or take more threads"
    )


def _trimmed(
    teacher: Path, task: Task, data: LabelledData, settings: Prune, workspace: Path, listener: Listener
) -> tuple[Path, dict[str, Any]]:
    """The teacher with a trimmed vocabulary, and what stayed; the teacher itself and nothing where it is not trimmed."""
    out = workspace / "trimmed"
    kept = read_note(workspace / "trimmed.json")
    if kept is None and settings.vocabulary != "all":
        shutil.rmtree(out, ignore_errors=True)
        texts = (*data.train.texts, *data.validation.texts, *data.unlabelled)
        try:
            found = trim_vocabulary(teacher, out, task, texts, commonest=settings.vocabulary)
        except ModelError as error:
            listener(Warn(f"{error.message}: the whole vocabulary stays"))
            found = None
        kept = {} if found is None else {"vocabulary": {"pieces": found.pieces, "kept": len(found.kept)}}
        workspace.mkdir(parents=True, exist_ok=True)
        write_atomic(workspace / "trimmed.json", json.dumps(kept).encode())
    if not kept:
        return teacher, {}
    count = kept["vocabulary"]
    listener(Note(f"vocabulary: {count['kept']:,} of {count['pieces']:,} pieces stay"))
    return out, kept


def _search(
    bench: Bench,
    model: Any,
    levels: Any,
    options: Any,
    budget_ms: float,
    fits: Callable[[Sequence[LayerChoice]], bool],
    batches: Any,
    settings: Prune,
) -> list[LayerChoice] | None:
    """The choice whose cut model is nearest to the whole one, over random weights of the layers (SPDY)."""
    import torch

    from deploykit.compress.calibrate import divergence, pruned_copy

    few = batches[: max(1, len(batches) // 2)]
    with torch.inference_mode():
        expected = [model(**batch)[bench.task.output] for batch in few]
    random = np.random.default_rng(bench.seed)
    best: tuple[list[LayerChoice], float] | None = None
    weights = np.ones(len(options))
    seen: dict[tuple[LayerChoice, ...], float] = {}
    for number in range(settings.tries):
        tried = weights if number == 0 else np.exp(np.log(weights) + random.normal(0, 1.5, len(options)))
        choice = cheapest(options, tried.tolist(), budget_ms, fits)
        if choice is None:
            return None
        if choice not in seen:
            small, _ = pruned_copy(model, levels, choice)
            seen[choice] = divergence(small, few, expected, bench.task.output)
        if best is None or seen[choice] < best[1]:
            best, weights = (list(choice), seen[choice]), tried
        bench.listener(Progress("prune", number + 1, settings.tries, "choice", {"divergence": best[1]}))
    return None if best is None else best[0]


def _smallest(options: Sequence[Sequence[Option]]) -> list[LayerChoice]:
    """One layer at its quickest level: the one whose parts lose least."""
    quickest = [min((each for each in layer if each.choice), key=lambda each: each.ms) for layer in options]
    chosen = min(range(len(options)), key=lambda number: quickest[number].error)
    return [quickest[number].choice if number == chosen else None for number in range(len(options))]


def _levels(model: Any, batches: Any, listener: Listener) -> Any:
    from deploykit.compress.calibrate import candidates

    full = encoder_layers(model)[0].shape
    heads, columns = levels_of(full[0], _HEADS, 1), levels_of(full[1], _COLUMNS, COLUMNS_MULTIPLE)
    return candidates(model, batches, heads=heads, columns=columns, listener=listener)


def _save(levels: Any, model: Any, choice: Sequence[LayerChoice], teacher: Path, out: Path) -> None:
    from deploykit.compress.calibrate import pruned_copy

    small, plan = pruned_copy(model, levels, choice)
    save_model(small, teacher, out, {"pruning.json": asdict(plan)})


def _calibration_batches(encoder: Any, texts: Sequence[str]) -> list[dict[str, Any]]:
    import torch

    ordered = sorted(texts, key=len)
    return [
        {name: torch.from_numpy(values) for name, values in encoder.encode(ordered[start : start + 16]).items()}
        for start in range(0, len(ordered), 16)
    ]


def _words(choice: Sequence[LayerChoice]) -> str:
    return ", ".join(f"layer {n}: {c[0]} heads, {c[1]} columns" for n, c in enumerate(choice) if c)
