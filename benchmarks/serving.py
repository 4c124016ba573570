"""The served path step by step: the rate that holds a p99, one client's p50 beyond in process, what each step gave.

    python benchmarks/serving.py --model INT8_FOLDER --test test.csv --save

The naive layout is the same ONNX file behind an ensemble: a Python model that tokenizes one request at a time, the ONNX
model, and a Python model that turns logits into the label; no batching. In each round every step gets a fresh server,
in turned order. The rate is searched by an open loop at random moments (HTTP, a light client in a process of its own)
and holds where MLPerf's early-stopping rule says that p99 is below the limit. Two cores are all there is: client,
server and model share them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from machine_facts import finish

from deploykit.data.readers import read_rows
from deploykit.data.table import Columns
from deploykit.latency.load import judge_load, next_rate
from deploykit.latency.scenarios import Tried, run_concurrency, run_server
from deploykit.recipe import Package
from deploykit.runners import Target, open_runner
from deploykit.runners.labels import labels_from_folder
from deploykit.runners.onnx_runner import OnnxRunner
from deploykit.tasks import find_task
from deploykit.triton.config import InstanceGroup, Tensor, parse_config, tensor_model_config, write_config
from deploykit.triton.embedded import EmbeddedServer
from deploykit.triton.entries import vendor_tokenizers
from deploykit.triton.package import PackageSettings, build_package

NAIVE_TOKENIZER = """
import json, os, sys
from pathlib import Path
import numpy as np
import triton_python_backend_utils as pb_utils
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "site"))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
from tokenizers import Tokenizer

class TritonPythonModel:
    def initialize(self, args):
        self.tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(json.loads((HERE / "entry.json").read_text())["max_length"])

    def execute(self, requests):
        responses = []
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().ravel()[0].decode()
            ids = np.array([self.tokenizer.encode(text).ids], dtype=np.int64)
            tensors = [pb_utils.Tensor("input_ids", ids), pb_utils.Tensor("attention_mask", np.ones_like(ids))]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses
"""
NAIVE_LABELS = """
import json
from pathlib import Path
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.labels = json.loads((Path(__file__).resolve().parent / "entry.json").read_text())["labels"]

    def execute(self, requests):
        responses = []
        for request in requests:
            logits = pb_utils.get_input_tensor_by_name(request, "logits").as_numpy()[0]
            scores = np.exp(logits - logits.max())
            scores /= scores.sum()
            best = int(scores.argmax())
            label = pb_utils.Tensor("label", np.array([[self.labels[best].encode()]], dtype=np.object_))
            score = pb_utils.Tensor("score", scores[best].reshape(1, 1).astype(np.float32))
            responses.append(pb_utils.InferenceResponse(output_tensors=[label, score]))
        return responses
"""
EMPTY = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            request.inputs()[0].as_numpy()
            label = pb_utils.Tensor("label", np.array([[b"none"]], dtype=np.object_))
            score = pb_utils.Tensor("score", np.ones((1, 1), dtype=np.float32))
            responses.append(pb_utils.InferenceResponse(output_tensors=[label, score]))
        return responses
"""
OURS, NAIVE, NOTHING = "ours", "naive", "empty"
STEPS: dict[str, PackageSettings | None] = {
    "naive ensemble, no batching": None,
    "batches of texts, the ONNX model called": PackageSettings(layout="call"),
    "called, 2 instances of 1 thread": PackageSettings(layout="call", instances=2, threads=1),
    "held": PackageSettings(layout="hold"),
    "held, 1 thread": PackageSettings(layout="hold", threads=1),
    "held, 2 instances of 1 thread": PackageSettings(layout="hold", instances=2, threads=1),
}
STEP, PRECISION = 1.35, 0.08


