"""The whole parity check against one pass of PyTorch over the same messages, in alternation.

    python benchmarks/parity_speed.py --model CHECKPOINT --candidate ONNX_FOLDER --test test.csv --label category

A pass is PyTorch alone, in the same padded batches that the check uses. The check is everything: contract, numbers,
hard texts, invariance, behaviour, metric, its bounds; first with nothing cached, then with PyTorch's outputs kept.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from machine_facts import finish

from deploykit.data.readers import read_rows
from deploykit.data.table import Columns
from deploykit.pipeline.comparison import compare_models
from deploykit.pipeline.measuring import OutputCache, padded_batches, run_target
from deploykit.pipeline.pairs import labels_or_error, pair_from_text
from deploykit.tasks import find_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--candidate", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, help="only so many, to try the script")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    task = find_task("text-classification")
    reference, candidate = pair_from_text(arguments.model, arguments.candidate, task=task.name)
    labels = labels_or_error(reference, candidate, needed=True)
    table = read_rows(arguments.test, Columns(arguments.text, arguments.label))
    texts, right = list(table.texts)[: arguments.messages], list(table.labels or ())[: arguments.messages]
    seconds: dict[str, list[float]] = {"pytorch_pass": [], "check": [], "check_cached": []}
    verdicts = set()

    def timed(name: str, action: Any) -> Any:
        start = time.perf_counter()
        found = action()
        seconds[name].append(time.perf_counter() - start)
        return found

    run_target(reference, texts[:32], task, labels, padded_batches(texts[:32]))  # imports are no part of either
    for _ in range(arguments.rounds):
        timed("pytorch_pass", lambda: run_target(reference, texts, task, labels, padded_batches(texts)))
        with tempfile.TemporaryDirectory() as folder:
            cache = OutputCache(Path(folder))
            for name in ("check", "check_cached"):
                report = timed(
                    name,
                    lambda cache=cache: compare_models(
                        reference, candidate, texts, right, task, labels=labels, max_drop=0.01, cache=cache
                    ),
                )
                verdicts.add(report.statement)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    figures = {
        "messages": len(texts),
        "verdicts": sorted(verdicts),
        "seconds": seconds,
        "median_seconds": medians,
        "check_over_pass": medians["check"] / medians["pytorch_pass"],
        "cached_check_over_pass": medians["check_cached"] / medians["pytorch_pass"],
    }
    finish("parity_speed", figures, as_json=arguments.json, save=arguments.save)


if __name__ == "__main__":
    main()
