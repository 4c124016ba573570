"""Messages a second: in process in batches, and served beside PyTorch eager behind the same Triton, in one run.

    python benchmarks/throughput.py --finetuned CHECKPOINT --int8 UNPRUNED --pruned PRUNED --test test.csv

The checkpoint is the fine-tuned one; the others are ONNX folders of the quantize stage. In process each form has a
process of its own, and the same batches of messages of any lengths come to all in alternating blocks. Behind Triton the
package of deploykit stands beside a Python model that holds the PyTorch model (eager, batches of what has come, one
instance, all threads); the light client of serving.py asks both in alternating blocks, over gRPC.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine_facts import finish
from serving import drive, spread

from deploykit.data.readers import read_rows
from deploykit.data.table import Columns
from deploykit.runners import Target, open_runner
from deploykit.tasks import find_task
from deploykit.triton.embedded import EmbeddedServer
from deploykit.triton.package import PackageSettings, build_package

EAGER, INT8, PRUNED = "PyTorch eager fp32", "int8 deploykit, unpruned", "int8 deploykit, pruned"
EAGER_MODEL = """
import json
from pathlib import Path
import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from transformers import AutoModelForSequenceClassification, AutoTokenizer

class TritonPythonModel:
    def initialize(self, args):
        folder = json.loads((Path(__file__).resolve().parent / "checkpoint.json").read_text())
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="sdpa").eval()

    def execute(self, requests):
        texts = [pb_utils.get_input_tensor_by_name(each, "text").as_numpy().ravel()[0].decode() for each in requests]
        tensors = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            scores, best = self.model(**tensors).logits.softmax(-1).max(-1)
        names = self.model.config.id2label
        responses = []
        for score, label in zip(scores.tolist(), best.tolist()):
            named = pb_utils.Tensor("label", np.array([[names[label].encode()]], dtype=np.object_))
            scored = pb_utils.Tensor("score", np.array([[score]], dtype=np.float32))
            responses.append(pb_utils.InferenceResponse(output_tensors=[named, scored]))
        return responses
"""
EAGER_CONFIG = """
name: "eager"
backend: "python"
max_batch_size: 64
input { name: "text" data_type: TYPE_STRING dims: [1] }
output { name: "label" data_type: TYPE_STRING dims: [1] }
output { name: "score" data_type: TYPE_FP32 dims: [1] }
dynamic_batching { }
"""


def main() -> None:
    if sys.argv[1:2] == ["work"]:
        work()
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("finetuned", "int8", "pruned"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--test", required=True, help="real messages: a data file")
    parser.add_argument("--text", default="text")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8, 32], help="of batches")
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each served block")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()

    texts = list(read_rows(options.test, Columns(options.text, None)).texts)
    texts = [texts[index] for index in np.random.default_rng(0).permutation(len(texts))]
    targets = {EAGER: ("torch", options.finetuned), INT8: ("onnxruntime", options.int8)}
    targets[PRUNED] = ("onnxruntime", options.pruned)
    figures = {
        "messages_per_s_in_batches_of": in_process(targets, texts[:960], options.sizes, options.blocks),
        "served_over_grpc": served(options.finetuned, options.pruned, texts, options.blocks, options.seconds),
    }
    finish("throughput", figures, as_json=options.json, save=options.save)


def in_process(
    targets: dict[str, tuple[str, Path]], texts: Sequence[str], sizes: Sequence[int], blocks: int
) -> dict[str, Any]:
    """By size of batch: messages a second of each form, and how many times PyTorch's."""
    found: dict[int, dict[str, list[float]]] = {size: {name: [] for name in targets} for size in sizes}
    workers = {name: _started(*target) for name, target in targets.items()}
    try:
        for block in range(blocks):
            for size in sizes:
                part = texts[(block % 4) * 64 :][: max(64, size * 6)]
                for name in targets if block % 2 == 0 else reversed(targets):
                    seconds = _asked(workers[name], {"size": size, "texts": list(part)})
                    found[size][name].append(len(part) / seconds)
    finally:
        for worker in workers.values():
            worker.kill()
    table: dict[str, Any] = {}
    for size, rates in found.items():
        table[str(size)] = {
            name: spread(each)
            | {"over_pytorch": spread([ours / base for ours, base in zip(each, rates[EAGER], strict=True)])["median"]}
            for name, each in rates.items()
        }
    return table


def work() -> None:
    """A form in a process of its own: JSON lines in (its target, then batches to time), seconds out."""
    target = Target(**json.loads(sys.stdin.readline()))
    with open_runner(target) as runner:
        runner.infer(["hello", "good morning to you"])
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            size, texts = order["size"], order["texts"]
            batches = [texts[start : start + size] for start in range(0, len(texts), size)]
            runner.infer(batches[0])
            start = time.perf_counter()
            for batch in batches:
                runner.infer(batch)
            print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


def _started(kind: str, folder: Path) -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, "work"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert _reply(worker, {"kind": kind, "location": str(folder), "device": "cpu"})["ready"]
    return worker


def _asked(worker: subprocess.Popen[str], order: dict[str, Any]) -> float:
    return float(_reply(worker, order)["seconds"])


def _reply(worker: subprocess.Popen[str], order: dict[str, Any]) -> dict[str, Any]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(json.dumps(order) + "\n")
    worker.stdin.flush()
    reply: dict[str, Any] = json.loads(worker.stdout.readline())
    return reply


def served(finetuned: Path, pruned: Path, texts: list[str], blocks: int, seconds: float) -> dict[str, Any]:
    """By clients: p50, p99 and messages a second of both, and the ratios of the blocks."""
    with tempfile.TemporaryDirectory() as scratch:
        repository = Path(scratch) / "repository"
        task = find_task("text-classification")
        build_package(pruned, repository, "ours", task, PackageSettings(), samples=texts)
        folder = repository / "eager" / "1"
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(EAGER_MODEL, encoding="utf-8")
        (folder / "checkpoint.json").write_text(json.dumps(str(finetuned.absolute())), encoding="utf-8")
        (folder.parent / "config.pbtxt").write_text(EAGER_CONFIG, encoding="utf-8")
        found: dict[tuple[str, int], list[dict[str, float]]] = {}
        with EmbeddedServer(repository, log=Path(scratch) / "log") as server:
            cases = [(name, clients) for clients in (1, 16) for name in ("ours", "eager")]
            for block in range(blocks):
                for name, clients in cases if block % 2 == 0 else reversed(cases):
                    measured = drive(server, name, "grpc", clients, texts, seconds)
                    found.setdefault((name, clients), []).append(measured)
    table: dict[str, Any] = {}
    for clients in (1, 16):
        ours, eager = found["ours", clients], found["eager", clients]
        pairs = list(zip(ours, eager, strict=True))
        table[f"{clients} client(s)"] = {
            "ours": {name: spread([block[name] for block in ours]) for name in ours[0]},
            "eager": {name: spread([block[name] for block in eager]) for name in eager[0]},
            "served_speedup": spread([theirs["p50_ms"] / own["p50_ms"] for own, theirs in pairs]),
            "throughput_over_eager": spread(
                [own["messages_per_s"] / theirs["messages_per_s"] for own, theirs in pairs]
            ),
        }
    return table


if __name__ == "__main__":
    main()
