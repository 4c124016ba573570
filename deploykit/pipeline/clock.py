"""The clock of pruning: candidates built as the recipe would ship them, and what their parts cost on this machine."""

from __future__ import annotations

__all__ = [
    "COLUMNS_MULTIPLE",
    "Bench",
    "Timings",
    "levels_of",
    "read_note",
    "read_sizes",
    "save_model",
    "time_shapes",
]

import copy
import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.artifacts.atomic import write_atomic
from deploykit.compress.search import LatencyTable, LayerChoice, Sizes, fit_table, name_of
from deploykit.errors import ExportError
from deploykit.events import Listener, Note, Progress
from deploykit.latency.measure import Samples, measure
from deploykit.recipe import Quantize
from deploykit.report.result import model_size_mb
from deploykit.runners import Target
from deploykit.tasks import Task
from deploykit.tasks.pruned import LayerPlan, PruningPlan, cut, encoder_layers, head_size, heads_fixed
from deploykit.tasks.quiet import quiet_transformers

COLUMNS_MULTIPLE = 32
"""FFN columns stay in multiples of this, which integer kernels compute in."""
_TIMED_HEADS = (1.0, 1 / 2, 1 / 6)
_TIMED_COLUMNS = (1.0, 1 / 2, 1 / 4, 1 / 16)
"""Levels that are timed, as shares of the unpruned layer; between them time is a straight line."""
_PASSES = 8
"""How often each message is timed: differences of a tenth of a millisecond drown in fewer."""
_CHECKED_ON = 8
"""Messages that an exported graph is compared with PyTorch on, beside the made ones."""


@dataclass(frozen=True)
class Bench:
    """How a candidate is built and timed: as the recipe's export and quantize stages would.

    Attributes:
        task: what the model does.
        checkpoint: the whole model's folder.
        quantize: the recipe's section.
        target: the Triton release to export for.
        threads: of a session.
        messages: that are timed.
        calibration: that static scales are taken from; what they are does not matter to the clock.
        folder: scratch space that outlives an interruption.
        seed: of the search.
        listener: hears of progress.
    """

    task: Task
    checkpoint: Path
    quantize: Quantize
    target: str
    threads: int
    messages: Sequence[str]
    calibration: Sequence[str]
    folder: Path
    seed: int
    listener: Listener

    def build(self, checkpoint: Path, name: str) -> Target:
        """Export and quantize a checkpoint folder; the ONNX folder as a target."""
        from deploykit.compress.quantize import quantize, scheme_variants

        exported, out = self.folder / f"{name}-onnx", self.folder / f"{name}-shipped"
        if not (out / "model.onnx").is_file():
            self._export(checkpoint, exported)
            if self.quantize.scheme == "none":
                exported.rename(out)
            else:
                variants = scheme_variants(self.quantize.scheme, self.quantize.fusions)
                variant = next((each for each in variants if each.scheme == "int8_static"), variants[0])
                scratch = self.folder / f"{name}-quantizing"
                quantize(exported, scratch, variant, calibration=self.calibration)
                scratch.rename(out)
            shutil.rmtree(exported, ignore_errors=True)
        return Target("onnxruntime", str(out), threads=self.threads, task=self.task.name)

    def _export(self, checkpoint: Path, out: Path) -> None:
        """Export a model that was cut from the whole one: by cutting that one's graph, which is exported once."""
        from deploykit.export.to_onnx import WholeGraph, export_graph, export_onnx

        graph = self.folder / "whole.onnx"
        export = partial(
            export_onnx, checkpoint, out, self.task, target=self.target, messages=self.messages[:_CHECKED_ON]
        )
        try:
            if not graph.is_file():
                export_graph(self.checkpoint, graph, self.task)
            export(whole=WholeGraph(self.whole, graph))
        except ExportError as error:
            self.listener(Note(f"{error.message}: exported anew"))
            export()

    @cached_property
    def whole(self) -> Any:
        """The unpruned model."""
        return self.task.load_model(self.checkpoint).eval()

    def time(self, targets: Mapping[str, Target]) -> dict[str, Samples]:
        """Time targets in turn, each in its own process, on all messages in every block."""
        return measure(targets, [*self.messages] * _PASSES, blocks=_PASSES)


@dataclass(frozen=True)
class Timings:
    """What models took on this machine, in milliseconds.

    Attributes:
        reference_ms: the unpruned model in PyTorch.
        timed: what each model kept of its layers, and its time.
        heads: the levels of attention among them.
        columns: the levels of the FFN.
        tail: p99 over p50 of the small ones.
        whole: the whole model as it would ship, a yardstick for what is timed later.
        whole_ms: what it took then.
    """

    reference_ms: float
    timed: tuple[tuple[tuple[LayerChoice, ...], float], ...]
    heads: tuple[int, ...]
    columns: tuple[int, ...]
    tail: float
    whole: Target
    whole_ms: float

    def table(self) -> LatencyTable:
        """The table of the parts that explains them."""
        return fit_table(self.timed, self.heads, self.columns, self.reference_ms)

    def seen(self, choice: Sequence[LayerChoice], ms: float) -> Timings:
        """With an assembled model, which counts three times: it is where the search looks."""
        return replace(self, timed=(*self.timed, *[(tuple(choice), ms)] * 3))


