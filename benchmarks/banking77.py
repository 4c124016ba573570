"""BANKING77 from the CSV files to the served model: accuracy, parity, latency beside the peers, in one run.

    python benchmarks/banking77.py --train train.csv --test test.csv

Peers in the same alternating blocks: PyTorch eager, the exporter's own float32 graph, and that graph quantized by
onnxruntime's `quantize_dynamic` as it comes (what optimum and Olive do for it).
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from machine_facts import finish
from peers import as_exported, as_onnxruntime_quantizes, latency_rows, recipe_options

from deploykit.cli.render import Screen
from deploykit.data.readers import read_rows
from deploykit.data.table import Columns
from deploykit.latency.measure import Samples, measure, spread_over
from deploykit.parity.report import ParityReport
from deploykit.pipeline.plan import make_plan
from deploykit.pipeline.run import run_recipe
from deploykit.recipe import load_recipe
from deploykit.runners import Target
from deploykit.triton.engines import open_server


def main() -> None:
    parser = recipe_options(__doc__)
    options = parser.parse_args()

    overrides = [f"data.train={options.train}", f"data.test={options.test}"]
    overrides += [f"data.text={options.text}", f"data.label={options.label}"]
    recipe = load_recipe(options.recipe, overrides)
    with Screen() as screen:
        began = time.monotonic()
        result = run_recipe(recipe, workspace=options.workspace, repository=options.repository, listener=screen)
        took_s = time.monotonic() - began
        assert result is not None
        parity = ParityReport.model_validate_json(Path(result.parity).read_text(encoding="utf-8"))
        plan = make_plan(recipe, Path())
        folders = {
            step.stage: options.workspace / "store" / step.stage / step.key[:16] for step in plan.steps if step.key
        }
        info = json.loads((folders["parity"] / "manifest.json").read_text(encoding="utf-8"))["info"]
        training = json.loads((folders["finetune"] / "manifest.json").read_text(encoding="utf-8"))
        texts = read_rows(options.test, Columns(options.text, None)).texts
        messages = spread_over(texts, options.messages)
        with tempfile.TemporaryDirectory() as scratch:
            plain = as_exported(folders["export"], Path(scratch) / "plain")
            peer = as_onnxruntime_quantizes(folders["export"], Path(scratch) / "peer")
            with open_server("embedded", folders["package"], None) as server:
                targets = {
                    "PyTorch eager fp32": Target("torch", str(folders["finetune"]), device="cpu"),
                    "ONNX fp32 as exported": Target("onnxruntime", str(plain)),
                    "ONNX fp32 deploykit": Target("onnxruntime", str(folders["export"])),
                    "int8 as onnxruntime quantizes it": Target("onnxruntime", str(peer)),
                    "int8 deploykit": Target("onnxruntime", str(folders["quantize"])),
                    "served gRPC": Target("triton", f"{server.urls.grpc}/{recipe.name}"),
                    "served HTTP": Target("triton", f"{server.urls.http}/{recipe.name}"),
                }
                timed = measure(targets, messages, blocks=options.blocks, listener=screen)
    finish(
        "banking77", _figures(result, parity, info, training, timed, took_s), as_json=options.json, save=options.save
    )


def _figures(
    result: Any, parity: ParityReport, info: Any, training: Any, timed: dict[str, Samples], took_s: float
) -> dict[str, Any]:
    base, ours, served = (timed[name].p50_ms for name in ("PyTorch eager fp32", "int8 deploykit", "served gRPC"))
    return {
        "seconds_in_all": round(took_s, 1),
        "training_s": training["seconds"],
        "training_resumed_from_step": training["info"]["resumed_from"],
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "verdict": result.verdict,
        "n": parity.n,
        "accuracy_pytorch": parity.reference,
        "accuracy_shipped": parity.candidate,
        "drop": parity.drop,
        "drop_upper_95": parity.drop_upper,
        "discordant": parity.discordant,
        "flips": parity.flips,
        "flips_upper_95": parity.flips_upper,
        "scheme": result.scheme,
        "checks": {
            check.check: [check.outcome, check.figure, check.bound, check.limit, check.n] for check in parity.checks
        },
        "flips_under_load": info.get("flips_under_load"),
        "size_mb": {"pytorch": result.reference.size_mb, "shipped": result.shipped.size_mb},
        "timed_messages": timed["int8 deploykit"].n,
        "stolen_cpu": timed["int8 deploykit"].stolen,
        "latency": latency_rows(timed, "PyTorch eager fp32"),
        "speedup_int8": base / ours,
        "served_beyond_in_process_ms": served - ours,
    }


if __name__ == "__main__":
    main()
