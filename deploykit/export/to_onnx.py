"""From a checkpoint folder to a verified ONNX folder: exported, fused, checked against PyTorch, preflighted."""

from __future__ import annotations

__all__ = ["ExportReport", "WholeGraph", "export_graph", "export_onnx"]

import collections
import contextlib
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from deploykit.errors import ExportError, ModelError
from deploykit.events import Listener, Progress, Warn, ignore
from deploykit.export.compatibility import preflight
from deploykit.export.derive import derive
from deploykit.export.lean import FUSIONS, make_lean
from deploykit.export.modules import record_modules, values_from_scopes
from deploykit.export.smallest import smallest_set
from deploykit.runners.base import COMPANIONS
from deploykit.runners.medium import medium_of
from deploykit.runners.onnx_runner import open_session, session_errors
from deploykit.runners.padding import real_tokens
from deploykit.runners.untrusted import check_checkpoint
from deploykit.tasks import Task
from deploykit.tasks.medium import Traced

DEFAULT_OPSET = 18
"""The newest opset whose dynamo graph the fusions below know (opset 23 has no SkipLayerNormalization fusion)."""
TOLERANCE = 1e-4
"""Largest logit difference of a float32 graph from PyTorch; measured ones are below 1e-6."""
_TRIALS = 8
"""Sets of fusions at most that are left out to find the one at fault."""
_REWRITE_ERRORS = (
    onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ModelError,
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError,
)  # fmt: skip
"""What a fuser raises on a graph that it does not understand."""


@dataclass(frozen=True)
class ExportReport:
    """What an export made.

    Attributes:
        opset: of the default domain.
        ir_version: of the file.
        fused: whether `model.onnx` is the fused graph, or the plain one because the fused one differed.
        operators: how many nodes of each kind `model.onnx` has.
        max_difference: largest absolute difference from PyTorch over the self-check, of the graph `plain` and, where
            it was made and ran, `fused`.
        target: the Triton release that it was preflighted for.
    """

    opset: int
    ir_version: int
    fused: bool
    operators: Mapping[str, int]
    max_difference: Mapping[str, float]
    target: str


@dataclass(frozen=True)
class WholeGraph:
    """A model with its graph as exported, from which the graphs of models that were cut from it are derived.

    Attributes:
        model: the whole model.
        path: of what `export_graph` wrote.
    """

    model: Any
    path: Path


