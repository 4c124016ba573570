"""The GPU path: bf16 fine-tuning with the 8-bit optimizer, QLoRA, fp16 ONNX on the CUDA provider, parity, latency.

    make gpu-check        (needs torch with CUDA, onnxruntime-gpu, bitsandbytes: make setup EXTRAS=gpu,models)

Writes `benchmarks/results/gpu_check.json`. Where there is no GPU it says so and exits with status 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from machine_facts import finish

from deploykit.cli.render import Screen
from deploykit.latency.measure import measure
from deploykit.machine import gpu_names, has_nvidia_gpu
from deploykit.parity.report import ParityReport
from deploykit.pipeline.context import data_from_artifact
from deploykit.pipeline.plan import make_plan
from deploykit.pipeline.run import run_recipe
from deploykit.recipe import load_recipe
from deploykit.runners import Target
from deploykit.triton.embedded import unsupported_reason

ROOT = Path(__file__).parents[1]
QLORA = (
    "finetune.strategy=lora",
    "finetune.learning_rate=1e-3",
    "finetune.quantized_base=nf4",
    "finetune.optimizer=paged_adamw_8bit",
)
"""What a second model is fine-tuned by."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "quickstart.yaml")
    parser.add_argument("-s", dest="overrides", action="append", default=[], help="KEY=VALUE for the recipe")
    parser.add_argument("--workspace", type=Path, default=Path(".deploykit-gpu"))
    parser.add_argument("--repository", type=Path, default=Path(".deploykit-gpu/model_repository"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not has_nvidia_gpu():
        print("no NVIDIA GPU on this machine: nothing was checked", file=sys.stderr)
        return 1

    settings = [
        "finetune.precision=bf16",
        "finetune.optimizer=adamw_8bit",
        "quantize.scheme=fp16",
        "package.device=gpu",
    ]
    if unsupported_reason() is not None:
        settings.append("serve.engine=none")
    recipe = load_recipe(options.recipe, [*settings, *options.overrides])
    with Screen() as screen:
        result = run_recipe(recipe, workspace=options.workspace, repository=options.repository, listener=screen)
        assert result is not None
        parity = ParityReport.model_validate_json(Path(result.parity).read_text(encoding="utf-8"))
        plan = make_plan(recipe, Path())
        folders = {
            step.stage: options.workspace / "store" / step.stage / step.key[:16] for step in plan.steps if step.key
        }
        texts = list(data_from_artifact(folders["data"]).test.texts[:400])
        timed = measure(
            {
                "PyTorch eager fp16": Target("torch", str(folders["finetune"]), precision="fp16", device="cuda"),
                "PyTorch eager bf16": Target("torch", str(folders["finetune"]), precision="bf16", device="cuda"),
                "PyTorch eager fp32": Target("torch", str(folders["finetune"]), device="cuda"),
                "ONNX fp16 on CUDA": Target("onnxruntime", str(folders["quantize"]), device="cuda"),
                "ONNX fp32 on CUDA": Target("onnxruntime", str(folders["export"]), device="cuda"),
            },
            texts,
            blocks=5,
            listener=screen,
        )
        qlora = load_recipe(options.recipe, [*settings, *QLORA, *options.overrides])
        run_recipe(qlora, workspace=options.workspace, repository=options.repository, until="finetune", listener=screen)
        key = make_plan(qlora, Path()).step("finetune").key
        assert key is not None
        manifest = options.workspace / "store" / "finetune" / key[:16] / "manifest.json"
        learned = json.loads(manifest.read_text(encoding="utf-8"))["info"]
    base = timed["PyTorch eager fp16"].p50_ms
    figures = {
        "gpu": list(gpu_names()),
        "verdict": result.verdict,
        "statement": result.statement,
        "n": parity.n,
        "accuracy_pytorch": parity.reference,
        "accuracy_shipped": parity.candidate,
        "drop_upper_95": parity.drop_upper,
        "flips": parity.flips,
        "checks": {check.check: [check.outcome, check.figure, check.limit] for check in parity.checks},
        "qlora": {name: learned[name] for name in ("metrics", "trainable", "parameters", "device", "precision")},
        "latency": {
            name: {
                "p50_ms": samples.p50_ms,
                "block_medians_ms": samples.p50_range_ms,
                "p99_ms": samples.p99_ms,
                "speedup_over_fp16_eager": base / samples.p50_ms,
            }
            for name, samples in timed.items()
        },
    }
    finish("gpu_check", figures, as_json=options.json, save=True)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
