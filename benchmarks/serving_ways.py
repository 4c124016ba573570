"""Ways to carry one message to the served model and back, and to cut it into tokens: what each costs.

    python benchmarks/serving_ways.py --model INT8_FOLDER --test test.csv --save

One client over HTTP sends the text as binary data, as JSON and in shared memory, and over gRPC, in turned order on one
server, which is a fresh one in each round; beside it the times that the text model itself takes, as the server counts
them. Tokenizing is timed in a process of its own: by deploykit's table of words, by the library `tokenizers`, and in
the graph by onnxruntime-extensions (where it is installed), one message after the other.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine_facts import finish
from serving import OURS, drive, spread

from deploykit.data.readers import read_rows
from deploykit.data.table import Columns
from deploykit.tasks import find_task
from deploykit.triton.embedded import EmbeddedServer
from deploykit.triton.package import PackageSettings, build_package

WAYS = {
    "HTTP, binary": ("http", "binary"),
    "HTTP, JSON": ("http", "json"),
    "HTTP, shared memory": ("http", "shared memory"),
    "gRPC": ("grpc", "binary"),
}
LAYOUTS = {
    "held, 1 thread": PackageSettings(layout="hold", threads=1),
    "held, all threads": PackageSettings(layout="hold"),
    "called, 1 thread": PackageSettings(layout="call", threads=1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="an ONNX folder, e.g. of the quantize stage")
    parser.add_argument("--test", required=True, help="real messages: a data file")
    parser.add_argument("--text", default="text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each way in each round")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()

    texts = list(read_rows(options.test, Columns(options.text, None)).texts)
    texts = [texts[index] for index in np.random.default_rng(0).permutation(len(texts))][:1000]
    p50: dict[str, dict[str, list[float]]] = {layout: {way: [] for way in WAYS} for layout in LAYOUTS}
    inside: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    alone: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, settings in enumerate(LAYOUTS.values()):
            build_package(
                options.model,
                Path(scratch) / str(number),
                OURS,
                find_task("text-classification"),
                settings,
                samples=texts,
            )
        for turn in range(options.rounds):
            alone.append(_apart("serving", "time_in_process", str(options.model), texts)[0])
            for number, layout in _turned(list(enumerate(LAYOUTS)), turn):
                with EmbeddedServer(Path(scratch) / str(number)) as server:
                    for way, (protocol, encoding) in _turned(list(WAYS.items()), turn):
                        before = _computed(server)
                        found = drive(server, OURS, protocol, 1, texts, options.seconds, encoding=encoding)
                        after = _computed(server)
                        p50[layout][way].append(found["p50_ms"])
                        if way == "HTTP, binary":
                            inside[layout].append((after[1] - before[1]) / (after[0] - before[0]) / 1e6)
                print(f"round {turn + 1}, {layout}: {p50[layout]['HTTP, binary'][-1]:.2f} ms", file=sys.stderr)
    figures = {
        "rounds": options.rounds,
        "in_process_p50_ms": spread(alone),
        "one_client_p50_ms": {
            layout: {way: spread(values) for way, values in ways.items()} for layout, ways in p50.items()
        },
        "beyond_in_process_ms": {
            layout: {way: spread(list(np.subtract(values, alone))) for way, values in ways.items()}
            for layout, ways in p50.items()
        },
        "mean_inside_the_text_model_ms": {layout: spread(values) for layout, values in inside.items()},
        "tokenizing_one_message_us": _apart("serving_ways", "time_tokenizing", str(options.model), texts),
    }
    finish("serving_ways", figures, as_json=options.json, save=options.save)


def time_tokenizing(model: str, texts: list[str]) -> dict[str, float | None]:
    """The median for one message, microseconds; None for what is not installed."""
    from tokenizers import Tokenizer

    from deploykit.runners.tokenize import Encoder

    encoder = Encoder(Path(model))
    library = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    library.no_padding()
    library.enable_truncation(encoder.max_length)
    ways: dict[str, Callable[[str], Any]] = {
        "table of words": lambda text: encoder.encode([text]),
        "tokenizers": lambda text: np.array([library.encode(text).ids]),
    }
    found: dict[str, float | None] = {}
    if importlib.util.find_spec("onnxruntime_extensions"):
        session = _tokenizing_graph(Path(model), encoder.max_length)
        ways["in the graph"] = lambda text: session.run(None, {"text": np.array([text], dtype=object)})
    else:
        found["in the graph"] = None
    for name, cut in ways.items():
        for _ in range(2):  # the first fills the table
            times = []
            for text in texts:
                start = time.perf_counter()
                cut(text)
                times.append(time.perf_counter() - start)
        found[name] = float(np.median(times) * 1e6)
    return found


def _tokenizing_graph(model: Path, max_length: int) -> Any:
    """A session whose only operator is onnxruntime-extensions' BertTokenizer, with the model's vocabulary."""
    import onnxruntime
    from onnx import TensorProto, helper
    from onnxruntime_extensions import get_library_path

    spec = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = spec["model"]["vocab"]
    names = ["input_ids", "token_type_ids", "attention_mask"]
    node = helper.make_node(
        "BertTokenizer",
        ["text"],
        names,
        domain="ai.onnx.contrib",
        vocab_file="\n".join(sorted(vocabulary, key=vocabulary.get)),
        do_lower_case=int(bool(spec["normalizer"].get("lowercase"))),
        max_length=max_length,
    )
    graph = helper.make_graph(
        [node],
        "tokenizer",
        [helper.make_tensor_value_info("text", TensorProto.STRING, [None])],
        [helper.make_tensor_value_info(name, TensorProto.INT64, [None]) for name in names],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.contrib", 1)]
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.register_custom_ops_library(get_library_path())
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return onnxruntime.InferenceSession(made.SerializeToString(), settings)


def _apart(module: str, name: str, model: str, texts: list[str]) -> Any:
    """What a function of a benchmark gives in a process of its own."""
    code = (
        "import importlib, json, sys; folder, module, name, model = sys.argv[1:]; sys.path.insert(0, folder);"
        "print(json.dumps(getattr(importlib.import_module(module), name)(model, json.load(sys.stdin))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), module, name, model],
        input=json.dumps(texts), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def _computed(server: EmbeddedServer) -> tuple[int, int]:
    """Executions of the text model so far, and the nanoseconds that they took."""
    from tritonclient.grpc import InferenceServerClient

    assert server.urls.grpc is not None
    with InferenceServerClient(server.urls.grpc.split("://")[1]) as client:
        statistics = client.get_inference_statistics(OURS).model_stats[0].inference_stats
    return statistics.compute_infer.count, statistics.compute_infer.ns


def _turned(items: list[Any], turn: int) -> list[Any]:
    return items if turn % 2 == 0 else items[::-1]


if __name__ == "__main__":
    main()
