"""The clock of pruning: candidates built as the recipe would ship them, and what their parts cost on this machine."""

from __future__ import annotations

__all__ = [
    "COLUMNS_MULTIPLE",
    "Bench",
    "levels_of",
    "measure_table",
    "quiet_ms",
    "read_note",
    "save_model",
    "table_from_times",
]

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.artifacts.atomic import write_atomic
from deploykit.compress.search import LatencyTable
from deploykit.events import Listener, Progress
from deploykit.latency.measure import Samples, measure
from deploykit.recipe import Quantize
from deploykit.runners import Target
from deploykit.tasks import Task
from deploykit.tasks.pruned import LayerPlan, PruningPlan, cut, encoder_layers, heads_fixed
from deploykit.tasks.quiet import quiet_transformers

COLUMNS_MULTIPLE = 32
"""FFN columns stay in multiples of this, which integer kernels compute in."""
_TIMED_HEADS = (1.0, 1 / 2, 1 / 6)
_TIMED_COLUMNS = (1.0, 1 / 2, 1 / 4, 1 / 16)
"""Levels that are timed, as shares of the unpruned layer; between them time is a straight line."""
_BLOCKS = 8


@dataclass(frozen=True)
class Bench:
    """How a candidate is built and timed: as the recipe's export and quantize stages would.

    Attributes:
        task: what the model does.
        quantize: the recipe's section.
        target: the Triton release to export for.
        threads: of a session.
        messages: that are timed.
        calibration: that static scales are taken from.
        folder: scratch space that outlives an interruption.
        seed: of the search.
        listener: hears of progress.
    """

    task: Task
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
        from deploykit.export.to_onnx import export_onnx

        exported, out = self.folder / f"{name}-onnx", self.folder / f"{name}-shipped"
        if not (out / "model.onnx").is_file():
            export_onnx(checkpoint, exported, self.task, target=self.target, messages=self.messages[:8])
            if self.quantize.scheme == "none":
                shutil.copytree(exported, out, dirs_exist_ok=True)
            else:
                variants = scheme_variants(self.quantize.scheme, self.quantize.fusions)
                variant = next((each for each in variants if each.scheme == "int8_static"), variants[0])
                scratch = self.folder / f"{name}-quantizing"
                quantize(exported, scratch, variant, calibration=self.calibration)
                scratch.rename(out)
            shutil.rmtree(exported, ignore_errors=True)
        return Target("onnxruntime", str(out), threads=self.threads, task=self.task.name)

    def time(self, targets: Mapping[str, Target]) -> dict[str, Samples]:
        """Time targets in turn, each in its own process."""
        return measure(targets, self.messages, blocks=_BLOCKS)


def measure_table(bench: Bench, model: Any, teacher: Path, whole: Mapping[str, Target]) -> LatencyTable:
    """Time the parts, in models of one and two layers that have the final graph and precision.

    Args:
        bench: builds and times them, and keeps what was found.
        model: the unpruned model.
        teacher: its checkpoint folder.
        whole: `reference`, the model in PyTorch, and `full`, as it would ship unpruned.
    """
    layers = encoder_layers(model)
    full, count = layers[0].shape, len(layers)
    kept = read_note(bench.folder / "table.json")
    if kept is None:
        heads, columns = full
        depth = min(count, 2)
        shapes = {"one": [full], "deep": [full] * depth}
        for level in levels_of(heads, _TIMED_HEADS, 1) if not heads_fixed(model) else []:
            if level != heads:
                shapes[f"heads {level}"] = [(level, columns)] * depth
        for level in levels_of(columns, _TIMED_COLUMNS, COLUMNS_MULTIPLE):
            if level != columns:
                shapes[f"columns {level}"] = [(heads, level)] * depth
        targets = dict(whole)
        for number, (name, shape) in enumerate(shapes.items()):
            bench.listener(Progress("prune", number, len(shapes), "timed shape"))
            folder = bench.folder / f"shape-{name.replace(' ', '-')}"
            if not (folder / "config.json").is_file():
                _save_shape(model, teacher, shape, folder)
            targets[name] = bench.build(folder, folder.name)
        p50 = {name: quiet_ms(samples) for name, samples in bench.time(targets).items()}
        bench.listener(Progress("prune", len(shapes), len(shapes), "timed shape"))
        kept = {"p50": p50}
        write_atomic(bench.folder / "table.json", json.dumps(kept).encode())
    return table_from_times(kept["p50"], full, count)


def table_from_times(p50: Mapping[str, float], full: tuple[int, int], count: int) -> LatencyTable:
    """The table from medians: `reference`, `full`, `one` layer, `deep` (two layers), and that deep at each level.

    Saved times are differences to the full layers. What the columns save is extended to a layer without any, which
    gives the FFN's share; attention has the rest.

    Args:
        p50: milliseconds by shape: the names above, `heads N` and `columns N`.
        full: heads and columns of an unpruned layer.
        count: layers of the unpruned model.
    """
    heads, columns = full
    depth = min(count, 2)
    # Whole and one-layer models, so that a tenth of a millisecond of noise is divided by the layers between them.
    layer = max((p50["full"] - p50["one"]) / (count - 1) if count > 1 else p50["one"] / 2, 1e-3)

    def saved(kind: str) -> dict[int, float]:
        found = {name.split()[1]: ms for name, ms in p50.items() if name.startswith(f"{kind} ")}
        return {int(level): (p50["deep"] - ms) / depth for level, ms in found.items()}

    saved_heads, saved_columns = saved("heads"), saved("columns")
    ffn = 0.6 * layer
    if saved_columns:
        smallest = min(saved_columns)
        ffn = min(max(saved_columns[smallest] * columns / (columns - smallest), 0.2 * layer), 0.9 * layer)
    attention = layer - ffn
    columns_ms = {columns: ffn} | {level: ffn - saved for level, saved in saved_columns.items()}
    heads_ms = {heads: attention} | {level: attention - saved for level, saved in saved_heads.items()}
    return LatencyTable(
        fixed_ms=max(p50["one"] - layer, 0.0),
        heads_ms=_rising(heads_ms),
        columns_ms=_rising(columns_ms),
        reference_ms=p50["reference"],
    )


def quiet_ms(samples: Samples) -> float:
    """The median of the quietest block: differences of a tenth of a millisecond drown in the others."""
    return samples.p50_range_ms[0]


def _rising(times: Mapping[int, float]) -> dict[int, float]:
    """Noise taken out as far as it contradicts itself: more never costs less, and nothing costs less than nothing."""
    least = 0.0
    rising = {}
    for level in sorted(times):
        least = rising[level] = max(least, times[level])
    return rising


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
    return sorted(
        {max(multiple if full >= multiple else 1, round(full * share / multiple) * multiple) for share in shares}
    )


def read_note(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
