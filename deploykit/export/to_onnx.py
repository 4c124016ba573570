"""From a checkpoint folder to a verified ONNX folder: exported, fused, checked against PyTorch, preflighted."""

from __future__ import annotations

__all__ = ["ExportReport", "export_onnx"]

import collections
import contextlib
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import ExportError
from deploykit.events import Listener, Progress, Warn, ignore
from deploykit.export.compatibility import preflight
from deploykit.export.lean import make_lean
from deploykit.runners.onnx_runner import open_session
from deploykit.runners.tokenize import Encoder
from deploykit.runners.untrusted import check_checkpoint
from deploykit.tasks import Task

DEFAULT_OPSET = 18
"""The newest opset whose dynamo graph the fusions below know (opset 23 has no SkipLayerNormalization fusion)."""
TOLERANCE = 1e-4
"""Largest logit difference of a float32 graph from PyTorch; measured ones are below 1e-6."""
_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
_INPUTS = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class ExportReport:
    """What an export made.

    Attributes:
        opset: of the default domain.
        ir_version: of the file.
        fused: whether `model.onnx` is the fused graph, or the plain one because the fused one differed.
        operators: how many nodes of each kind `model.onnx` has.
        max_difference: largest absolute difference from PyTorch over the self-check, by graph.
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
    batches; a fused graph that differs is replaced by the plain one with a warning.

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
    import onnx
    import onnxscript
    import torch

    check_checkpoint(checkpoint)
    encoder = Encoder(checkpoint)
    model = task.load_model(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    out.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        if (checkpoint / name).is_file():
            shutil.copy2(checkpoint / name, out / name)
    listener(Progress("export", 0, 4, "graph"))
    with tempfile.TemporaryDirectory(dir=out) as scratch, _quiet():
        plain = _exported(model, task.output, opset or DEFAULT_OPSET)
        listener(Progress("export", 1, 4, "graph"))
        path = Path(scratch) / "exported.onnx"
        plain.save(path)
        fused = onnxscript.ir.load(path)
        from onnxscript.rewriter.ort_fusions import optimize_for_ort

        fused_ir = optimize_for_ort(fused)
        fused_ir = fused_ir[0] if isinstance(fused_ir, tuple) else fused_ir
        fused_proto = make_lean(onnxscript.ir.to_proto(fused_ir))
        plain_proto = onnx.load(path)
    del plain_proto.graph.value_info[:]
    for proto in (plain_proto, fused_proto):
        proto.producer_name, proto.doc_string = "deploykit", ""
        for node in proto.graph.node:
            del node.metadata_props[:]  # paths of the machine that exported it
    onnx.save(plain_proto, out / "plain.onnx")
    onnx.save(fused_proto, out / "model.onnx")
    listener(Progress("export", 2, 4, "graph"))
    batches = list(_check_batches(encoder, model.config.vocab_size, messages))
    differences = {
        name: _largest_difference(model, task.output, out / name, batches) for name in ("plain.onnx", "model.onnx")
    }
    listener(Progress("export", 3, 4, "graph"))
    if not differences["plain.onnx"] <= TOLERANCE:
        raise ExportError(
            f"the exported graph differs from PyTorch by {differences['plain.onnx']:.2g} (at most {TOLERANCE:g})",
            "try another export.opset; a model type that the exporter gets wrong can't be shipped",
        )
    good = differences["model.onnx"] <= TOLERANCE
    if not good:
        differs = f"the fused graph differs from PyTorch by {differences['model.onnx']:.2g}"
        listener(Warn(f"{differs}: the plain one is used instead"))
        shutil.copy2(out / "plain.onnx", out / "model.onnx")
    shipped = fused_proto if good else plain_proto
    preflight(out / "model.onnx", target)
    listener(Progress("export", 4, 4, "graph"))
    return ExportReport(
        opset=next(entry.version for entry in shipped.opset_import if entry.domain in ("", "ai.onnx")),
        ir_version=shipped.ir_version,
        fused=good,
        operators=dict(collections.Counter(node.op_type for node in shipped.graph.node)),
        max_difference={"plain": differences["plain.onnx"], "fused": differences["model.onnx"]},
        target=target,
    )


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
        raise ExportError(
            f"PyTorch could not export the model: {str(error).strip().splitlines()[0]}",
            "check that the model type is supported by torch.onnx.export(dynamo=True), or try another export.opset",
        ) from error


def _check_batches(
    encoder: Encoder, vocabulary: int, messages: Sequence[str]
) -> Iterator[dict[str, NDArray[np.int64]]]:
    """Batches that break wrong graphs: one token to full length, padded rows of mixed lengths, one row and many."""
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


def _largest_difference(model: Any, output: str, path: Path, batches: Sequence[Mapping[str, Any]]) -> float:
    """The largest absolute difference over all batches; infinite where one is not a number or the graph fails."""
    import torch

    session = open_session(path, device="cpu")
    largest = 0.0
    for batch in batches:
        feed = {name: batch[name] for name in _INPUTS}
        with torch.inference_mode():
            expected = model(**{name: torch.from_numpy(value) for name, value in feed.items()})[output].numpy()
        (found,) = session.run([output], feed)
        difference = float(np.max(np.abs(found - expected)))
        largest = max(largest, difference if np.isfinite(difference) else float("inf"))
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
