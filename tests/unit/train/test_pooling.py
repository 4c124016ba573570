"""What the head of a classification reads, and what it begins as, on tiny encoders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import deploykit
from deploykit.data.dataset import LabelledData
from deploykit.errors import ModelError, TrainingError
from deploykit.recipe import Finetune, Pretrain
from deploykit.tasks import find_task
from deploykit.tasks.pooling import is_sentence_model, pooled_by_mean
from deploykit.train.finetune import finetune
from deploykit.train.heads import begin_with_regression
from deploykit.train.pretrain import pretrain

CLASSES = find_task("text-classification")
HARDLY = Finetune(epochs=0.1, learning_rate=1e-9, batch_size=64)
"""So little training that what comes of it is what it began as."""


@pytest.fixture
def comparing(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """An encoder without a head that says, as sentence-transformers does, that it compares means."""
    return says(Path(shutil.copytree(tiny_checkpoint("bert", initializer_range=0.05), tmp_path / "encoder")),
                {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})  # fmt: skip


def says(folder: Path, pooling: dict[str, Any]) -> Path:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("said", "mean"),
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, True),
        ({"pooling_mode": "mean"}, True),
        ({"pooling_mode": "cls"}, False),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, False),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, False),  # both, one behind the other
        ({"pooling_mode_mean_tokens": True, "include_prompt": True}, True),
        ({}, False),
    ],
)
def test_a_model_says_what_it_compares(said: dict[str, Any], mean: bool, tmp_path: Path) -> None:
    assert pooled_by_mean(says(tmp_path, said)) is mean
    assert not pooled_by_mean(tmp_path / "1_Pooling")


@pytest.mark.parametrize("said", ["{", "[]", "\udcff"])
def test_what_can_not_be_read_is_said(said: str, tmp_path: Path) -> None:
    says(tmp_path, {})
    (tmp_path / "1_Pooling/config.json").write_bytes(said.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match="damaged"):
        pooled_by_mean(tmp_path)


def test_a_head_that_reads_means_begins_as_a_regression(
    comparing: Path, toy_data: LabelledData, tmp_path: Path
) -> None:
    reached = {}
    for pooling in ("auto", "own"):
        settings = HARDLY.model_copy(update={"pooling": pooling})
        out = tmp_path / pooling
        result = finetune(comparing, toy_data, settings, CLASSES, out, workspace=tmp_path / f"{pooling}-work")
        reached[pooling] = result.metrics["accuracy"]
        assert is_sentence_model(out) is (pooling == "auto")
    assert reached["auto"] > 0.45  # by chance 0.25
    assert reached["own"] < 0.4


def test_a_head_that_has_learned_stays(comparing: Path, toy_data: LabelledData, tmp_path: Path) -> None:
    import torch

    first, second = tmp_path / "first", tmp_path / "second"
    settings = Finetune(epochs=1, learning_rate=5e-3)
    finetune(comparing, toy_data, settings, CLASSES, first, workspace=tmp_path / "work")
    finetune(first, toy_data, HARDLY, CLASSES, second, workspace=tmp_path / "more")
    before, after = (deploykit.load(folder).classifier.weight for folder in (first, second))
    assert torch.allclose(before, after, atol=1e-4)


def test_a_label_that_no_row_has_leaves_the_head_random(comparing: Path) -> None:
    import torch

    network: Any = CLASSES.load_model(comparing, ("a", "b", "c"), pooling="mean")
    before = network.classifier.weight.clone()
    rows = [{"input_ids": [1, 5, 2], "attention_mask": [1, 1, 1], "labels": label} for label in (0, 1, 0, 1)]
    assert begin_with_regression(network, rows, lambda batch: batch, CLASSES, seed=0) == 0
    assert torch.equal(network.classifier.weight, before)


def test_what_a_model_compares_outlives_its_pretraining(
    comparing: Path, toy_data: LabelledData, tmp_path: Path
) -> None:
    texts = list(toy_data.train.texts[:64])
    pretrain(comparing, texts, texts[:8], Pretrain(epochs=1), tmp_path / "out", workspace=tmp_path / "work")
    assert pooled_by_mean(tmp_path / "out")


@pytest.mark.parametrize(
    ("task", "settings", "reason"),
    [
        ("multi-label-classification", {"pooling": "mean"}, "does not read a mean"),
        ("text-classification", {"pooling": "own", "loss": "contrastive"}, "compares means"),
        ("retrieval", {"pooling": "own"}, "compares means"),
    ],
)
def test_what_can_not_be_is_refused(
    task: str, settings: dict[str, Any], reason: str, comparing: Path, toy_data: LabelledData, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=reason):
        finetune(comparing, toy_data, Finetune(**settings), find_task(task), tmp_path / "out", workspace=tmp_path / "w")
