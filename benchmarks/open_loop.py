"""The load generator itself: a stall that must show, what it costs, the rate it holds, and another driver beside it.

    pip install mlcommons-loadgen
    python benchmarks/open_loop.py --model INT8_FOLDER --test test.csv --rate 100 --save

The other driver is MLPerf's loadgen, on the same model in the same process settings, in alternating runs. It is left
out where it is not installed.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine_facts import finish

from deploykit.data.readers import read_rows
from deploykit.data.table import Columns
from deploykit.latency.generator import Sent, closed_loop, open_loop
from deploykit.latency.load import LATE_MS, poisson_arrivals
from deploykit.latency.scenarios import run_server
from deploykit.latency.worker import timed_messages as time_singly
from deploykit.runners import Target, open_runner
from deploykit.tasks import find_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="an ONNX folder")
    parser.add_argument("--test", required=True, help="real messages: a data file")
    parser.add_argument("--text", default="text")
    parser.add_argument("--rate", type=float, default=100.0, help="a second, for the comparison of drivers")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=3, help="of the two drivers in turn")
    parser.add_argument("--loadgen-once", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    texts = list(read_rows(options.test, Columns(options.text, None)).texts)
    if options.loadgen_once:
        print(json.dumps(run_loadgen(options.model, texts, options.rate, options.seconds)))
        return
    figures = {
        "stall_of_500_ms": stall(options.seconds),
        "overhead_of_a_1_ms_call": overhead(),
        "rate_that_the_client_holds_per_s": held_rate(),
        "drivers": drivers(options, texts),
    }
    finish("open_loop", figures, as_json=options.json, save=options.save)


def stall(seconds: float) -> dict[str, float]:
    """p99 of a stand-in that does nothing for half a second, by an open loop and by one client that waits."""
    due = poisson_arrivals(50, seconds)
    found = {}
    for name in ("open loop", "closed loop"):
        start, free = time.monotonic(), 0.0

        async def send(number: int, start: float = start) -> None:
            nonlocal free
            begin = max(time.monotonic() - start, free)
            if seconds / 2 <= begin < seconds / 2 + 0.5:
                begin = seconds / 2 + 0.5
            free = begin + 0.002
            await asyncio.sleep(start + free - time.monotonic())

        count = int(seconds / 0.0025)
        work = open_loop(send, due.tolist()) if name == "open loop" else closed_loop(send, count, 1)
        found[f"p99_ms, {name}"] = p99_ms(asyncio.run(work))
    return found


def p99_ms(sent: Sequence[Sent]) -> float:
    return float(np.quantile([each.done - each.due for each in sent], 0.99)) * 1e3


def overhead() -> dict[str, float]:
    """What timing adds to a call that takes a millisecond by the clock."""

    def call(messages: Sequence[str]) -> None:
        until = time.perf_counter() + 1e-3
        while time.perf_counter() < until:
            pass

    took_ms = np.array(time_singly(call, ["message"] * 3000)) * 1e3
    return {"p50_fraction": float(np.median(took_ms)) - 1.0, "p95_fraction": float(np.quantile(took_ms, 0.95)) - 1.0}


def held_rate() -> float:
    """The highest rate, doubled from 125, at which at most 1 % are sent late, to a stand-in that sleeps 1 ms.

    A rate has three tries: what the host takes away for a moment is not the client's.
    """

    async def send(number: int) -> None:
        await asyncio.sleep(1e-3)

    def holds(rate: float, seed: int) -> bool:
        sent = asyncio.run(open_loop(send, poisson_arrivals(rate, 3, seed=seed).tolist()))
        return bool(np.mean([(each.sent - each.due) * 1e3 > LATE_MS for each in sent]) <= 0.01)

    held, rate = 0.0, 125.0
    while rate < 1e5 and any(holds(rate, seed) for seed in range(3)):
        held, rate = rate, 2 * rate
    return held


def drivers(options: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    """p50 and p99 of the same model at the same rate by both drivers, in turn."""
    if importlib.util.find_spec("mlperf_loadgen") is None:
        return {"left out": "mlcommons-loadgen is not installed"}
    target = Target("onnxruntime", str(options.model), threads=1)
    ours, theirs = [], []
    for number in range(options.rounds):
        result = run_server(target, texts, rate_per_s=options.rate, seconds=options.seconds, seed=number)
        ours.append([float(np.quantile(result.latencies_ms, q)) for q in (0.5, 0.99)])
        done = subprocess.run(
            [sys.executable, __file__, "--model", str(options.model), "--test", options.test, "--text", options.text,
             "--rate", str(options.rate), "--seconds", str(options.seconds), "--loadgen-once"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        theirs.append(json.loads(done.stdout.splitlines()[-1]))
    ratios = np.median(np.array(ours) / np.array(theirs), axis=0)
    return {
        "rate_per_s": options.rate,
        "deploykit p50, p99 ms": ours,
        "loadgen p50, p99 ms": theirs,
        "median ratio of p50": float(ratios[0]),
        "median ratio of p99": float(ratios[1]),
    }


def run_loadgen(model: Path, texts: list[str], rate: float, seconds: float) -> list[float]:
    """p50 and p99 in milliseconds by MLPerf's loadgen, Server scenario."""
    import mlperf_loadgen as loadgen

    task, waiting = find_task("text-classification"), queue.SimpleQueue()  # type: ignore[var-annotated]
    with open_runner(Target("onnxruntime", str(model), threads=1)) as runner:
        labels = [str(index) for index in range(runner.infer(["hello"])[task.output].shape[-1])]
        for text in texts[:50]:
            task.answers(runner.infer([text]), labels)

        def serve() -> None:
            while (sample := waiting.get()) is not None:
                task.answers(runner.infer([texts[sample.index % len(texts)]]), labels)
                loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, 0, 0)])

        def issue(samples: Sequence[Any]) -> None:
            for sample in samples:
                waiting.put(sample)

        settings = loadgen.TestSettings()
        settings.scenario = loadgen.TestScenario.Server
        settings.mode = loadgen.TestMode.PerformanceOnly
        settings.server_target_qps = rate
        settings.server_target_latency_ns = 10**9
        settings.min_duration_ms = int(seconds * 1e3)
        settings.min_query_count = int(rate * seconds)
        server = threading.Thread(target=serve)
        server.start()
        with tempfile.TemporaryDirectory() as folder:
            output = loadgen.LogOutputSettings()
            output.outdir, output.copy_summary_to_stdout = folder, False
            logs = loadgen.LogSettings()
            logs.log_output = output
            system = loadgen.ConstructSUT(issue, lambda: None)
            library = loadgen.ConstructQSL(len(texts), len(texts), lambda _: None, lambda _: None)
            loadgen.StartTestWithLogSettings(system, library, settings, logs)
            waiting.put(None)
            server.join()
            summary = (Path(folder) / "mlperf_log_summary.txt").read_text(encoding="utf-8")
    nanoseconds = [re.search(rf"{q} percentile latency \(ns\)\s*:\s*(\d+)", summary) for q in ("50.00", "99.00")]
    return [int(found[1]) / 1e6 for found in nanoseconds if found is not None]


if __name__ == "__main__":
    main()