def time_shapes(bench: Bench, model: Any, teacher: Path, reference: Target) -> Timings:
    """Time models of one and two layers, whole and cut, and of all, whole and narrow, in the final graph and precision.

    FFNs are cut but in the last layer, whose own works for fewer tokens where the head reads the first alone; that one
    is cut by itself.

    Args:
        bench: builds and times them, and keeps what was found.
        model: the unpruned model.
        teacher: its checkpoint folder.
        reference: the model in PyTorch.
    """
    layers = encoder_layers(model)
    (heads, columns), depth = layers[0].shape, min(len(layers), 2)
    head_levels = [heads] if heads_fixed(model) else levels_of(heads, _TIMED_HEADS, 1)
    column_levels = levels_of(columns, _TIMED_COLUMNS, COLUMNS_MULTIPLE)
    shapes = [[(heads, columns)] * count for count in sorted({1, depth, len(layers)})]
    shapes += [[(level, columns)] * depth for level in head_levels if level != heads]
    shapes += [
        [*[(heads, level)] * (count - 1), (heads, columns)]
        for level in column_levels
        for count in sorted({depth, len(layers)} if level == column_levels[-2:][0] else {depth})
        if level != columns and count > 1
    ]
    if column_levels[0] != columns:
        shapes.append([(heads, column_levels[0])])
    if len(layers) > depth and column_levels[0] != columns:  # what a narrow layer costs shows in many of them
        few = head_levels[len(head_levels) // 2]
        shapes.append([*[(few, column_levels[0])] * (len(layers) - 1), (few, columns)])
    kept = read_note(bench.folder / "times.json")
    if kept is None:
        targets = {"reference": reference}
        for number, shape in enumerate(shapes):
            bench.listener(Progress("prune", number, len(shapes), "timed shape"))
            targets[str(number)] = _built_shape(bench, model, teacher, shape)
        found = bench.time(targets)
        kept = {name: samples.p50_ms for name, samples in found.items()}
        tails = [found[name].p99_ms / found[name].p50_ms for name in targets if name != "reference"]
        kept |= {"tail": statistics.median(tails)} | _measured_sizes(shapes, targets, head_size(model), model.config)
        bench.listener(Progress("prune", len(shapes), len(shapes), "timed shape"))
        write_atomic(bench.folder / "times.json", json.dumps(kept).encode())
    timed = tuple((tuple(shape), float(kept[str(number)])) for number, shape in enumerate(shapes))
    whole = shapes.index([(heads, columns)] * len(layers))
    return Timings(
        reference_ms=float(kept["reference"]),
        timed=timed,
        heads=tuple(head_levels),
        columns=tuple(column_levels),
        tail=float(kept["tail"]),
        whole=_built_shape(bench, model, teacher, shapes[whole]),
        whole_ms=timed[whole][1],
    )


def _built_shape(bench: Bench, model: Any, teacher: Path, shape: Sequence[tuple[int, int]]) -> Target:
    """A model of this shape as it would ship, made once."""
    folder = bench.folder / f"shape-{name_of(shape)}"
    if not (folder / "config.json").is_file():
        _save_shape(model, teacher, shape, folder)
    return bench.build(folder, folder.name)


def read_sizes(bench: Bench) -> Sizes:
    """What the parts take on disk; `time_shapes` has measured it."""
    kept = read_note(bench.folder / "times.json") or {}
    return Sizes(*(float(kept[name]) for name in ("fixed_mb", "head_mb", "column_mb")))


def _measured_sizes(
    shapes: Sequence[Sequence[tuple[int, int]]], targets: Mapping[str, Target], head_size: int, config: Any
) -> dict[str, float]:
    """Megabytes of the parts: a straight line by the weights of the layers, with no model above it."""
    head, column = 4 * head_size * config.hidden_size, 2 * config.hidden_size
    weights = [sum(layer[0] * head + layer[1] * column for layer in shape) for shape in shapes]
    sizes = [model_size_mb(Path(targets[str(number)].location)) for number in range(len(shapes))]
    slope = np.polyfit(weights, sizes, 1)[0]
    fixed = max(size - slope * weight for weight, size in zip(weights, sizes, strict=True))
    return {"fixed_mb": float(fixed), "head_mb": float(slope * head), "column_mb": float(slope * column)}


def _save_shape(model: Any, teacher: Path, shape: Sequence[tuple[int, int]], out: Path) -> None:
    """A model of this shape; which heads and columns it has does not matter to the clock."""
    small = copy.deepcopy(model)
    cut(small, PruningPlan(tuple(LayerPlan(n, tuple(range(h)), tuple(range(c))) for n, (h, c) in enumerate(shape))))
    save_model(small, teacher, out, {})


def save_model(model: Any, teacher: Path, out: Path, beside: Mapping[str, Any]) -> None:
    """A checkpoint folder; config.json, whose presence says that it is complete, comes last."""
    scratch = out.with_name(f"{out.name}-saving")
    shutil.rmtree(scratch, ignore_errors=True)
    with quiet_transformers():
        model.save_pretrained(scratch)
    for path in teacher.iterdir():
        if path.is_file() and path.name not in ("config.json", "manifest.json") and path.suffix != ".safetensors":
            shutil.copy2(path, scratch / path.name)
    for name, value in beside.items():
        (scratch / name).write_text(json.dumps(value), encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    scratch.rename(out)


def levels_of(full: int, shares: Sequence[float], multiple: int) -> list[int]:
    """Shares of a full count, rounded to a multiple, none of them 0; ascending."""
    return sorted(
        {max(multiple if full >= multiple else 1, round(full * share / multiple) * multiple) for share in shares}
    )


def read_note(path: Path) -> dict[str, Any] | None:
    """What was noted there before; None where nothing was."""
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
