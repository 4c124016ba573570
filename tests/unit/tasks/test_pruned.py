"""Cut models compute what they say, of every kind; what is saved loads back and can be trained and exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deploykit
from deploykit.errors import ModelError
from deploykit.runners.tokenize import Encoder
from deploykit.tasks import find_task
from deploykit.tasks.pruned import (
    PLAN_KEY,
    LayerPlan,
    PruningPlan,
    check_prunable,
    cut,
    encoder_layers,
    head_size,
    heads_fixed,
)

TASK = find_task("text-classification")
KINDS = ("bert", "distilbert", "roberta", "xlm-roberta", "electra", "mpnet")
MESSAGES = ["where is my parcel", "cancel it", "my card was charged twice, please help me"]


def answers(model: Any, folder: Path) -> np.ndarray:
    batch = {name: torch.from_numpy(values) for name, values in Encoder(folder).encode(MESSAGES).items()}
    with torch.inference_mode():
        return np.asarray(model.eval()(**batch).logits.numpy())


def saved(model: Any, source: Path, out: Path) -> Path:
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    model.save_pretrained(out)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_gone_is_what_would_have_been_zero(
    kind: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = tiny_checkpoint(kind)
    whole, small = TASK.load_model(source), TASK.load_model(source)
    heads = (0, 1, 2, 3) if heads_fixed(whole) else (0, 2)
    columns = tuple(range(0, 64, 2))
    size = head_size(whole)
    for layer in encoder_layers(whole):
        gone_heads = [h * size + part for h in range(4) if h not in heads for part in range(size)]
        layer.linear(layer.output).weight.data[:, gone_heads] = 0
        layer.linear(layer.narrow).weight.data[:, 1::2] = 0
    cut(small, PruningPlan(tuple(LayerPlan(number, heads, columns) for number in range(2))))
    expected = answers(whole, source)
    assert np.allclose(answers(small, source), expected, atol=1e-5)
    folder = saved(small, source, tmp_path / "small")
    back = TASK.load_model(folder)
    assert np.allclose(answers(back, folder), expected, atol=1e-5)
    assert sum(p.numel() for p in back.parameters()) < sum(p.numel() for p in whole.parameters())
    assert type(back).__name__ == type(whole).__name__


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_differ_load_back(kind: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny_checkpoint(kind)
    small = TASK.load_model(source)
    heads = (0, 1, 2, 3) if heads_fixed(small) else (1, 2, 3)
    cut(small, PruningPlan((LayerPlan(0, heads, tuple(range(40))), LayerPlan(1, (0, 1, 2, 3), (3, 5)))))
    expected = answers(small, source)
    folder = saved(small, source, tmp_path / "small")
    assert np.allclose(answers(deploykit.load(folder), folder), expected, atol=1e-5)
    assert PLAN_KEY in json.loads((folder / "config.json").read_text())
    back = TASK.load_model(folder, attn_implementation="eager")
    assert np.allclose(answers(back, folder), expected, atol=1e-5)
    again = saved(back, source, tmp_path / "again")
    assert np.allclose(answers(TASK.load_model(again), again), expected, atol=1e-5)


def test_equal_layers_with_all_heads_need_no_deploykit_to_load(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    source = tiny_checkpoint("bert")
    small = TASK.load_model(source)
    cut(small, PruningPlan((LayerPlan(1, (0, 1, 2, 3), tuple(range(32))),)))
    folder = saved(small, source, tmp_path / "small")
    back = AutoModelForSequenceClassification.from_pretrained(folder)
    assert (back.config.num_hidden_layers, back.config.intermediate_size) == (1, 32)
    assert np.allclose(answers(back, folder), answers(small, source), atol=1e-5)


def test_a_dropped_layer_is_not_there(tiny_checkpoint: Callable[..., Path]) -> None:
    source = tiny_checkpoint("bert")
    small = TASK.load_model(source)
    cut(small, PruningPlan((LayerPlan(1, (0, 1, 2, 3), tuple(range(64))),)))
    assert len(encoder_layers(small)) == 1
    assert not np.allclose(answers(small, source), answers(TASK.load_model(source), source), atol=1e-3)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (PruningPlan((LayerPlan(2, (0,), (0,)),)), "layer 2"),
        (PruningPlan((LayerPlan(0, (4,), (0,)),)), "has not"),
        (PruningPlan((LayerPlan(0, (0,), (64,)),)), "has not"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    plan: PruningPlan, message: str, tiny_checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(ModelError, match=message):
        cut(TASK.load_model(tiny_checkpoint("bert")), plan)


def test_a_bias_shared_by_the_heads_keeps_them_all(tiny_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="bias by distance"):
        cut(TASK.load_model(tiny_checkpoint("mpnet")), PruningPlan((LayerPlan(0, (0,), (0,)),)))


def test_an_empty_plan_is_none() -> None:
    with pytest.raises(ValueError, match="must stay"):
        PruningPlan(())
    with pytest.raises(ValueError, match="must stay"):
        PruningPlan((LayerPlan(0, (), (1,)),))


def test_another_kind_of_model_is_refused_by_its_name() -> None:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    model = GPT2ForSequenceClassification(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=8))
    with pytest.raises(ModelError, match="gpt2 can't be pruned"):
        encoder_layers(model)


@pytest.mark.parametrize("damage", ["nonsense", {"layers": [{"heads": 2}]}, {"layers": [{"heads": 2, "columns": 4}]}])
def test_a_damaged_plan_is_said(damage: object, tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint("bert"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {PLAN_KEY: damage}))
    with pytest.raises(ModelError):
        TASK.load_model(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_can_be_pruned_is_known_by_its_config(
    kind: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((tiny_checkpoint(kind) / "config.json").read_text())
    check_prunable(tmp_path)


def test_one_that_can_not_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_embd": 32, "n_head": 2, "n_layer": 1, "vocab_size": 20}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="gpt2 can't be pruned"):
        check_prunable(tmp_path)