@dataclass
class Found:
    """What one step showed, a value for each round."""

    rates: list[float] = field(default_factory=list)
    curves: list[list[tuple[float, float | None, str]]] = field(default_factory=list)
    split_ms: list[dict[str, float]] = field(default_factory=list)
    p50_ms: dict[str, list[float]] = field(default_factory=lambda: {"http": [], "grpc": []})
    beyond_ms: dict[str, list[float]] = field(default_factory=lambda: {"http": [], "grpc": []})
    sixteen_per_s: list[float] = field(default_factory=list)
    tensor_entry_ms: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="an ONNX folder, e.g. of the quantize stage")
    parser.add_argument("--test", required=True, help="real messages: a data file")
    parser.add_argument("--text", default="text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run at a rate, at least")
    parser.add_argument("--answers", type=int, default=700, help="of each run at a rate, at least")
    parser.add_argument("--p99", type=float, default=20.0, help="ms")
    parser.add_argument("--steps", help="numbers of the steps to measure, as in 0,4,5; all unless told")
    parser.add_argument(
        "--tuned", help="a package section in JSON, as `deploykit tune --json` gives it, as a last step"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()

    steps = dict(STEPS)
    if options.steps:
        steps = {name: steps[name] for name in (list(STEPS)[int(number)] for number in options.steps.split(","))}
    if options.tuned:
        section = Package.model_validate(json.loads(options.tuned)).model_dump()
        steps["as `deploykit tune` found"] = PackageSettings(**(section | {"device": "cpu"}))
    texts = list(read_rows(options.test, Columns(options.text, None)).texts)
    texts = [texts[index] for index in np.random.default_rng(0).permutation(len(texts))]
    found = {name: Found() for name in steps}
    in_process: list[tuple[float, float]] = []
    nothing: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        repositories = {name: Path(scratch) / str(number) for number, name in enumerate(steps)}
        for name, settings in steps.items():
            build_package(
                options.model,
                repositories[name],
                OURS,
                find_task("text-classification"),
                settings or PackageSettings(layout="call"),
                samples=texts,
            )
            if settings is None:
                _add_naive(options.model, repositories[name])
        for number in range(options.rounds):
            in_process.append(_in_process(options.model, texts))
            nothing.append(_nothing(Path(scratch) / f"empty{number}", texts))
            for name in list(steps) if number % 2 == 0 else reversed(list(steps)):
                _one(found[name], repositories[name], steps[name], texts, options, in_process[-1])
                print(f"round {number + 1}, {name}: {found[name].rates[-1]:.0f}/s", file=sys.stderr, flush=True)
    finish("serving", _figures(found, in_process, nothing, options), as_json=options.json, save=options.save)


def _one(
    found: Found,
    repository: Path,
    settings: PackageSettings | None,
    texts: list[str],
    options: argparse.Namespace,
    in_process: tuple[float, float],
) -> None:
    """One step in one round, on a fresh server."""
    model = NAIVE if settings is None else OURS
    inner = "naive_onnx" if settings is None else f"{OURS}_onnx"
    with EmbeddedServer(repository) as server:
        for protocol in ("http", "grpc"):
            before = _statistics(server, inner)
            p50 = drive(server, model, protocol, 1, texts, 2.0)["p50_ms"]
            after = _statistics(server, inner)
            found.p50_ms[protocol].append(p50)
            found.beyond_ms[protocol].append(p50 - in_process[0])
            if protocol == "http" and after[0] > before[0]:
                found.tensor_entry_ms.append((after[1] - before[1]) / (after[0] - before[0]) / 1e6)
        target = Target("triton", f"{server.urls.http}/{model}")
        closed = run_concurrency(target, texts, clients=16, seconds=2.0)
        found.sixteen_per_s.append(closed.answered_per_s)
        start = found.rates[-1] if found.rates and found.rates[-1] else 0.5 * closed.answered_per_s
        tried = _search(target, texts, start, options)
    held = [each for each in tried if each.verdict.outcome == "pass"]
    found.rates.append(held[-1].rate_per_s if held else 0.0)
    found.split_ms.append((held or tried)[-1].result.split_ms)
    found.curves.append([(each.rate_per_s, each.verdict.p99_ms, each.verdict.outcome) for each in tried])


def _search(target: Target, texts: Sequence[str], start: float, options: argparse.Namespace) -> list[Tried]:
    """The rates that were tried, ascending."""
    tried: dict[float, Tried] = {}
    while True:
        held = {rate: each.verdict.outcome == "pass" for rate, each in tried.items()}
        rate = next_rate(held, start, PRECISION, step=STEP)
        if rate is None or rate < start / 8:
            return [tried[rate] for rate in sorted(tried)]
        seconds = max(options.seconds, options.answers / rate)
        result = run_server(target, texts, rate_per_s=rate, seconds=seconds, seed=len(tried))
        tried[rate] = Tried(rate, result, judge_load(result, p99_limit_ms=options.p99))


def _nothing(repository: Path, texts: list[str]) -> float:
    """One client's p50 of a Python model that does nothing, over HTTP: Triton's own share, and the client's."""
    (repository / NOTHING / "1").mkdir(parents=True)
    (repository / NOTHING / "1" / "model.py").write_text(EMPTY, encoding="utf-8")
    (repository / NOTHING / "config.pbtxt").write_text(
        f'name: "{NOTHING}"\nbackend: "python"\nmax_batch_size: 64\ndynamic_batching {{}}\n'
        'input { name: "text" data_type: TYPE_STRING dims: [1] }\n'
        'output { name: "label" data_type: TYPE_STRING dims: [1] }\n'
        'output { name: "score" data_type: TYPE_FP32 dims: [1] }\n',
        encoding="utf-8",
    )
    with EmbeddedServer(repository) as server:
        return drive(server, NOTHING, "http", 1, texts, 2.0)["p50_ms"]


def _figures(
    found: dict[str, Found], in_process: list[tuple[float, float]], nothing: list[float], options: argparse.Namespace
) -> dict[str, Any]:
    first = next(iter(found.values()))
    table = {}
    for name, each in found.items():
        ratios = [mine / other for mine, other in zip(each.rates, first.rates, strict=True) if other > 0]
        row: dict[str, Any] = {
            f"messages_per_s_under_p99_of_{options.p99:g}_ms": spread(each.rates),
            "over_the_first_step": spread(ratios) if ratios else None,
            "one_client_p50_ms": {protocol: spread(values) for protocol, values in each.p50_ms.items()},
            "beyond_in_process_ms": {protocol: spread(values) for protocol, values in each.beyond_ms.items()},
            "sixteen_clients_messages_per_s": spread(each.sixteen_per_s),
            "split_at_that_rate_ms": {
                part: float(np.median([split[part] for split in each.split_ms if part in split]))
                for part in each.split_ms[0]
            },
            "rate_p99_outcome": each.curves[-1],
        }
        if each.tensor_entry_ms:
            shares = [inside - alone for inside, (_, alone) in zip(each.tensor_entry_ms, in_process, strict=True)]
            row["of_which_the_embedded_shim_ms"] = spread(shares)
        table[name] = row
    return {
        "rounds": options.rounds,
        "in_process_p50_ms": {
            "text to answer": spread([pair[0] for pair in in_process]),
            "session alone": spread([pair[1] for pair in in_process]),
        },
        "python_model_that_does_nothing_p50_ms": spread(nothing),
        "steps": table,
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "least": min(values), "greatest": max(values)}


def drive(
    server: EmbeddedServer,
    name: str,
    protocol: str,
    clients: int,
    texts: list[str],
    seconds: float,
    *,
    encoding: str = "binary",
) -> dict[str, float]:
    url = server.urls.grpc if protocol == "grpc" else server.urls.http
    assert url is not None
    order = {
        "protocol": protocol,
        "address": url.split("://")[1],
        "model": name,
        "texts": texts[:1000],
        "outputs": ["label", "score"],
        "clients": clients,
        "seconds": seconds,
        "encoding": encoding,
    }
    client = Path(__file__).with_name("load_client.py")
    done = subprocess.run(
        [sys.executable, str(client)], input=json.dumps(order), capture_output=True, text=True, check=True
    )
    reply = json.loads(done.stdout)
    latencies = np.array(reply["latencies_ms"])
    return {
        "p50_ms": float(np.median(latencies)),
        "p99_ms": float(np.quantile(latencies, 0.99)),
        "messages_per_s": len(latencies) / reply["elapsed_s"],
    }


def _in_process(model: Path, texts: list[str]) -> tuple[float, float]:
    """p50 from text to answer, and of `session.run` alone, in a process of its own."""
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import serving;"
        "print(json.dumps(serving.time_in_process(sys.argv[2], json.load(sys.stdin))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(model)],
        input=json.dumps(texts[:300]), capture_output=True, text=True, check=True,
    )  # fmt: skip
    text_ms, session_ms = json.loads(done.stdout)
    return text_ms, session_ms


