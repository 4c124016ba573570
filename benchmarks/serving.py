"""The served text entry: what it costs beyond the model, and its throughput beside a naive layout, in one run.

    python benchmarks/serving.py --model INT8_FOLDER --test test.csv

The naive layout is the same ONNX file behind an ensemble: a Python model that tokenizes one request at a time, the ONNX
model, and a Python model that turns logits into the label; no batching. Both layouts are served by the same Triton in
the same run and measured in alternating blocks by the same light client, a process of its own. Two clients' worth of
cores is all there is: client, server and model share them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine_facts import finish

from deploykit.data.readers import read_rows
from deploykit.data.table import Columns
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
OURS, NAIVE = "ours", "naive"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="an ONNX folder, e.g. of the quantize stage")
    parser.add_argument("--test", required=True, help="real messages: a data file")
    parser.add_argument("--text", default="text")
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each block")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()

    texts = list(read_rows(options.test, Columns(options.text, None)).texts)
    texts = [texts[index] for index in np.random.default_rng(0).permutation(len(texts))]
    with tempfile.TemporaryDirectory() as scratch:
        repository = Path(scratch) / "repository"
        build_package(
            options.model, repository, OURS, find_task("text-classification"), PackageSettings(), samples=texts
        )
        _add_naive(options.model, repository)
        found: dict[str, list[dict[str, float]]] = {}
        inside: list[float] = []
        in_process: list[tuple[float, float]] = []
        with EmbeddedServer(repository, log=Path(scratch) / "log") as server:
            cases = [
                (name, protocol, clients)
                for clients in (1, 16)
                for protocol in ("grpc", "http")
                for name in (OURS, NAIVE)
            ]
            for block in range(options.blocks):
                in_process.append(_in_process(options.model, texts))
                for name, protocol, clients in cases if block % 2 == 0 else reversed(cases):
                    before = _statistics(server, f"{OURS}_onnx")
                    measured = drive(server, name, protocol, clients, texts, options.seconds)
                    found.setdefault(f"{name}, {protocol}, {clients} client(s)", []).append(measured)
                    if (name, protocol, clients) == (OURS, "grpc", 1):
                        after = _statistics(server, f"{OURS}_onnx")
                        inside.append((after[1] - before[1]) / (after[0] - before[0]) / 1e6)
    finish("serving", _figures(found, in_process, inside), as_json=options.json, save=options.save)


def _figures(
    found: dict[str, list[dict[str, float]]], in_process: list[tuple[float, float]], inside: list[float]
) -> dict[str, Any]:
    table = {
        name: {
            "p50_ms": spread([block["p50_ms"] for block in blocks]),
            "p99_ms": spread([block["p99_ms"] for block in blocks]),
            "messages_per_s": spread([block["messages_per_s"] for block in blocks]),
        }
        for name, blocks in found.items()
    }
    ratios = {
        f"{protocol}, {clients} client(s)": spread(
            [
                ours["messages_per_s"] / naive["messages_per_s"]
                for ours, naive in zip(
                    found[f"{OURS}, {protocol}, {clients} client(s)"],
                    found[f"{NAIVE}, {protocol}, {clients} client(s)"],
                    strict=True,
                )
            ]
        )
        for clients in (1, 16)
        for protocol in ("grpc", "http")
    }
    text_ms, session_ms = (float(np.median([pair[index] for pair in in_process])) for index in (0, 1))
    served = table[f"{OURS}, grpc, 1 client(s)"]["p50_ms"]["median"]
    return {
        "in_process_p50_ms": {"text to answer": text_ms, "session alone": session_ms},
        "served_grpc_p50_beyond_in_process_ms": served - text_ms,
        "of_which_the_embedded_shim_ms": float(np.median(inside)) - session_ms,
        "tensor_entry_inside_triton_ms": spread(inside),
        "layouts": table,
        "throughput_over_naive": ratios,
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "least": min(values), "greatest": max(values)}


def drive(
    server: EmbeddedServer, name: str, protocol: str, clients: int, texts: list[str], seconds: float
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
