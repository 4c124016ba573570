"""Every way to quantize one model: accuracy with its interval, p50 in alternating processes, size.

    python benchmarks/schemes.py CHECKPOINT --data train.csv --test test.csv

The model is exported once. Static scales are calibrated on rows of `--data`; `--test` is asked once for each form.
Times are from text to answer, one message at a time, each form in its own process, in alternating blocks.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from machine_facts import finish

from deploykit.cli.render import Screen
from deploykit.compress.quantize import INT8_VARIANTS, Variant, quantize
from deploykit.data.readers import read_rows
from deploykit.data.table import Columns
from deploykit.export.to_onnx import export_onnx
from deploykit.latency.measure import measure, spread_over
from deploykit.pipeline.choice import sampled
from deploykit.pipeline.comparison import compare_models
from deploykit.pipeline.measuring import OutputCache
from deploykit.runners import Target
from deploykit.runners.labels import labels_from_folder
from deploykit.tasks import find_task

FLOAT, PYTORCH = "float32", "PyTorch float32"
VARIANTS = (
    *INT8_VARIANTS,
    Variant("int8_static", "fused", smooth=True),
    Variant("int8_static", "split", smooth=True),
    Variant("int8_weights"),
    Variant("int4_weights"),
    Variant("fp16"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a fine-tuned checkpoint folder")
    parser.add_argument("--data", required=True, help="rows to calibrate on")
    parser.add_argument("--test", required=True, help="rows to judge on")
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    parser.add_argument("--task", default="text-classification")
    parser.add_argument("--calibration", type=int, default=512, help="rows of --data")
    parser.add_argument("--test-rows", type=int, default=None, help="of --test, evenly spread; all unless told")
    parser.add_argument("--messages", type=int, default=400, help="timed for each form")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--max-drop", type=float, default=0.01)
    parser.add_argument("--name", default="schemes", help="of the result")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results/")
    options = parser.parse_args()

    task = find_task(options.task)
    columns = Columns(options.text, task.label_form(options.label))
    test = read_rows(options.test, columns)
    test = test.take(range(0, len(test), max(1, len(test) // (options.test_rows or len(test)))))
    calibration = sampled(read_rows(options.data, Columns(options.text, None)).texts, options.calibration, 0)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch, Screen() as screen:
        export = Path(scratch) / "export"
        export_onnx(options.checkpoint, export, task, listener=screen)
        targets = {
            PYTORCH: Target("torch", str(options.checkpoint), device="cpu", task=task.name),
            FLOAT: Target("onnxruntime", str(export), threads=options.threads, task=task.name),
        }
        for variant in VARIANTS:
            out = Path(scratch) / variant.name
            report = quantize(export, out, variant, calibration=calibration, listener=screen)
            found[variant.name] = {"smoothed_products": report.smoothed, "products": dict(report.products)}
            targets[variant.name] = Target("onnxruntime", str(out), threads=options.threads, task=task.name)
        for name, target in targets.items():
            if name == PYTORCH:
                continue
            parity = compare_models(
                targets[PYTORCH], target, list(test.texts), test.labels, task,
                labels=labels_from_folder(options.checkpoint), max_drop=options.max_drop,
                cache=OutputCache(Path(scratch) / "outputs"), listener=screen,
            )  # fmt: skip
            size = (Path(target.location) / "model.onnx").stat().st_size / 1e6
            found.setdefault(name, {}).update(
                accuracy=parity.candidate, drop=parity.drop, drop_upper_95=parity.drop_upper,
                interval_95=parity.interval, flips=parity.flips, verdict=parity.verdict, onnx_mb=round(size, 1),
            )  # fmt: skip
            found.setdefault(PYTORCH, {})["accuracy"] = parity.reference
        timed = measure(targets, spread_over(test.texts, options.messages), blocks=options.blocks, listener=screen)
    base = timed[PYTORCH].p50_ms
    for name, samples in timed.items():
        found[name] |= {
            "p50_ms": round(samples.p50_ms, 3),
            "block_medians_ms": [round(value, 3) for value in samples.p50_range_ms],
            "speedup_over_pytorch": round(base / samples.p50_ms, 2),
        }
    figures = {"n": len(test), "timed_messages": timed[FLOAT].n, "stolen_cpu": timed[FLOAT].stolen, "forms": found}
    finish(options.name, figures, as_json=options.json, save=options.save)


if __name__ == "__main__":
    main()