def time_in_process(model: str, texts: list[str]) -> tuple[float, float]:
    """The two medians, in milliseconds."""
    task, labels = find_task("text-classification"), labels_from_folder(Path(model))
    with open_runner(Target("onnxruntime", model)) as runner:
        assert isinstance(runner, OnnxRunner)
        whole, alone = [], []
        for text in texts[:30]:
            runner.infer([text])
        for text in texts:
            start = time.perf_counter()
            task.answers(runner.infer([text]), labels)
            whole.append(time.perf_counter() - start)
        session, encoder = runner.session, runner.encoder
        names = [value.name for value in session.get_inputs()]
        for text in texts:
            tensors = encoder.encode([text])
            start = time.perf_counter()
            session.run(["logits"], {name: tensors[name] for name in names})
            alone.append(time.perf_counter() - start)
    return float(np.median(whole) * 1e3), float(np.median(alone) * 1e3)


def _statistics(server: EmbeddedServer, model: str) -> tuple[int, int]:
    """Requests of a model so far and the nanoseconds they took inside Triton, queueing left out."""
    from tritonclient.grpc import InferenceServerClient

    assert server.urls.grpc is not None
    with InferenceServerClient(server.urls.grpc.split("://")[1]) as client:
        statistics = client.get_inference_statistics(model).model_stats[0].inference_stats
    return statistics.success.count, statistics.success.ns - statistics.queue.ns


