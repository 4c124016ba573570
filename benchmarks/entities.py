"""Entities from the CSV files to the served model: F1 with its interval, spans through Triton, latency, pruning.

    python benchmarks/entities.py                                      # the shipped messages
    python benchmarks/entities.py --train train.csv --test test.csv --text utterance \\
        --label entity_type --label start_offset --label end_offset    # files of your own
    python benchmarks/entities.py --speedup 10 --epochs 8              # pruned until it is ten times as fast

A label is one column (spans as JSON, or BIO tags), or three: a span's label, start and end.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import yaml
from machine_facts import finish

from deploykit.cli.render import Screen
from deploykit.parity.report import ParityReport
from deploykit.pipeline.run import run_recipe
from deploykit.recipe import load_recipe
from deploykit.report.result import RunResult

RECIPE = Path(__file__).parents[1] / "recipes" / "entities.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--train", default="sample:support/train")
    parser.add_argument("--test", default="sample:support/test")
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", action="append", help="the label's column, or three")
    parser.add_argument("--speedup", type=float, help="prune until the model is so many times as fast as PyTorch")
    parser.add_argument("--epochs", type=float, help="of the recovery from pruning")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another key of the recipe")
    parser.add_argument("--name", default="entities", help="what the result is kept as")
    parser.add_argument("--workspace", type=Path, default=Path(".deploykit"))
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results/")
    options = parser.parse_args()

    columns = options.label or ["entities"]
    settings = {"data.train": options.train, "data.test": options.test, "data.text": options.text}
    overrides = [f"{key}={value}" for key, value in settings.items()]
    overrides.append(f"data.label={yaml.safe_dump(columns, default_flow_style=True).strip()}")
    if options.speedup is not None:
        overrides.append(f"goal.speedup={options.speedup}")
    if options.epochs is not None:
        overrides.append(f"prune.epochs={options.epochs}")
    recipe = load_recipe(options.recipe, [*overrides, *options.set])
    with Screen() as screen:
        began = time.monotonic()
        result = run_recipe(recipe, workspace=options.workspace, repository=options.repository, listener=screen)
        took_s = time.monotonic() - began
    assert result is not None
    parity = ParityReport.model_validate_json(Path(result.parity).read_text(encoding="utf-8"))
    finish(options.name, _figures(result, parity, took_s), as_json=options.json, save=options.save)


def _figures(result: RunResult, parity: ParityReport, took_s: float) -> dict[str, Any]:
    shipped = result.shipped
    return {
        "seconds_in_all": round(took_s, 1),
        "verdict": result.verdict,
        "exit_code": result.exit_code,
        "n": parity.n,
        "metric": parity.metric,
        "pytorch": parity.reference,
        "shipped": parity.candidate,
        "shipped_interval_95": parity.interval,
        "drop": parity.drop,
        "drop_upper_95": parity.drop_upper,
        "messages_with_other_spans": parity.flips,
        "recall_by_class": {
            change.name: [change.n, change.reference_recall, change.candidate_recall] for change in parity.classes
        },
        "checks": {
            check.check: [check.outcome, check.figure, check.bound, check.limit, check.n] for check in parity.checks
        },
        "scheme": result.scheme,
        "kept": next((each.keeps for each in result.candidates if each.chosen), "all"),
        "size_mb": {"pytorch": result.reference.size_mb, "shipped": shipped.size_mb},
        "timed_messages": result.messages,
        "stolen_cpu": result.stolen,
        "p50_ms": {
            "pytorch": [result.reference.p50_ms, result.reference.p50_range_ms],
            "onnx_fp32": [result.onnx_fp32.p50_ms, result.onnx_fp32.p50_range_ms],
            "shipped": [shipped.p50_ms, shipped.p50_range_ms],
            "served": [shipped.served_p50_ms, None],
        },
        "speedup": shipped.speedup,
        "goal": [json.loads(goal.model_dump_json()) for goal in result.goal],
    }


if __name__ == "__main__":
    main()
