"""What the benchmarks on a recipe share: their options, what others make of the same model, and the latency table."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from deploykit.compress.quantize import Variant, quantize
from deploykit.latency.measure import Samples
from deploykit.runners import Target

EAGER = "PyTorch eager fp32"
ORT_INT8 = "int8 as onnxruntime quantizes it"
OPENVINO = "int8 OpenVINO"


def recipe_options(doc: str) -> argparse.ArgumentParser:
    """A parser with the data, the recipe, and what is timed."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="category")
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parents[1] / "recipes" / "banking77.yaml")
    parser.add_argument("--workspace", type=Path, default=Path(".deploykit"))
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--messages", type=int, default=600, help="messages timed per target")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results/")
    return parser


def as_exported(export: Path, out: Path) -> Path:
    """The exporter's own float32 graph, without deploykit's fusions."""
    out.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (out / name).symlink_to((export / name).resolve())
    (out / "model.onnx").write_bytes((export / "plain.onnx").read_bytes())
    return out


def as_onnxruntime_quantizes(export: Path, out: Path) -> Path:
    """That graph through onnxruntime's `quantize_dynamic` (what optimum and Olive do for it)."""
    quantize(export, out, Variant("int8_dynamic", "plain"))
    return out


def unpruned_targets(finetuned: Path, export: Path, scratch: Path) -> dict[str, Target]:
    """The unpruned model in PyTorch and in onnxruntime, float32 and in onnxruntime's own int8."""
    return {
        EAGER: Target("torch", str(finetuned), device="cpu"),
        "onnxruntime fp32": Target("onnxruntime", str(as_exported(export, scratch / "plain"))),
        ORT_INT8: Target("onnxruntime", str(as_onnxruntime_quantizes(export, scratch / "peer"))),
    }


def rival_targets(
    finetuned: Path,
    export: Path,
    scratch: Path,
    messages: Sequence[str],
    python: Path,
    commands: dict[str, list[str]],
) -> dict[str, Target]:
    """OpenVINO with NNCF's int8, and PyTorch through its compiler; how they are started goes into `commands`."""
    script, out = str(Path(__file__).with_name("rivals.py")), scratch / "openvino"
    order = [str(python), script, "quantize", str(export), str(out)]
    subprocess.run(order, input=json.dumps(list(messages[:300])), text=True, check=True, stdout=subprocess.DEVNULL)
    commands[OPENVINO] = [str(python), script, "openvino"]
    commands["PyTorch compiled fp32"] = [sys.executable, script, "torch-compile"]
    return {OPENVINO: Target("onnxruntime", str(out)), "PyTorch compiled fp32": Target("torch", str(finetuned))}


def latency_rows(timed: dict[str, Samples], reference: str) -> dict[str, dict[str, object]]:
    """Medians with their spread over the blocks, p99, and the speed-up over a reference, by name."""
    base = timed[reference].p50_ms
    return {
        name: {
            "p50_ms": round(samples.p50_ms, 3),
            "block_medians_ms": [round(value, 3) for value in samples.p50_range_ms],
            "p99_ms": round(samples.p99_ms, 3),
            "speedup": round(base / samples.p50_ms, 2),
        }
        for name, samples in timed.items()
    }
