"""Rivals in environments of their own, timed by the same protocol as deploykit's own targets.

    python -m venv rivals && rivals/bin/pip install openvino nncf tokenizers
    rivals/bin/python benchmarks/rivals.py quantize EXPORTED OUT < messages.json     # NNCF's static int8
    rivals/bin/python benchmarks/rivals.py openvino                                  # a worker, JSON lines

`torch-compile` is the other worker; it runs in deploykit's environment. A worker imports nothing of deploykit: the
first line names a folder, each further one asks for a block of messages, from text to probabilities.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Infer = Callable[[dict[str, Any]], Any]


def main() -> None:
    command = sys.argv[1]
    if command == "quantize":
        quantize(Path(sys.argv[2]), Path(sys.argv[3]), json.load(sys.stdin))
    else:
        work({"openvino": openvino_model, "torch-compile": compiled_model}[command])


def quantize(exported: Path, out: Path, messages: Sequence[str]) -> None:
    """The exporter's own float32 graph through NNCF, as its documentation does for transformers."""
    import nncf
    import openvino

    encode = encoder(exported)
    model = openvino.convert_model(exported / "plain.onnx")
    data = nncf.Dataset([encode(message) for message in messages])
    small = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(messages))
    out.mkdir(parents=True, exist_ok=True)
    openvino.save_model(small, out / "model.xml")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy2(exported / name, out / name)


def work(load: Callable[[Path], Infer]) -> None:
    """Time blocks on request."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    folder = Path(json.loads(sys.stdin.readline())["location"])
    encode, infer = encoder(folder), load(folder)

    def answer(message: str) -> tuple[int, float]:
        logits = infer(encode(message))
        shifted = np.exp(logits - logits.max())
        best = int(logits.argmax())
        return best, float(shifted[best] / shifted.sum())

    _reply(replies, {"name": folder.name})
    for line in sys.stdin:
        order = json.loads(line)
        for message in order["warmup"]:
            answer(message)
        seconds = []
        for message in order["messages"]:
            start = time.perf_counter()
            answer(message)
            seconds.append(time.perf_counter() - start)
        _reply(replies, {"seconds": seconds})


def encoder(folder: Path) -> Callable[[str], dict[str, Any]]:
    """The fast tokenizer, as its library has it."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()

    def encode(message: str) -> dict[str, Any]:
        ids = np.array([tokenizer.encode(message).ids], dtype=np.int64)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    return encode


def openvino_model(folder: Path) -> Infer:
    """OpenVINO's CPU plugin, with its hint for latency."""
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": os.cpu_count()}
    request = openvino.Core().compile_model(folder / "model.xml", "CPU", settings).create_infer_request()
    return lambda feed: request.infer(feed, share_inputs=True, share_outputs=True)[0][0]


def compiled_model(folder: Path) -> Infer:
    """PyTorch through its compiler, for any length."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = torch.compile(AutoModelForSequenceClassification.from_pretrained(folder).eval(), dynamic=True)

    def infer(feed: dict[str, Any]) -> Any:
        with torch.inference_mode():
            return model(**{name: torch.from_numpy(values) for name, values in feed.items()}).logits[0].numpy()

    return infer


def _reply(stream: Any, value: dict[str, Any]) -> None:
    stream.write(json.dumps(value) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
