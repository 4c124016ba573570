"""QLoRA on a CPU: the base is stored in few bits while LoRA trains, and what is saved is a plain checkpoint."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification

from deploykit.errors import MissingDependencyError, TrainingError
from deploykit.recipe import Finetune
from deploykit.runners import Target, infer_all, open_runner
from deploykit.tasks import find_task
from deploykit.train.base_bits import in_full
from deploykit.train.finetune import FinetuneResult, finetune
from deploykit.train.strategy import adapt, freeze

TASK = find_task("text-classification")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes, which 'deploykit[gpu]' brings"
)


@pytest.fixture
def train(tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path: Path) -> Callable[..., Any]:
    def call(out: str = "out", **settings: Any) -> tuple[FinetuneResult, Path, Path]:
        rows, validation = toy_data.train.take(range(64)), toy_data.validation.take(range(32))
        data = replace(toy_data, train=rows, validation=validation, test=validation)
        source = tiny_checkpoint("bert", initializer_range=0.05, hidden_size=64, intermediate_size=128)
        chosen = Finetune(**{"epochs": 2, "batch_size": 16, "learning_rate": 1e-2, "strategy": "lora", **settings})
        result = finetune(source, data, chosen, TASK, tmp_path / out, workspace=tmp_path / f"{out}-work")
        return result, source, tmp_path / out

    return call


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_what_is_saved_is_plain_and_answers_as_it_was_trained(
    kind: str, train: Callable[..., Any], toy_data: Any
) -> None:
    result, source, out = train(quantized_base=kind)
    before, after = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    assert set(before) == set(after)
    assert all(value.dtype == np.float32 and value.shape == before[name].shape for name, value in after.items())
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert not np.array_equal(before[name], after[name])
    assert result.parameters > sum(value.size for value in before.values()), "the adapter's beside the base's"
    assert result.trainable < result.parameters / 2
    plain = AutoModelForSequenceClassification.from_pretrained(out)
    assert not hasattr(plain.config, "quantization_config")
    validation = toy_data.validation.take(range(32))
    with open_runner(Target("torch", str(out))) as runner:
        outputs = infer_all(runner, list(validation.texts), [[index] for index in range(32)])
    right = TASK.right_answers(validation.labels, toy_data.label_names)
    scores = TASK.scores(TASK.answers(outputs, toy_data.label_names), right)
    # int8 rounds activations too while it trains, and the last digits may turn an answer.
    assert scores.value == pytest.approx(result.metrics["accuracy"], abs=0.04 if kind == "int8" else 1e-6)


@needs_bitsandbytes
@pytest.mark.parametrize(("kind", "step"), [("nf4", 0.2), ("int8", 0.01)])
def test_the_base_is_written_out_as_it_was_rounded(
    kind: str, step: float, tiny_checkpoint: Callable[..., Path]
) -> None:
    """Before a step LoRA adds nothing: the written weights are the stored ones, near the first and not the first."""
    network = TASK.load_model(tiny_checkpoint("bert", hidden_size=64, intermediate_size=128), ("a", "b")).eval()
    name = "bert.encoder.layer.1.output.dense"
    first = network.get_submodule(name).weight.detach().clone()
    settings = Finetune(strategy="lora", quantized_base=kind)
    freeze(network, settings)
    adapter = adapt(network, settings, 10)
    batch = {"input_ids": torch.arange(5, 17).view(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.int64)}
    with torch.inference_mode():
        stored = network(**batch).logits
    found = in_full(network)
    assert adapter.in_bits
    written = found.get_submodule(name)
    assert type(written) is torch.nn.Linear
    distance = (written.weight - first).abs().max() / first.abs().max()
    assert 0 < distance < step
    with torch.inference_mode():
        assert (found(**batch).logits - stored).abs().max() < 0.05 * stored.abs().max()


@needs_bitsandbytes
def test_an_interrupted_training_goes_on(train: Callable[..., Any], tmp_path: Path) -> None:
    first, _, _ = train(quantized_base="nf4")
    newest = max((tmp_path / "out-work").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    newest.rename(tmp_path / "gone")
    second, _, _ = train(quantized_base="nf4")
    assert (first.resumed_from, second.resumed_from) == (0, 4)
    assert second.metrics["loss"] == pytest.approx(first.metrics["loss"], rel=1e-4)


@needs_bitsandbytes
def test_the_optimizer_of_eight_bits_learns_on_a_cpu(train: Callable[..., Any]) -> None:
    result, source, out = train(strategy="full", optimizer="adamw_8bit", learning_rate=1e-3)
    before, after = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    assert np.isfinite(result.metrics["loss"])


@needs_bitsandbytes
@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_the_paged_optimizer_needs_a_gpu(train: Callable[..., Any]) -> None:
    with pytest.raises(TrainingError, match="there is none"):
        train(optimizer="paged_adamw_8bit")


def test_stored_weights_need_bitsandbytes(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest)
    )
    with pytest.raises(MissingDependencyError, match="needs bitsandbytes"):
        train(quantized_base="nf4")


def test_stored_weights_are_for_lora() -> None:
    with pytest.raises(ValidationError, match="is for strategy: lora"):
        Finetune(quantized_base="nf4")
