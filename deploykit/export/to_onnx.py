"""From a checkpoint folder to a verified ONNX folder: exported, fused, checked against PyTorch, preflighted."""

from __future__ import annotations

__all__ = ["ExportReport", "export_onnx"]

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
from deploykit.export.lean import FUSIONS, make_lean
from deploykit.export.modules import record_modules, values_from_scopes
from deploykit.export.smallest import smallest_set
from deploykit.runners.onnx_runner import open_session, session_errors
from deploykit.runners.padding import real_tokens
from deploykit.runners.tokenize import Encoder
from deploykit.runners.untrusted import check_checkpoint
from deploykit.tasks import Task

DEFAULT_OPSET = 18
"""The newest opset whose dynamo graph the fusions below know (opset 23 has no SkipLayerNormalization fusion)."""
TOLERANCE = 1e-4
"""Largest logit difference of a float32 graph from PyTorch; measured ones are below 1e-6."""
_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
_INPUTS = ("input_ids", "attention_mask")
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


def export_onnx(
    checkpoint: Path,
    out: Path,
    task: Task,
    *,
    target: str = "triton-25.08",
    opset: int | None = None,
    messages: Sequence[str] = (),
    listener: Listener = ignore,
) -> ExportReport:
    """Export a checkpoint folder as `out/model.onnx` (fused) and `out/plain.onnx`, tokenizer and config beside them.

    Both graphs have dynamic batch and length and are checked against PyTorch on padded, mixed-length, multi-row
    batches. A fused graph that differs does without the fusions at fault; where that does not help, or it can't be
    made, the plain one replaces it. Either is said in a warning.

    Args:
        checkpoint: a Hugging Face checkpoint folder.
        out: the folder to write; made if it is not there.
        task: what the model does.
        target: the Triton release it must load in.
        opset: of the default domain; 18 unless told.
        messages: real messages for the self-check, beside the made ones.
        listener: hears of progress.

    Raises:
        ExportError: the exporter failed, the graph differs from PyTorch, or is too new for the target.
    """
    import torch

    check_checkpoint(checkpoint)
    encoder = Encoder(checkpoint)
    model = task.load_model(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    out.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        if (checkpoint / name).is_file():
            shutil.copy2(checkpoint / name, out / name)
    with tempfile.TemporaryDirectory(dir=out) as scratch, _quiet():
        plain, fused = _graphs(model, task.output, opset or DEFAULT_OPSET, Path(scratch) / "exported.onnx", listener)
    batches = list(_check_batches(encoder, model.config.vocab_size, messages))
    onnx.save(plain, out / "plain.onnx")
    differences = {"plain": _largest_difference(model, task.output, out / "plain.onnx", batches)}
    if not differences["plain"] <= TOLERANCE:
        raise ExportError(
            f"the exported graph {_distance(differences['plain'])} (at most {TOLERANCE:g} is rounding)",
            "try another export.opset; a model type that the exporter gets wrong can't be shipped",
        )
    listener(Progress("export", 3, 4, "graph"))
    if fused is not None:
        differing = partial(_largest_difference, model, task.output, out / "model.onnx", batches)
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


def _graphs(
    model: Any, output: str, opset: int, path: Path, listener: Listener
) -> tuple[onnx.ModelProto, onnx.ModelProto | None]:
    """The graph as exported, and with its fusions; None for the latter where the fuser can't do it."""
    listener(Progress("export", 0, 4, "graph"))
    _exported(model, output, opset).save(path)
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


def _exported(model: Any, output: str, opset: int) -> Any:
    """The dynamo exporter's program; the TorchScript one is silently wrong on padded batches."""
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask)[output]
            return logits

    ids = torch.full((2, 9), 5, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    try:
        return torch.onnx.export(
            Logits(),
            (ids, mask),
            dynamo=True,
            opset_version=opset,
            input_names=list(_INPUTS),
            output_names=[output],
            dynamic_shapes=(axes, axes),
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


def _check_batches(
    encoder: Encoder, vocabulary: int, messages: Sequence[str]
) -> Iterator[dict[str, NDArray[np.int64]]]:
    """Batches that break wrong graphs: one token to full length, padded rows of mixed lengths, one row and many.

    The last has its padding at the left and in between: no tokenizer here makes that, but clients send tensors too.
    """
    if messages:
        yield encoder.encode(list(messages[:8]))
        yield encoder.encode([messages[0]])
    yield encoder.encode(["", "a", "hello there " * 40, "où est ma commande ? 📦", "שלום", "\t\n"])
    random = np.random.default_rng(0)
    longest = encoder.max_length
    for lengths in ([1], [1, 2, 3], [longest], [7, longest // 2, 1, 12, 5], [longest, 3]):
        ids = random.integers(0, vocabulary, (len(lengths), max(lengths)))
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
        yield {"input_ids": np.where(mask > 0, ids, encoder.pad_id), "attention_mask": mask}
    holes = np.ones((3, min(9, longest)), dtype=np.int64)
    holes[0, :3] = holes[1, 2:5] = 0
    yield {"input_ids": random.integers(0, vocabulary, holes.shape), "attention_mask": holes}


def _largest_difference(model: Any, output: str, path: Path, batches: Sequence[Mapping[str, Any]]) -> float:
    """The largest absolute difference over all batches; infinite where the graph fails or gives no numbers."""
    import torch

    largest = 0.0
    failures: tuple[type[Exception], ...] = (ModelError, *session_errors())
    try:
        session = open_session(path, device="cpu")
        for batch in batches:
            feed = {name: batch[name] for name in _INPUTS}
            with torch.inference_mode():
                expected = model(**{name: torch.tensor(value) for name, value in feed.items()})[output].numpy()
            (found,) = session.run([output], feed)
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
