"""What onnxruntime's session options are worth for one model, one message at a time, in alternating blocks.

    python benchmarks/runtime_options.py --model PRUNED --model UNPRUNED --test test.csv

The models are ONNX folders. Every option changes one thing of what deploykit does: a thread on each core that spins
while it waits, sequential execution, prepacked weights, the graph optimized when it is loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnxruntime
from machine_facts import finish

from deploykit.data.readers import read_rows
from deploykit.data.table import Columns
from deploykit.latency.measure import measure, spread_over
from deploykit.machine import usable_cores
from deploykit.runners import Target
from deploykit.runners.tokenize import Encoder

AS_IS = "as deploykit runs it"
OPTIONS: dict[str, dict[str, Any]] = {
    AS_IS: {},
    "one thread": {"intra_op_num_threads": 1},
    "threads do not spin": {"session.intra_op.allow_spinning": "0"},
    "blocks of work shrink (dynamic_block_base 4)": {"session.dynamic_block_base": "4"},
    "weights not prepacked": {"session.disable_prepacking": "1"},
    "parallel execution": {"execution_mode": onnxruntime.ExecutionMode.ORT_PARALLEL},
    "graph not optimized when loaded": {"graph_optimization_level": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL},
    "saved in optimized form": {"saved": True},
    "no memory pattern": {"enable_mem_pattern": False},
    "no memory arena": {"enable_cpu_mem_arena": False},
    "denormals are zero": {"session.set_denormal_as_zero": "1"},
}


def main() -> None:
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, action="append", required=True, help="an ONNX folder")
    parser.add_argument("--test", required=True, help="real messages: a data file")
    parser.add_argument("--text", default="text")
    parser.add_argument("--messages", type=int, default=400, help="timed per option")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()

    messages = spread_over(read_rows(options.test, Columns(options.text, None)).texts, options.messages)
    figures = {}
    for model in options.model:
        targets = {name: Target("onnxruntime", str(model)) for name in OPTIONS}
        commands = {name: [sys.executable, "-W", "ignore", __file__, "work", name] for name in OPTIONS}
        timed = measure(targets, messages, blocks=options.blocks, commands=commands)
        base = timed[AS_IS]
        size = (model / "model.onnx").stat().st_size / 1e6
        figures[f"{size:.1f} MB"] = {
            name: {
                "p50_ms": round(samples.p50_ms, 3),
                "block_medians_ms": [round(value, 3) for value in samples.p50_range_ms],
                "times_as_long": round(samples.p50_ms / base.p50_ms, 3),
            }
            for name, samples in timed.items()
        } | {"stolen_cpu": base.stolen}
    finish("runtime_options", figures, as_json=options.json, save=options.save)


def work(name: str) -> None:
    """Time blocks on request, from text to logits."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    folder = Path(json.loads(sys.stdin.readline())["location"])
    session, encode = opened(folder / "model.onnx", OPTIONS[name]), Encoder(folder).encode
    inputs = [value.name for value in session.get_inputs()]

    def answer(message: str) -> float:
        start = time.perf_counter()
        tensors = encode([message])
        session.run(["logits"], {each: tensors[each] for each in inputs})
        return time.perf_counter() - start

    print(json.dumps({"name": name}), file=replies, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        for message in order["warmup"]:
            answer(message)
        print(json.dumps({"seconds": [answer(message) for message in order["messages"]]}), file=replies, flush=True)


def opened(path: Path, changes: dict[str, Any]) -> Any:
    """A session with these options."""
    settings = as_deploykit_sets()
    if changes.get("saved"):
        with tempfile.TemporaryDirectory() as scratch:
            settings.optimized_model_filepath = str(Path(scratch) / "model.ort")
            settings.add_session_config_entry("session.save_model_format", "ORT")
            onnxruntime.InferenceSession(str(path), settings)
            return onnxruntime.InferenceSession(str(Path(scratch) / "model.ort"), as_deploykit_sets())
    for key, value in changes.items():
        if key.startswith("session."):
            settings.add_session_config_entry(key, value)
        else:
            setattr(settings, key, value)
    return onnxruntime.InferenceSession(str(path), settings)


def as_deploykit_sets() -> Any:
    """As deploykit sets them."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = usable_cores()
    settings.log_severity_level = 3
    return settings


if __name__ == "__main__":
    main()