def export_graph(checkpoint: Path, path: Path, task: Task, *, opset: int | None = None) -> None:
    """Write a checkpoint folder's graph as PyTorch's exporter gives it, with its notes of modules, fused by nobody.

    Raises:
        ExportError: the exporter failed.
    """
    import torch

    medium = medium_of(task)
    model = task.load_model(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    scratch = path.with_name(f"{path.name}.writing")
    traced = medium.traced(medium.whole(model, checkpoint), task.output)
    with _quiet():
        _exported(traced, task.output, opset or DEFAULT_OPSET).save(scratch)
    scratch.replace(path)


def export_onnx(
    checkpoint: Path,
    out: Path,
    task: Task,
    *,
    target: str = "triton-25.08",
    opset: int | None = None,
    messages: Sequence[str] = (),
    whole: WholeGraph | None = None,
    listener: Listener = ignore,
) -> ExportReport:
    """Export a checkpoint folder as `out/model.onnx` (fused) and `out/plain.onnx`, config and companions beside them.

    Both graphs have dynamic batch and length (or size) and are checked against PyTorch on batches that break wrong
    ones: of texts, padded, mixed-length, multi-row. A fused graph that differs does without the fusions at fault; where
    that does not help, or it can't be made, the plain one replaces it. Either is said in a warning.

    Args:
        checkpoint: a Hugging Face checkpoint folder.
        out: the folder to write; made if it is not there.
        task: what the model does.
        target: the Triton release it must load in.
        opset: of the default domain; 18 unless told.
        messages: real messages for the self-check, beside the made ones.
        whole: what the model was cut from: its graph is derived, and not exported anew.
        listener: hears of progress.

    Raises:
        ExportError: the exporter failed, the graph differs from PyTorch, or is too new for the target; or it can't be
            derived from the whole one's, or not fused then.
    """
    import torch

    medium = medium_of(task)
    check_checkpoint(checkpoint, beside=medium.beside)
    encoder = medium.encoder(checkpoint)
    model = task.load_model(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    model = medium.whole(model, checkpoint)
    out.mkdir(parents=True, exist_ok=True)
    for name in COMPANIONS:
        if (checkpoint / name).is_file():
            shutil.copy2(checkpoint / name, out / name)
    traced, opset = medium.traced(model, task.output), opset or DEFAULT_OPSET
    with tempfile.TemporaryDirectory(dir=out) as scratch, _quiet():
        path = Path(scratch) / "exported.onnx"
        listener(Progress("export", 0, 4, "graph"))
        if whole is None:
            _exported(traced, task.output, opset).save(path)
        else:
            onnx.save(derive(onnx.load(whole.path), whole.model, model), path)
        plain, fused = _graphs(path, opset, listener)
    if whole is not None and fused is None:
        raise ExportError("the graph that was derived from the whole model's can't be fused", "export the model itself")
    batches = medium.trials(encoder, model, messages)
    trials = [(batch, _answered(model, task.output, traced.names, batch)) for batch in batches]
    onnx.save(plain, out / "plain.onnx")
    differences = {"plain": _largest_difference(task.output, out / "plain.onnx", trials)}
    if not differences["plain"] <= TOLERANCE:
        raise ExportError(
            f"the exported graph {_distance(differences['plain'])} (at most {TOLERANCE:g} is rounding)",
            "try another export.opset; a model type that the exporter gets wrong can't be shipped",
        )
    listener(Progress("export", 3, 4, "graph"))
    if fused is not None:
        differing = partial(_largest_difference, task.output, out / "model.onnx", trials)
        fused, difference = _sound(fused, out / "model.onnx", differing, listener)
        if fused is not None:
            differences["fused"] = difference
    if fused is None:
        shutil.copy2(out / "plain.onnx", out / "model.onnx")
    compatibility = preflight(out / "model.onnx", target)
    if compatibility.warning:
        listener(Warn(compatibility.warning))
    listener(Progress("export", 4, 4, "graph"))
    shipped = fused or plain
    return ExportReport(
        opset=_opset_of(shipped),
        ir_version=shipped.ir_version,
        fused=fused is not None,
        operators=dict(collections.Counter(node.op_type for node in shipped.graph.node)),
        max_difference=differences,
        target=target,
    )


def _graphs(path: Path, opset: int, listener: Listener) -> tuple[onnx.ModelProto, onnx.ModelProto | None]:
    """The graph as exported, and with its fusions; None for the latter where the fuser can't do it."""
    listener(Progress("export", 1, 4, "graph"))
    plain = onnx.load(path)
    modules = values_from_scopes(plain, "model.")
    if _opset_of(plain) != opset:  # the exporter's version converter gives up in silence, with operators of both
        raise ExportError(
            f"PyTorch exported opset {_opset_of(plain)} where {opset} was asked for",
            "leave export.opset out, or try another",
        )
    fused = None
    failures: tuple[type[Exception], ...] = (*_REWRITE_ERRORS, *session_errors())
    try:
        fused = _fused(path)
        make_lean(fused)
    except failures as error:
        fused = None
        listener(Warn(f"the graph can't be fused ({type(error).__name__}: {error}): the plain one is used instead"))
    for graph in (plain, fused):
        if graph is not None:
            _make_anonymous(graph)
            record_modules(graph, modules)
    listener(Progress("export", 2, 4, "graph"))
    return plain, fused


def _exported(traced: Traced, output: str, opset: int) -> Any:
    """The dynamo exporter's program; the TorchScript one is silently wrong on padded batches."""
    import torch

    try:
        return torch.onnx.export(
            traced.module,
            traced.arguments,
            dynamo=True,
            opset_version=opset,
            input_names=list(traced.names),
            output_names=[output],
            dynamic_shapes=traced.dynamic_shapes,
            verbose=False,
        )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(
            f"PyTorch could not export the model: {reason}",
            "check that the model type is supported by torch.onnx.export(dynamo=True), or try another export.opset",
        ) from error


def _opset_of(model: onnx.ModelProto) -> int:
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _fused(path: Path) -> onnx.ModelProto:
    """The exported graph with onnxruntime's fusions."""
    import onnxscript
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    fused = optimize_for_ort(onnxscript.ir.load(path))
    graph: onnx.ModelProto = onnxscript.ir.to_proto(fused[0] if isinstance(fused, tuple) else fused)
    return graph


def _sound(
    fused: onnx.ModelProto, path: Path, differing: Callable[[], float], listener: Listener
) -> tuple[onnx.ModelProto | None, float]:
    """The fused graph made lean, written to `path`; without the fewest fusions that make it differ from PyTorch.

    None where it differs whatever is left out.
    """
    found: dict[tuple[str, ...], float] = {}

    def holds(without: tuple[str, ...]) -> bool:
        onnx.save(make_lean(fused, without), path)
        found[without] = differing()
        return found[without] <= TOLERANCE

    if holds(()):
        return make_lean(fused), found[()]
    fewest = smallest_set(FUSIONS, holds, budget=_TRIALS).items
    if not fewest:
        listener(Warn(f"the fused graph {_distance(found[()])}: the plain one is used instead"))
        return None, found[()]
    listener(Warn(f"the fused graph {_distance(found[()])} through {', '.join(fewest)}: left out"))
    sound = make_lean(fused, fewest)
    onnx.save(sound, path)
    return sound, found[fewest]


def _make_anonymous(model: onnx.ModelProto) -> None:
    """Leave out the paths of the machine that exported it, and shapes that contradict onnx's own inference."""
    del model.graph.value_info[:]
    model.producer_name, model.doc_string = "deploykit", ""
    for node in model.graph.node:
        del node.metadata_props[:]


def _distance(difference: float) -> str:
    if not np.isfinite(difference):
        return "fails in onnxruntime, or gives other shapes or no numbers"
    return f"differs from PyTorch by {difference:.2g}"


def _answered(model: Any, output: str, names: Sequence[str], batch: Mapping[str, Any]) -> NDArray[Any]:
    """What PyTorch answers."""
    import torch

    with torch.inference_mode():
        answer: NDArray[Any] = model(**{name: torch.tensor(batch[name]) for name in names})[output].numpy()
    return answer


def _largest_difference(output: str, path: Path, trials: Sequence[tuple[Mapping[str, Any], NDArray[Any]]]) -> float:
    """The largest absolute difference from PyTorch's answers to all batches; infinite where there are no numbers."""
    largest = 0.0
    failures: tuple[type[Exception], ...] = (ModelError, *session_errors())
    try:
        session = open_session(path, device="cpu")
        for batch, answer in trials:
            feed = {value.name: batch[value.name] for value in session.get_inputs()}
            (found,), expected = session.run([output], feed), answer
            if found.shape == expected.shape and found.ndim == 3:  # nobody reads what is given for padding
                found, expected = (real_tokens(values, feed["attention_mask"]) for values in (found, expected))
            difference = float(np.max(np.abs(found - expected))) if found.shape == expected.shape else float("inf")
            largest = max(largest, difference if np.isfinite(difference) else float("inf"))
    except failures:
        return float("inf")
    return largest


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' notes on missing extras and deprecations from the user's screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
