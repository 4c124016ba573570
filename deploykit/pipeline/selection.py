"""Which layers, heads and FFN columns stay: candidates under the goal, assembled, measured and tried.

The search is that of ZipLM (Kurtic, Frantar and Alistarh 2023): levels by dynamic programming over the latency table,
weights of the layers at random. What it finds is measured as a whole, and the finalists are compared by what they are
after a short recovery.
"""

from __future__ import annotations

__all__ = [
    "CutModels",
    "Point",
    "Selection",
    "in_words",
    "pruned_candidates",
    "tried",
]

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.artifacts.atomic import write_atomic
from deploykit.compress.calibrate import Candidates, candidates, divergence, pruned_copy
from deploykit.compress.refit import refit
from deploykit.compress.search import LayerChoice, Options, cheapest, layer_options, name_of, spaced
from deploykit.events import Listener, Note, Progress, Warn
from deploykit.pipeline.clock import (
    COLUMNS_MULTIPLE,
    Bench,
    Timings,
    levels_of,
    read_note,
    read_sizes,
    save_model,
    time_shapes,
)
from deploykit.pipeline.recovery import Recovery
from deploykit.pipeline.study import Study
from deploykit.recipe import Goal, Prune
from deploykit.report.result import PrunedCandidate
from deploykit.runners import Target
from deploykit.tasks.pruned import encoder_layers

_HEADS = (1.0, 5 / 6, 2 / 3, 1 / 2, 1 / 3, 1 / 6)
_COLUMNS = (1.0, 7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8, 1 / 4, 1 / 8, 1 / 16)
"""Levels that are scored, as shares of the unpruned layer."""
_MARGIN = 0.95
"""Of the goal's time that is aimed at: a machine is never as quiet again."""
_ROUNDS = 3
"""Choices of the search that are measured at most."""