def _add_naive(model: Path, repository: Path) -> None:
    """`naive`: an ensemble of a tokenizing Python model and the ONNX model, without batching."""
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    inner = parse_config(repository / f"{OURS}_onnx" / "config.pbtxt")
    labels = len(labels_from_folder(model))
    names = [value.name for value in inner.input]
    folder = repository / "naive_onnx"
    (folder / "1").mkdir(parents=True)
    shutil.copyfile(model / "model.onnx", folder / "1" / "model.onnx")
    write_config(
        folder,
        tensor_model_config(
            "naive_onnx",
            inputs=[Tensor(name, "INT64", (-1,)) for name in names],
            outputs=[Tensor("logits", "FP32", (labels,))],
            max_batch_size=64,
            instances=InstanceGroup("cpu", 1),
        ),
    )
    folder = repository / "naive_tokenizer"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(NAIVE_TOKENIZER, encoding="utf-8")
    for name in ("tokenizer.json", "entry.json"):
        shutil.copyfile(repository / OURS / "1" / name, folder / "1" / name)
    vendor_tokenizers(folder / "1" / "site")
    outputs = "".join(f'output {{ name: "{name}" data_type: TYPE_INT64 dims: [-1] }}\n' for name in names)
    text = 'input { name: "text" data_type: TYPE_STRING dims: [1] }\n'
    (folder / "config.pbtxt").write_text(
        f'name: "naive_tokenizer"\nbackend: "python"\nmax_batch_size: 64\n{text}{outputs}', encoding="utf-8"
    )
    folder = repository / "naive_labels"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(NAIVE_LABELS, encoding="utf-8")
    shutil.copyfile(repository / OURS / "1" / "entry.json", folder / "1" / "entry.json")
    answer = (
        'output { name: "label" data_type: TYPE_STRING dims: [1] }\n'
        'output { name: "score" data_type: TYPE_FP32 dims: [1] }\n'
    )
    logits = f'input {{ name: "logits" data_type: TYPE_FP32 dims: [{labels}] }}\n'
    (folder / "config.pbtxt").write_text(
        f'name: "naive_labels"\nbackend: "python"\nmax_batch_size: 64\n{logits}{answer}', encoding="utf-8"
    )
    tokens = "".join(f'output_map {{ key: "{name}" value: "{name}" }}\n' for name in names)
    ids = "".join(f'input_map {{ key: "{name}" value: "{name}" }}\n' for name in names)
    ensemble = (
        f'name: "{NAIVE}"\nplatform: "ensemble"\nmax_batch_size: 64\n{text}'
        f"{answer}"
        "ensemble_scheduling {\n"
        'step { model_name: "naive_tokenizer" model_version: -1 input_map { key: "text" value: "text" }'
        f"{tokens} }}\n"
        f'step {{ model_name: "naive_onnx" model_version: -1 {ids}'
        'output_map { key: "logits" value: "logits" } }\n'
        'step { model_name: "naive_labels" model_version: -1 input_map { key: "logits" value: "logits" }'
        'output_map { key: "label" value: "label" } output_map { key: "score" value: "score" } }\n}\n'
    )
    text_format.Parse(ensemble, ModelConfig())  # well-formed
    (repository / NAIVE / "1").mkdir(parents=True)
    (repository / NAIVE / "config.pbtxt").write_text(ensemble, encoding="utf-8")


if __name__ == "__main__":
    main()
