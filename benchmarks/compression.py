"""Pruning to a speed: what is left of accuracy, time and size, beside the unpruned model and its peers, in one run.

    python benchmarks/compression.py --train train.csv --test test.csv --speedup 20

The recipe runs twice, without and with the goal; both share data and fine-tuning. Then PyTorch eager, onnxruntime
float32, onnxruntime's own int8 of the unpruned model, deploykit's int8 of it and the pruned model are timed in
alternating blocks, each in its own process, from text to answer.
"""

from __future__ import annotations

import json
import resource
import tempfile
from pathlib import Path
from typing import Any

from machine_facts import finish
from peers import EAGER, OPENVINO, ORT_INT8, latency_rows, recipe_options, rival_targets, unpruned_targets

from deploykit.cli.render import Screen
from deploykit.data.readers import read_rows
from deploykit.data.table import Columns
from deploykit.latency.measure import measure, spread_over
from deploykit.parity.report import ParityReport
from deploykit.pipeline.plan import make_plan
from deploykit.pipeline.run import run_recipe
from deploykit.recipe import Recipe, load_recipe
from deploykit.runners import Target


def main() -> None:
    parser = recipe_options(__doc__)
    parser.add_argument("--speedup", type=float, default=20.0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another key of the recipe")
    parser.add_argument("--rivals", type=Path, metavar="PYTHON", help="of an environment with openvino and nncf")
    parser.add_argument("--name", default="compression", help="of the result")
    options = parser.parse_args()

    settings = [f"data.train={options.train}", f"data.test={options.test}"]
    settings += [f"data.text={options.text}", f"data.label={options.label}"]
    whole = load_recipe(options.recipe, settings)
    pruned = load_recipe(options.recipe, [*settings, f"goal.speedup={options.speedup}", *options.set])
    with Screen() as screen:
        where = {"workspace": options.workspace, "repository": options.repository, "listener": screen}
        run_recipe(whole, until="quantize", **where)
        result = run_recipe(pruned, **where)
        assert result is not None
        folders, small = _folders(whole, options.workspace), _folders(pruned, options.workspace)
        texts = read_rows(options.test, Columns(options.text, None)).texts
        with tempfile.TemporaryDirectory() as scratch:
            targets = unpruned_targets(folders["finetune"], folders["export"], Path(scratch))
            targets["int8 deploykit, unpruned"] = Target("onnxruntime", str(folders["quantize"]))
            targets["int8 deploykit, pruned"] = Target("onnxruntime", str(small["quantize"]))
            commands: dict[str, list[str]] = {}
            if options.rivals:
                train = read_rows(options.train, Columns(options.text, None)).texts
                targets |= rival_targets(
                    folders["finetune"], folders["export"], Path(scratch), train, options.rivals, commands
                )
            messages = spread_over(texts, options.messages)
            timed = measure(targets, messages, blocks=options.blocks, commands=commands, listener=screen)
    parity = ParityReport.model_validate_json(Path(result.parity).read_text(encoding="utf-8"))
    manifest = json.loads((small["prune"] / "manifest.json").read_text(encoding="utf-8"))
    ours = timed["int8 deploykit, pruned"]
    figures: dict[str, Any] = {
        "speedup_asked": options.speedup,
        "verdict": result.verdict,
        "goal": [check.model_dump() for check in result.goal],
        "exit_code": result.exit_code,
        "n": parity.n,
        "accuracy_unpruned_pytorch": parity.reference,
        "accuracy_shipped": parity.candidate,
        "drop": parity.drop,
        "drop_upper_95": parity.drop_upper,
        "discordant": parity.discordant,
        "kept": manifest["info"]["choice"],
        "vocabulary": manifest["info"].get("vocabulary"),
        "candidates": [candidate.model_dump() for candidate in result.candidates],
        "recovery": {
            name: manifest["info"].get("recovery", {}).get(name) for name in ("metrics", "steps", "device", "precision")
        },
        "predicted_and_measured_ms": [
            [point["predicted_ms"], point["measured_ms"]] for point in manifest["info"]["points"]
        ],
        "pruning_and_recovery_s": manifest["seconds"],
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "size_mb": {"pytorch": result.reference.size_mb, "shipped": result.shipped.size_mb},
        "served_p50_ms": result.shipped.served_p50_ms,
        "served_p99_ms": result.shipped.served_p99_ms,
        "served_speedup": result.shipped.served_speedup,
        "timed_messages": ours.n,
        "stolen_cpu": ours.stolen,
        "latency": latency_rows(timed, EAGER),
        "over_onnxruntimes_int8": timed[ORT_INT8].p50_ms / ours.p50_ms,
    }
    if options.rivals:
        figures["over_openvinos_int8"] = timed[OPENVINO].p50_ms / ours.p50_ms
    finish(options.name, figures, as_json=options.json, save=options.save)


def _folders(recipe: Recipe, workspace: Path) -> dict[str, Path]:
    steps = make_plan(recipe, Path()).steps
    return {step.stage: workspace / "store" / step.stage / step.key[:16] for step in steps if step.key}


if __name__ == "__main__":
    main()
