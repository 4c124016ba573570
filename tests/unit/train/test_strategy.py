"""What is trained, and how fast: parts of a model, adapters that are merged, layers that thaw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from deploykit.errors import MissingDependencyError, TrainingError
from deploykit.recipe import Finetune
from deploykit.runners import Target, infer_all, open_runner
from deploykit.tasks import find_task
from deploykit.train import strategy
from deploykit.train.finetune import FinetuneResult, finetune
from deploykit.train.strategy import ADAPTERS, freeze, layer_rates, stack_depth, unfreezing

TASK = find_task("text-classification")
KINDS = ("bert", "distilbert", "roberta")


@pytest.fixture
def train(
    tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path: Path
) -> Callable[..., tuple[FinetuneResult, Path, Path]]:
    """Trains a tiny model for a moment; its result, where it came from, and where it lies."""

    def call(kind: str = "bert", **settings: Any) -> tuple[FinetuneResult, Path, Path]:
        rows, validation = toy_data.train.take(range(96)), toy_data.validation.take(range(32))
        source = tiny_checkpoint(kind, initializer_range=0.05)
        chosen = Finetune(**{"epochs": 2, "batch_size": 16, "learning_rate": 5e-3, **settings})
        data = replace(toy_data, train=rows, validation=validation, test=validation)
        out = tmp_path / f"out-{kind}"
        return finetune(source, data, chosen, TASK, out, workspace=tmp_path / f"work-{kind}"), source, out

    return call


def changed(source: Path, out: Path) -> set[str]:
    """The weights that training changed, of those that were there."""
    before, after = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    shared = before.keys() & after.keys()
    assert len(shared) > 10
    return {name for name in shared if not np.array_equal(before[name], after[name])}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_trained_and_merged(name: str, train: Callable[..., Any]) -> None:
    result, source, out = train(strategy=name)
    assert 0 < result.trainable < result.parameters
    assert not any("lora" in each or "base_layer" in each for each in load_file(out / "model.safetensors"))
    names = changed(source, out)
    assert any("layer.0" in each or "layer.1" in each for each in names), "the encoder did not change"
    assert not any("embeddings.word" in each for each in names)
    # What lies on disk computes what was measured.
    with open_runner(Target("torch", str(out))) as runner:
        assert np.isfinite(infer_all(runner, ["where is my parcel"], [[0]])["logits"]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_adapters_fit_other_encoders(name: str, kind: str, train: Callable[..., Any]) -> None:
    result, source, out = train(kind, strategy=name, epochs=1)
    assert result.trainable < result.parameters
    assert changed(source, out)


def test_lora_learns(trained: Path, toy_data: Any, tmp_path: Path) -> None:
    """A model that knows the words learns from it which of two kinds a message is of."""
    two = {"cancel": "stay", "delivery": "go", "invoice": "stay", "login": "go"}
    parts = {
        name: replace(table, labels=tuple(two[label] for label in table.labels))
        for name, table in (("train", toy_data.train.take(range(256))), ("validation", toy_data.validation))
    }
    data = replace(toy_data, **parts, test=parts["validation"], label_names=("go", "stay"))
    settings = Finetune(epochs=6, batch_size=16, learning_rate=1e-2, strategy="lora")
    result = finetune(trained, data, settings, TASK, tmp_path / "out", workspace=tmp_path / "work")
    assert result.metrics["accuracy"] > 0.9
    assert result.trainable < result.parameters / 3


def test_a_merged_adapter_answers_as_it_did_in_training(
    train: Callable[..., Any], toy_data: Any, accuracy_on_disk: Callable[..., float]
) -> None:
    result, _, out = train(strategy="lora", epochs=6)
    found = accuracy_on_disk(out, toy_data.validation.take(range(32)), toy_data.label_names)
    assert found == pytest.approx(result.metrics["accuracy"])


def test_adapters_need_peft(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategy.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="needs peft"):
        train(strategy="lora")


def test_the_upper_layers_alone(train: Callable[..., Any]) -> None:
    _, source, out = train(strategy="last_layers", trained_layers=1)
    names = changed(source, out)
    assert any("layer.1." in name for name in names)
    assert not any("layer.0." in name or "embeddings" in name for name in names)


def test_more_layers_than_there_are_is_an_error(train: Callable[..., Any]) -> None:
    with pytest.raises(TrainingError, match="the model has 2"):
        train(strategy="last_layers", trained_layers=3)


def test_biases_alone(train: Callable[..., Any]) -> None:
    _, source, out = train(strategy="bias")
    names = changed(source, out)
    assert names > {"classifier.weight"}
    assert all(name.endswith("bias") for name in names - {"classifier.weight"})


def test_normalizations_alone(train: Callable[..., Any]) -> None:
    _, source, out = train(strategy="layer_norm")
    names = changed(source, out)
    assert any("layer.0" in name for name in names)
    assert all("LayerNorm" in name or "classifier" in name for name in names)


def test_all_layers_thaw_in_turn(tiny_checkpoint: Callable[..., Path], train: Callable[..., Any]) -> None:
    network = TASK.load_model(tiny_checkpoint("bert", num_hidden_layers=3), ("a", "b"))
    settings = Finetune(strategy="gradual")
    freeze(network, settings)
    callback = unfreezing(network, settings, total_steps=16)

    class State:
        global_step = 0

    seen = []
    for State.global_step in range(17):
        callback.on_step_begin(None, State, None)
        trained = {name for name, value in network.named_parameters() if value.requires_grad}
        seen.append(sum(any(f"layer.{layer}." in name for name in trained) for layer in range(3)))
        assert any("classifier" in name for name in trained)
        assert not any("embeddings" in name for name in trained)
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert seen[8:] == [3] * 9
    _, source, out = train(strategy="gradual", epochs=3)
    assert any("layer.0." in name for name in changed(source, out))


@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_learns_slower_than_the_one_above(kind: str, tiny_checkpoint: Callable[..., Path]) -> None:
    network = TASK.load_model(tiny_checkpoint(kind, num_hidden_layers=3), ("a", "b"))
    settings = Finetune(layer_decay=0.5, learning_rate=1e-3, freeze_embeddings=False)
    freeze(network, settings)
    groups = layer_rates(network, settings)
    assert groups is not None
    rates = {value: group["lr"] for group in groups for value in group["params"]}
    by_name = {name: rates[value] for name, value in network.named_parameters()}
    assert len(by_name) == len(list(network.named_parameters()))
    assert stack_depth(network) == 3
    for name, rate in by_name.items():
        layer = next((number for number in range(3) if f"layer.{number}." in name), None)
        height = layer + 1 if layer is not None else 0 if "embeddings" in name else 4
        assert rate == pytest.approx(1e-3 * 0.5 ** (4 - height)), name
    plain = {value for group in groups if not group["weight_decay"] for value in group["params"]}
    assert all(value in plain for name, value in network.named_parameters() if name.endswith("bias"))


def test_a_decay_of_rates_trains_the_same_parameters(train: Callable[..., Any]) -> None:
    result, source, out = train(layer_decay=0.7)
    names = changed(source, out)
    assert any("layer.0." in name for name in names)
    assert any("layer.1." in name for name in names)
    frozen = sum(value.size for name, value in load_file(out / "model.safetensors").items() if "embeddings" in name)
    assert result.trainable == result.parameters - frozen


def test_the_factors_of_adalora_are_drawn_to_orthogonal(tiny_checkpoint: Callable[..., Path]) -> None:
    network = TASK.load_model(tiny_checkpoint("bert"), ("a", "b"))
    adapter = strategy.adapt(network, Finetune(strategy="adalora"), 100)
    before = adapter.penalty().item()
    optimizer = torch.optim.SGD([value for value in network.parameters() if value.requires_grad], lr=0.05)
    for _ in range(50):
        optimizer.zero_grad()
        adapter.penalty().backward()
        optimizer.step()
    assert 0 < adapter.penalty().item() < before
