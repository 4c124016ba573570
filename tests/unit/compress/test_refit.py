"""Output matrices fitted again bring a cut model nearer to the whole one, and leave an uncut one as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deploykit.compress.calibrate import candidates, divergence, pruned_copy
from deploykit.compress.refit import refit
from deploykit.runners.tokenize import Encoder
from deploykit.tasks import find_task
from deploykit.tasks.pruned import LayerPlan, PruningPlan, encoder_layers

TASK = find_task("text-classification")


def batches(folder: Path, texts: Any) -> list[dict[str, torch.Tensor]]:
    encoder = Encoder(folder)
    return [
        {name: torch.from_numpy(values) for name, values in encoder.encode(list(texts[start : start + 16])).items()}
        for start in range(0, len(texts), 16)
    ]


def answered(model: Any, seen: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [model.eval()(**batch).logits for batch in seen]


@pytest.mark.parametrize("choice", [[(4, 32), None], [None, (4, 64)], [(4, 64), None]])
def test_a_cut_model_comes_nearer(choice: Any, trained: Path, toy_data: Any) -> None:
    model = TASK.load_model(trained).eval()
    seen, unseen = batches(trained, toy_data.train.texts[:200]), batches(trained, toy_data.validation.texts)
    small, plan = pruned_copy(model, candidates(model, seen, heads=[4], columns=[32, 64]), choice)
    wanted = answered(model, unseen)
    before = divergence(small, unseen, wanted, TASK)
    refit(model, small, plan, seen)
    assert divergence(small, unseen, wanted, TASK) < 0.7 * before


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "mpnet"])
def test_an_uncut_model_stays_as_it_is(kind: str, tiny_checkpoint: Callable[..., Path], toy_data: Any) -> None:
    folder = tiny_checkpoint(kind)
    model, same = TASK.load_model(folder).eval(), TASK.load_model(folder).eval()
    shapes = [layer.shape for layer in encoder_layers(model)]
    plan = PruningPlan(tuple(LayerPlan(n, tuple(range(h)), tuple(range(c))) for n, (h, c) in enumerate(shapes)))
    seen = batches(folder, toy_data.train.texts[:48])
    refit(model, same, plan, seen)
    for ours, theirs in zip(answered(model, seen), answered(same, seen), strict=True):
        assert torch.allclose(ours, theirs, atol=0.02)
