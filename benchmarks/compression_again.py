"""Checkpoints that are there, through export, quantization, parity and the clock again, beside the peers, in one run.

    python benchmarks/compression_again.py FINETUNED PRUNED [PRUNED...] --train train.csv --test test.csv

What a later version makes of the models that `compression.py` has trained, in minutes and without training. The first
folder is the unpruned model: it is the reference of all, and is quantized too. Every int8 form is chosen on half of the
training rows and calibrated on the other; the test rows certify its accuracy, against PyTorch.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from machine_facts import finish
from peers import EAGER, OPENVINO, ORT_INT8, latency_rows, rival_targets, unpruned_targets

from deploykit.cli.render import Screen
from deploykit.data.readers import read_rows
from deploykit.data.table import Columns
from deploykit.export.to_onnx import export_onnx
from deploykit.latency.measure import measure, spread_over
from deploykit.pipeline.alone import parity_alone, quantize_alone
from deploykit.recipe import Quantize
from deploykit.report.result import model_size_mb
from deploykit.runners import Target
from deploykit.tasks import find_task

TASK = "text-classification"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("finetuned", type=Path, help="the unpruned checkpoint")
    parser.add_argument("pruned", type=Path, nargs="+", help="checkpoints pruned and recovered from it")
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="category")
    parser.add_argument("--max-drop", type=float, default=0.01)
    parser.add_argument("--messages", type=int, default=600, help="timed for each form")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--rivals", type=Path, metavar="PYTHON", help="of an environment with openvino and nncf")
    parser.add_argument("--work", type=Path, help="keeps the graphs, so that an interrupted run goes on")
    parser.add_argument("--name", default="compression_again", help="of the result")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results/")
    options = parser.parse_args()

    names = ["unpruned", *(f"pruned {number}" for number in range(1, len(options.pruned) + 1))]
    checkpoints = dict(zip(names, (options.finetuned, *options.pruned), strict=True))
    texts = read_rows(options.test, Columns(options.text, None)).texts
    accuracy: dict[str, Any] = {}
    with Screen() as screen, tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        forms = {name: work / name.replace(" ", "-") for name in names}
        for name, checkpoint in checkpoints.items():
            if not (forms[name] / "int8").is_dir():
                export_onnx(checkpoint, forms[name] / "float", find_task(TASK), listener=screen)
                quantize_alone(
                    forms[name] / "float", forms[name] / "int8", Quantize(),
                    data=options.train, columns=(options.text, options.label), max_drop=options.max_drop,
                    task=TASK, seed=0, listener=screen,
                )  # fmt: skip
            report = parity_alone(
                str(options.finetuned), str(forms[name] / "int8"),
                data=options.test, columns=(options.text, options.label), max_drop=options.max_drop, max_flips=None,
                tolerance=None, confidence=0.95, tokenizer=None, task=TASK, cache=work / "outputs", listener=screen,
            )  # fmt: skip
            accuracy[name] = {
                "accuracy": report.candidate,
                "accuracy_unpruned_pytorch": report.reference,
                "drop": report.drop,
                "drop_upper_95": report.drop_upper,
                "discordant": report.discordant,
                "n": report.n,
                "verdict": report.verdict,
                "size_mb": model_size_mb(forms[name] / "int8"),
            }
        commands: dict[str, list[str]] = {}
        targets = unpruned_targets(options.finetuned, forms["unpruned"] / "float", Path(scratch))
        targets |= {f"int8 deploykit, {name}": Target("onnxruntime", str(forms[name] / "int8")) for name in names}
        if options.rivals:
            train = read_rows(options.train, Columns(options.text, None)).texts
            targets |= rival_targets(
                options.finetuned, forms["unpruned"] / "float", Path(scratch), train, options.rivals, commands
            )
        timed = measure(
            targets, spread_over(texts, options.messages), blocks=options.blocks, commands=commands, listener=screen
        )
    ours = {name: timed[f"int8 deploykit, {name}"].p50_ms for name in names}
    figures: dict[str, Any] = {
        "accuracy": accuracy,
        "timed_messages": timed[EAGER].n,
        "stolen_cpu": timed[EAGER].stolen,
        "latency": latency_rows(timed, EAGER),
        "over_onnxruntimes_int8": {name: timed[ORT_INT8].p50_ms / ms for name, ms in ours.items()},
    }
    if options.rivals:
        figures["over_openvinos_int8"] = {name: timed[OPENVINO].p50_ms / ms for name, ms in ours.items()}
    finish(options.name, figures, as_json=options.json, save=options.save)


if __name__ == "__main__":
    main()