class CutModels:
    """Copies of a model cut down to choices of levels, each made once and kept in a folder.

    Args:
        model: the whole model, in evaluation mode.
        checkpoint: its folder.
        batches: inputs as PyTorch tensors, to score its structures on.
        more: more of them, to fit the output matrices of what is left on.
        folder: where the copies are kept.
        listener: hears of progress.
        named: a choice whose levels are scored too.
    """

    def __init__(
        self,
        model: Any,
        checkpoint: Path,
        batches: Sequence[Mapping[str, Any]],
        more: Sequence[Mapping[str, Any]],
        folder: Path,
        listener: Listener,
        *,
        named: Sequence[LayerChoice] = (),
    ) -> None:
        self._named = [each for each in named if each]
        self.model, self.checkpoint, self.batches = model, checkpoint, batches
        self._more, self._folder, self._listener = more, folder, listener

    @property
    def whole(self) -> list[LayerChoice]:
        """What the uncut model has."""
        return [layer.shape for layer in encoder_layers(self.model)]

    @cached_property
    def levels(self) -> Candidates:
        """Every layer at every level, scored."""
        full = encoder_layers(self.model)[0].shape
        heads, columns = levels_of(full[0], _HEADS, 1), levels_of(full[1], _COLUMNS, COLUMNS_MULTIPLE)
        heads, columns = [*heads, *(each[0] for each in self._named)], [*columns, *(each[1] for each in self._named)]
        return candidates(self.model, self.batches, heads=heads, columns=columns, listener=self._listener)

    def saved(self, choice: Sequence[LayerChoice]) -> Path:
        """The checkpoint folder of a cut model, fitted, with the plan beside it as `pruning.json`."""
        folder = self._folder / f"assembled-{name_of(choice)}"
        if not (folder / "config.json").is_file():
            small, plan = pruned_copy(self.model, self.levels, choice)
            refit(self.model, small, plan, self._more, listener=self._listener)
            save_model(small, self.checkpoint, folder, {"pruning.json": asdict(plan)})
        return folder

    def expected(self, output: str) -> tuple[Sequence[Mapping[str, Any]], list[Any]]:
        """Some of the batches, and what the whole model answers to them."""
        import torch

        few = self.batches[: max(1, len(self.batches) // 2)]
        with torch.inference_mode():
            return few, [self.model(**batch)[output] for batch in few]


@dataclass
class Point:
    """A choice that was assembled and measured.

    Attributes:
        choice: what stays of each layer.
        predicted_ms: by the table, before it was measured.
        measured_ms: p50 in the final graph and precision.
        size_mb: on disk, by the table.
        fits: whether it is as fast as the goal asks.
        loss: on validation after a short recovery; without one the divergence from the whole model, nats a message.
        metric: on validation after it; None without one.
    """

    choice: list[LayerChoice]
    predicted_ms: float
    measured_ms: float
    size_mb: float
    fits: bool
    loss: float | None = None
    metric: float | None = None


def tried(bench: Bench, cuts: CutModels, recovery: Recovery, choice: Sequence[LayerChoice]) -> Mapping[str, Any]:
    """What a cut model is after a short recovery on some of the rows: `loss` and `metric` on validation.

    How near a cut model is to the whole one says little once most layers are gone: layers next to each other and
    next to the head look best then, and recover worst.
    """
    folder = cuts.saved(choice)
    kept = read_note(folder / "trial.json")
    if kept is None and recovery.settings.retrains:
        with tempfile.TemporaryDirectory(dir=bench.folder) as scratch:
            result = recovery.run(folder, Path(scratch), bench.folder / f"trial-{folder.name}", trial=True)
        kept = {"loss": result.metrics["loss"], "metric": result.metrics[bench.task.metric]}
    elif kept is None:
        small = bench.task.load_model(folder)
        kept = {"loss": divergence(small, *cuts.expected(bench.task.output), bench.task), "metric": None}
    write_atomic(folder / "trial.json", json.dumps(kept).encode())
    return kept


class Selection:
    """The search for what stays.

    Args:
        bench: builds and times.
        cuts: makes the candidates.
        recovery: tries them.
        goal: what to reach.
        settings: the recipe's `prune` section.
        study: that shares the trials with other machines; None tries all here.
    """

    def __init__(
        self,
        bench: Bench,
        cuts: CutModels,
        recovery: Recovery,
        goal: Goal,
        settings: Prune,
        study: Study | None = None,
    ) -> None:
        self._bench, self._cuts, self._recovery, self._goal, self._settings = bench, cuts, recovery, goal, settings
        self._study = study
        reference = Target("torch", str(cuts.checkpoint), device="cpu", task=bench.task.name)
        self.timings: Timings = time_shapes(bench, cuts.model, cuts.checkpoint, reference)
        self._sizes = read_sizes(bench)
        self._whole_ms = self.timings.table().model_ms(cuts.whole)
        wanted = _wanted_ms(goal, self.timings)
        self._limit_ms = self._whole_ms if wanted is None else wanted
        self.aim_ms = self._limit_ms if wanted is None else wanted * _MARGIN
        self.points: list[Point] = []
        self._divergence: dict[tuple[LayerChoice, ...], float] = {}

    def choose(self) -> list[LayerChoice]:
        """What stays; the smallest that can be made, with a Warn, where nothing is fast or small enough."""
        if self._whole_ms <= self.aim_ms and self._small(self._cuts.whole):
            return self._cuts.whole
        for _ in range(_ROUNDS):
            searched = self._searched()
            if searched is None:
                smallest = _smallest(self._options())
                self._bench.listener(Warn(self._too_much(smallest)))
                return smallest
            if self._measured(searched).fits:
                break
        if self._settings.retrains:  # what is only fitted is the better the nearer it was to the whole one
            for choice in spaced(self._options(), self._budget_ms, self._small):
                self._measured(choice)
        finalists = [point for point in self.points if point.fits]
        if not finalists:
            self._bench.listener(Warn("no choice was as quick as predicted: the quickest stays"))
            return min(self.points, key=lambda point: point.measured_ms).choice
        if len(finalists) > 1:
            self._try(finalists)
        return min(finalists, key=lambda point: point.loss or 0.0).choice

    def info(self) -> dict[str, Any]:
        """What was aimed at and found, plain values."""
        return {
            "aim_ms": self.aim_ms,
            "points": [asdict(point) for point in self.points],
            "table": asdict(self.timings.table()),
        }

    @property
    def _budget_ms(self) -> float:
        return self.aim_ms * (1 + 1e-9) - self.timings.table().fixed_ms

    def _small(self, choice: Sequence[LayerChoice]) -> bool:
        return self._goal.size_mb is None or self._sizes.model_mb(choice) <= self._goal.size_mb

    def _options(self) -> list[Options]:
        table = self.timings.table()
        return [
            layer_options(
                {n: level.error for n, level in heads.items()}, {n: level.error for n, level in columns.items()}, table
            )
            for heads, columns in zip(self._cuts.levels.heads, self._cuts.levels.columns, strict=True)
        ]

    def _measured(self, choice: Sequence[LayerChoice]) -> Point:
        """Time an assembled model, as the run of the table would have seen it, and let the table learn from it."""
        known = next((point for point in self.points if point.choice == list(choice)), None)
        if known is not None:
            return known
        folder = self._cuts.saved(choice)
        ms = (read_note(folder / "measured.json") or {}).get("ms")
        if ms is None:
            targets = {"candidate": self._bench.build(folder, folder.name), "whole": self.timings.whole}
            timed = self._bench.time(targets)
            ms = timed["candidate"].p50_ms * self.timings.whole_ms / timed["whole"].p50_ms
            write_atomic(folder / "measured.json", json.dumps({"ms": ms}).encode())
        predicted = self.timings.table().model_ms(choice)
        point = Point(list(choice), predicted, ms, self._sizes.model_mb(choice), ms <= self._limit_ms)
        self.points.append(point)
        said = f"{predicted:.2f} ms predicted, {ms:.2f} measured, {self.aim_ms:.2f} aimed at"
        self._bench.listener(Note(f"{in_words(choice)}: {said}"))
        self.timings = self.timings.seen(choice, ms)
        return point

    def _try(self, finalists: Sequence[Point]) -> None:
        """What finalists are after a short recovery, in this process or in those that share the study."""
        names = {name_of(point.choice): point for point in finalists}

        def do(name: str) -> Mapping[str, Any]:
            self._bench.listener(Note(f"trying {in_words(names[name].choice)}, one of {len(names)}"))
            return tried(self._bench, self._cuts, self._recovery, names[name].choice)

        results = {name: do(name) for name in names} if self._study is None else self._study.share(list(names), do)
        for name, point in names.items():
            point.loss, point.metric = results[name]["loss"], results[name]["metric"]

    def _searched(self) -> list[LayerChoice] | None:
        """The choice whose cut model is nearest to the whole one, over random weights of the layers (SPDY)."""
        few, expected = self._cuts.expected(self._bench.task.output)
        options, tries = self._options(), self._settings.tries
        random = np.random.default_rng(self._bench.seed)
        best: tuple[list[LayerChoice], float] | None = None
        weights = np.ones(len(options))
        seen = self._divergence
        for number in range(tries):
            tried = weights if number == 0 else np.exp(np.log(weights) + random.normal(0, 1.5, len(options)))
            choice = cheapest(options, tried.tolist(), self._budget_ms, self._small)
            if choice is None:
                return None
            if choice not in seen:
                small, _ = pruned_copy(self._cuts.model, self._cuts.levels, choice)
                seen[choice] = divergence(small, few, expected, self._bench.task)
            if best is None or seen[choice] < best[1]:
                best, weights = (list(choice), seen[choice]), tried
            self._bench.listener(Progress("prune", number + 1, tries, "choice", {"divergence": best[1]}))
        return None if best is None else best[0]

    def _too_much(self, smallest: Sequence[LayerChoice]) -> str:
        """What keeps the smallest model from the goal."""
        made, goal, sizes = "it is made all the same", self._goal, self._sizes
        if goal.size_mb is not None and sizes.model_mb(smallest) > goal.size_mb:
            size = f"{sizes.model_mb(smallest):.1f} MB, {sizes.fixed_mb:.1f} of them outside of its layers"
            advice = "raise goal.size_mb, or lower prune.vocabulary"
            return f"even {in_words(smallest)} takes {size}, and {goal.size_mb:g} are asked for: {made}; {advice}"
        ms = self.timings.table().model_ms(smallest)
        return (
            f"even {in_words(smallest)} takes {ms:.2f} ms here, and {self.aim_ms:.2f} are aimed at: {made};"
            " ask for less speed, or take more threads"
        )


def pruned_candidates(info: Mapping[str, Any]) -> tuple[PrunedCandidate, ...]:
    """The candidates of a prune artefact's `info`, for a report: the fastest first."""
    points = sorted((Point(**point) for point in info.get("points", ())), key=lambda point: point.measured_ms)

    def beaten(point: Point) -> bool:
        """By one that is faster, hence before it, and no worse."""
        faster = points[: points.index(point)]
        return point.loss is None or any(each.loss is not None and each.loss <= point.loss for each in faster)

    return tuple(
        PrunedCandidate(
            keeps=in_words(point.choice),
            predicted_ms=point.predicted_ms,
            measured_ms=point.measured_ms,
            size_mb=point.size_mb,
            fits=point.fits,
            loss=point.loss,
            metric=point.metric,
            front=not beaten(point),
            chosen=point.choice == info.get("choice"),
        )
        for point in points
    )


def in_words(choice: Sequence[LayerChoice]) -> str:
    """What stays, for people."""
    return ", ".join(f"layer {n}: {c[0]} heads, {c[1]} columns" for n, c in enumerate(choice) if c)


def _wanted_ms(goal: Goal, timings: Timings) -> float | None:
    """The p50 that the goal asks for; None where it has no limit on speed."""
    wanted = []
    if goal.speedup is not None:
        wanted.append(timings.reference_ms / goal.speedup)
    if goal.p50_ms is not None:
        wanted.append(goal.p50_ms)
    if goal.p99_ms is not None:
        wanted.append(goal.p99_ms / timings.tail)
    return min(wanted, default=None)


def _smallest(options: Sequence[Options]) -> list[LayerChoice]:
    """One layer at its quickest level: the one whose parts lose least."""
    quickest = [min(layer.last, key=lambda each: each.ms) for layer in options]
    chosen = min(range(len(options)), key=lambda number: quickest[number].error)
    return [quickest[number].choice if number == chosen else None for number in range(len(options))]
