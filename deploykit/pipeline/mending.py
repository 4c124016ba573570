"""Repairs a conversion that failed: made again from its reference, with the cheapest remedy that suffices."""

from __future__ import annotations

__all__ = ["Mended", "mend_if_failed"]

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deploykit.artifacts.atomic import new_folder
from deploykit.data.dataset import LabelledData, hold_out
from deploykit.data.readers import read_rows
from deploykit.data.table import Table
from deploykit.errors import UsageError
from deploykit.events import Listener, Note, ignore
from deploykit.latency.measure import measure, spread_over
from deploykit.parity.report import ParityReport
from deploykit.pipeline.choice import choose_variant
from deploykit.pipeline.pairs import architecture_of, labels_or_error, model_folder, pair_from_text
from deploykit.recipe import Quantize
from deploykit.runners import Target
from deploykit.runners.anatomy import Precision, anatomy_of
from deploykit.runners.medium import columns_of
from deploykit.tasks import Task, find_task

_TIMED = 120
_SCHEMES: Mapping[Precision, Literal["int8", "int4_weights", "fp16", "none"]] = {
    "int8": "int8", "int4": "int4_weights", "fp16": "fp16", "fp32": "none",
}  # fmt: skip


@dataclass(frozen=True)
class Mended:
    """A repair, and what was wrong before.

    Attributes:
        out: the folder of the repaired model.
        outcome: what it is, in words.
        info: what was tried, as `deploykit quantize --json` tells it.
        p50_ms: in process, of `candidate` as it was, `mended`, and `float32`, in alternating blocks.
        before: the report that failed.
    """

    out: Path
    outcome: str
    info: Mapping[str, Any]
    p50_ms: Mapping[str, float]
    before: ParityReport

    @property
    def speedup_kept(self) -> float:
        """The part of the candidate's speed-up over float32 that the repaired one has."""
        return self.p50_ms["candidate"] / self.p50_ms["mended"]

    def as_json(self) -> dict[str, Any]:
        """With stable names."""
        before = self.before.model_dump(mode="json", include={"verdict", "drop", "drop_upper", "flips"})
        return {
            "out": str(self.out),
            "outcome": self.outcome,
            "p50_ms": dict(self.p50_ms),
            "speedup_kept": self.speedup_kept,
            "before": before,
            "quantize": dict(self.info),
        }


def mend_if_failed(
    reference: str,
    candidate: str,
    out: Path,
    prove: Callable[[str], ParityReport],
    *,
    data: str,
    mend_data: str,
    columns: tuple[str, str | tuple[str, ...]],
    task: str,
    tokenizer: Path | None = None,
    max_drop: float,
    seed: int = 0,
    listener: Listener = ignore,
) -> tuple[ParityReport, Mended | None]:
    """Prove a candidate; where it fails, make it again from its reference and prove that one.

    It is exported anew, fusions that change answers left out, and quantized to the precision that it had. An int8 model
    is mended as `deploykit run` mends one: smoothed scales, other fusions, the fewest products in float, the other
    scheme.

    Args:
        reference: a checkpoint, or a float32 ONNX folder.
        candidate: what is on trial: an ONNX folder or file.
        out: the folder to write where it fails; not there yet.
        prove: compares the reference with the candidate that it is given.
        data: a data reference to the messages that `prove` rests on.
        mend_data: a data reference to labelled rows that choose the repair; half of them calibrate.
        columns: of the message and the label.
        task: what both do.
        tokenizer: the tokenizer's folder of a bare .onnx file.
        max_drop: the drop of the metric that is too much.
        seed: of the split of the rows.
        listener: hears of progress.

    Returns:
        the report on what is to be used, and the repair where there was one.

    Raises:
        UsageError: the candidate can't be made from the reference, `out` is there, or both data are the same.
    """
    if mend_data == data or (Path(data).exists() and Path(mend_data).resolve() == Path(data).resolve()):
        raise UsageError(
            "--mend-data and --data are the same: what chooses a repair can't certify it",
            "give --mend-data other labelled rows, such as the validation split",
        )
    pair = pair_from_text(reference, candidate, task=task, tokenizer=tokenizer)
    precision = _precision(*pair)
    does = find_task(task)
    rows = read_rows(mend_data, columns_of(does, columns[0], does.label_form(columns[1])))
    before = prove(candidate)
    if before.verdict != "fail":
        listener(Note(f"nothing to mend: {before.statement}"))
        return before, None
    listener(Note(f"{before.statement}: {candidate} is made again from {reference}"))
    outcome, info, p50_ms = _made_again(pair, precision, rows, out, does, max_drop, seed, listener)
    return prove(str(out)), Mended(out, outcome, info, p50_ms, before)


def _precision(reference: Target, candidate: Target) -> Precision:
    """The precision in which a candidate can be made again from its reference.

    Raises:
        UsageError: it is no ONNX model in process, another model than the reference, or of a precision that is not
            made here.
    """
    if candidate.kind != "onnxruntime" or reference.kind == "triton":
        raise UsageError(
            "--mend makes an ONNX folder again from its checkpoint or float32 ONNX folder; a server's model stays",
            "name the ONNX folder that was packaged, mend it, and package it again",
        )
    shapes = architecture_of(reference), architecture_of(candidate)
    if None not in shapes and shapes[0] != shapes[1]:
        raise UsageError(
            f"{candidate.location} is another model than {reference.location}, and can't be made from it",
            "name the checkpoint that it was exported from as REFERENCE",
        )
    anatomies = anatomy_of(reference), anatomy_of(candidate)
    precision = None if anatomies[1] is None else anatomies[1].precision
    if reference.kind == "onnxruntime" and (anatomies[0] is None or anatomies[0].precision != "fp32"):
        raise UsageError(f"{reference.location} is not float32: nothing better can be made of it", "name a checkpoint")
    if precision is None or precision not in _SCHEMES:
        raise UsageError(f"a model in {precision or 'unknown precision'} can't be made again", "quantize it anew")
    return precision


def _made_again(
    pair: tuple[Target, Target],
    precision: Precision,
    rows: Table,
    out: Path,
    task: Task,
    max_drop: float,
    seed: int,
    listener: Listener,
) -> tuple[str, dict[str, Any], dict[str, float]]:
    """Write the folder `out`; what it is in words, what was tried, and how fast all three are."""
    from deploykit.export.to_onnx import export_onnx

    reference, candidate = pair
    calibration, validation = hold_out(rows, 0.5, seed, "validation")
    data = LabelledData(calibration, validation, validation, labels_or_error(reference, candidate, needed=True))
    info: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, new_folder(out) as folder:
        source = model_folder(reference)
        assert source is not None
        if reference.kind == "torch":
            source = Path(scratch) / "float32"
            export_onnx(Path(reference.location), source, task, messages=calibration.texts[:16], listener=listener)
        settings = Quantize(scheme=_SCHEMES[precision])
        outcome = choose_variant(
            source, folder, settings, task, data, max_drop=max_drop, seed=seed, info=info, listener=listener
        )
        targets = {
            "candidate": candidate,
            "mended": Target("onnxruntime", str(folder), task=task.name),
            "float32": Target("onnxruntime", str(source), task=task.name),
        }
        timed = measure(targets, spread_over(validation.texts, _TIMED), blocks=4, listener=listener)
    return outcome, info, {name: samples.p50_ms for name, samples in timed.items()}
