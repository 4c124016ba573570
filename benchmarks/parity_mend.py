"""Mending: a fine-tuned model with one layer that int8 can't hold, made by scaling, and what its repair costs.

    python benchmarks/parity_mend.py CHECKPOINT --data train.csv --test test.csv

In one layer, one channel of the attention's values and one of the FFN's are multiplied, and the columns that read them
divided: outliers that take all steps of an int8 scale. The model is exported, quantized with and without mending on a
part of `--data`, and what ships is judged on `--test`, once, against the scaled model in PyTorch.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from machine_facts import finish

from deploykit.cli.render import Screen
from deploykit.data.dataset import LabelledData, hold_out
from deploykit.data.readers import read_rows
from deploykit.data.table import Columns
from deploykit.export.to_onnx import export_onnx
from deploykit.latency.measure import measure, spread_over
from deploykit.pipeline.choice import choose_variant
from deploykit.pipeline.comparison import compare_models
from deploykit.pipeline.localization import locate
from deploykit.recipe import Quantize
from deploykit.runners import Target
from deploykit.runners.labels import labels_from_folder
from deploykit.tasks import find_task
from deploykit.tasks.pruned import encoder_layers

TASK = find_task("text-classification")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    parser.add_argument("--rows", type=int, default=2000, help="of --data; half calibrate, half choose")
    parser.add_argument("--calibration", type=int, default=64, help="rows that the static scales come from")
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--factor", type=float, default=3e4)
    parser.add_argument("--scheme", default="int8_static")
    parser.add_argument("--fusions", default="all")
    parser.add_argument("--messages", type=int, default=400)
    parser.add_argument("--max-drop", type=float, default=0.01)
    parser.add_argument("--test-rows", type=int, default=None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()

    labels = tuple(labels_from_folder(options.checkpoint))
    columns = Columns(options.text, options.label)
    table, test = read_rows(options.data, columns), read_rows(options.test, columns)
    table = table.take(range(0, len(table), max(1, len(table) // options.rows)))
    test = test.take(range(0, len(test), max(1, len(test) // (options.test_rows or len(test)))))
    calibration, validation = hold_out(table, 0.5, 0, "validation")
    data = LabelledData(calibration, validation, validation, labels)
    common: dict[str, Any] = {"scheme": options.scheme, "fusions": options.fusions}
    common["calibration_rows"] = options.calibration
    with tempfile.TemporaryDirectory() as scratch, Screen() as screen:
        folder = Path(scratch)
        scale_channels(options.checkpoint, folder / "hurt", options.layer, options.factor)
        found: dict[str, dict[str, Any]] = {}
        export_onnx(folder / "hurt", folder / "hurt-onnx", TASK, listener=screen)
        for name, mend in (("hurt-int8", False), ("mended-int8", True)):
            (folder / name).mkdir()
            found[name] = {}
            settings = Quantize(mend=mend, **common)
            choose_variant(
                folder / "hurt-onnx", folder / name, settings, TASK, data,
                max_drop=options.max_drop, seed=0, info=found[name], listener=screen,
            )  # fmt: skip
        reference = Target("torch", str(folder / "hurt"))
        reports = {
            name: compare_models(
                reference, Target("onnxruntime", str(folder / name)), list(test.texts), test.labels, TASK,
                labels=labels, max_drop=options.max_drop, listener=screen,
            )
            for name in ("hurt-int8", "mended-int8")
        }  # fmt: skip
        failing = [sample.index for sample in reports["hurt-int8"].changed]
        where = locate(
            Target("torch", str(folder / "hurt")), Target("onnxruntime", str(folder / "hurt-int8")), test.texts, TASK,
            failing=failing,
        )  # fmt: skip
        targets = {
            name: Target("onnxruntime", str(folder / name)) for name in ("hurt-onnx", "hurt-int8", "mended-int8")
        }
        timed = measure(targets, spread_over(test.texts, options.messages), blocks=8, listener=screen)
    p50_ms = {name: samples.p50_ms for name, samples in timed.items()}
    figures = {
        "layer": options.layer,
        "factor": options.factor,
        "located": [finding.model_dump() for finding in where.findings],
        "validation_rows": len(validation),
        "test_rows": len(test),
        "drop_on_validation": {name: info["candidates"][info["variant"]]["drop"] for name, info in found.items()},
        "mended": found["mended-int8"]["mended"],
        "accuracy": {"reference": reports["hurt-int8"].reference}
        | {name: report.candidate for name, report in reports.items()},
        "verdict": {name: report.verdict for name, report in reports.items()},
        "drop_upper": {name: report.drop_upper for name, report in reports.items()},
        "p50_ms": p50_ms,
        "speedup_over_float32": {name: p50_ms["hurt-onnx"] / p50_ms[name] for name in ("hurt-int8", "mended-int8")},
        "speedup_kept": p50_ms["hurt-int8"] / p50_ms["mended-int8"],
    }
    finish("parity_mend", figures, as_json=options.json, save=options.save)


def scale_channels(checkpoint: Path, out: Path, layer: int, factor: float) -> None:
    """Write a checkpoint with outliers in what enters the attention's and the FFN's output product of one layer.

    In float the attention stays what it was; of the FFN one GELU comes nearer to a ReLU.
    """
    import shutil

    import torch

    shutil.copytree(checkpoint, out, ignore=shutil.ignore_patterns("*.safetensors", "manifest.json"))
    model = TASK.load_model(checkpoint)
    shape = encoder_layers(model)[layer]
    pairs = ((shape.inputs[2], shape.output), (shape.widen, shape.narrow))
    with torch.no_grad():
        for scaled, reader in pairs:
            linear = shape.linear(scaled)
            linear.weight[3] *= factor
            linear.bias[3] *= factor
            shape.linear(reader).weight[:, 3] /= factor
    model.save_pretrained(out)


if __name__ == "__main__":
    main()
