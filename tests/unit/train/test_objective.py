"""What a batch costs, against the formulas, and what it does to a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from deploykit.errors import ModelError, TrainingError
from deploykit.recipe import Finetune
from deploykit.tasks import find_task
from deploykit.tasks.base import Section
from deploykit.train.finetune import finetune
from deploykit.train.lesson import Lesson, lesson_from_teacher
from deploykit.train.objective import Objective, class_weights

TASK = find_task("text-classification")


class Linear(torch.nn.Module):
    """Logits from embeddings, with dropout where it is trained."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(10, 6)
        self.head = torch.nn.Linear(6, 3)
        self.drop = torch.nn.Dropout(dropout)

    def get_input_embeddings(self) -> Any:
        return self.table

    def forward(self, input_ids: Any) -> Any:
        return {"logits": self.head(self.drop(self.table(input_ids)).mean(dim=1))}


BATCH = {"input_ids": torch.arange(20).reshape(4, 5) % 10, "labels": torch.tensor([0, 1, 2, 1])}


def logits() -> torch.Tensor:
    found: torch.Tensor = Linear()(BATCH["input_ids"])["logits"]
    return found


def test_class_weights_are_those_of_the_loss() -> None:
    weights = np.array([1.0, 2.0, 0.5], np.float32)
    found, _ = Objective("logits", weights).loss(Linear().train(), BATCH)
    assert found.item() == pytest.approx(
        functional.cross_entropy(logits(), BATCH["labels"], weight=torch.from_numpy(weights)).item(), rel=1e-6
    )


def test_balanced_weights_let_all_classes_count_alike() -> None:
    rows = [{"labels": label} for label in [0] * 6 + [1] * 2 + [3] * 4]
    weights = class_weights(rows, 4)
    assert weights.tolist() == pytest.approx([12 / 18, 12 / 6, 1.0, 12 / 12])
    assert class_weights([{"labels": [-100, 0, 0, 1, -100]}], 2).tolist() == pytest.approx([0.75, 1.5])


SECTIONS = (Section(0, 3, True, 0.25), Section(3, 5, False))
"""Three tags by token, two classes by message."""


class Given(torch.nn.Module):
    """Says what it was made with, whatever it is asked."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, **_: Any) -> Any:
        return {"logits": self.values}


def test_of_sections_the_costs_are_added_each_over_its_own_columns_and_rows() -> None:
    torch.manual_seed(0)
    values, labels = torch.randn(2, 4, 5), torch.tensor([[4, 0, -100, 2], [3, 1, 1, -100]])
    batch = {"labels": labels}

    def cost(logits: torch.Tensor, **settings: Any) -> float:
        found, _ = Objective("logits", sections=SECTIONS, **settings).loss(Given(logits).train(), batch)
        return float(found)

    tags = functional.cross_entropy(values[..., :3][:, 1:].flatten(0, 1), labels[:, 1:].flatten())
    classes = functional.cross_entropy(values[:, 0, 3:], labels[:, 0] - 3)
    assert cost(values) == pytest.approx(float(0.25 * tags + classes), rel=1e-6)
    moved = values.clone()
    moved[:, 1:, 3:] += 100  # classes of tokens that say nothing about the message
    moved[:, 0, :3] -= 100
    assert cost(moved) == pytest.approx(cost(values), rel=1e-6)
    assert not Objective("logits", sections=SECTIONS).plain, "the model's own loss would mix the columns"
    twice = Given(torch.cat([values, values])).train()
    found, _ = Objective("logits", r_drop=1.0, sections=SECTIONS).loss(twice, batch)
    assert float(found) == pytest.approx(cost(values), rel=1e-6), "both passes agree"


def test_balanced_weights_are_among_the_classes_of_a_section() -> None:
    rows = [{"labels": [3, 0, 0, 1]}, {"labels": [3, 0, 2, -100]}, {"labels": [4, 0, 0, 0]}]
    weights = class_weights(rows, 5, SECTIONS)
    assert weights.tolist() == pytest.approx([8 / (3 * 6), 8 / 3, 8 / 3, 3 / (2 * 2), 3 / 2])


def test_the_focal_loss_is_that_of_the_paper() -> None:
    found, _ = Objective("logits", gamma=2.0).loss(Linear().train(), BATCH)
    sure = functional.softmax(logits(), dim=-1).gather(1, BATCH["labels"][:, None])[:, 0]
    assert found.item() == pytest.approx((-((1 - sure) ** 2) * sure.log()).mean().item(), rel=1e-5)


def test_without_dropout_r_drop_is_cross_entropy() -> None:
    found, _ = Objective("logits", r_drop=5.0).loss(Linear().train(), BATCH)
    assert found.item() == pytest.approx(functional.cross_entropy(logits(), BATCH["labels"]).item(), abs=1e-6)


def test_with_dropout_two_passes_are_drawn_together() -> None:
    model = Linear(dropout=0.5).train()
    torch.manual_seed(1)
    apart, _ = Objective("logits", r_drop=5.0).loss(model, BATCH)
    torch.manual_seed(1)
    alone, _ = Objective("logits", r_drop=1e-9).loss(model, BATCH)
    assert apart.item() > alone.item()


def test_an_adversarial_step_raises_the_loss_by_its_length() -> None:
    model = Linear().train()
    plain = functional.cross_entropy(logits(), BATCH["labels"]).item()
    costs = [Objective("logits", adversarial=length).loss(model, BATCH)[0].item() for length in (0.1, 1.0, 3.0)]
    assert plain < costs[0] < costs[1] < costs[2]
    # To first order by the step along the slope of each message's loss.
    vectors = model.table(BATCH["input_ids"]).detach().requires_grad_()
    cost = functional.cross_entropy(model.head(vectors.mean(dim=1)), BATCH["labels"])
    slope = torch.autograd.grad(cost, vectors)[0].flatten(1).norm(dim=1).sum().item()
    small, _ = Objective("logits", adversarial=1e-3).loss(model, BATCH)
    assert 2 * (small.item() - plain) == pytest.approx(1e-3 * slope, rel=0.02)


def test_a_frozen_table_is_attacked_too() -> None:
    model = Linear().train()
    model.table.weight.requires_grad = False
    loss, _ = Objective("logits", adversarial=1.0).loss(model, BATCH)
    loss.backward()
    assert model.head.weight.grad is not None
    assert model.table.weight.grad is None


def test_evaluation_is_cross_entropy_alone() -> None:
    model = Linear(dropout=0.5).eval()
    found, _ = Objective("logits", r_drop=5.0, adversarial=3.0).loss(model, BATCH)
    assert found.item() == pytest.approx(functional.cross_entropy(logits(), BATCH["labels"]).item(), rel=1e-6)


def test_padding_of_a_task_by_token_does_not_count() -> None:
    labels = torch.tensor([[0, 1, -100], [2, -100, -100]])
    values = torch.randn(2, 3, 4)
    outer = type("Model", (), {"training": False, "__call__": lambda self, **_: {"logits": values}})()
    for gamma in (0.0, 2.0):
        found, _ = Objective("logits", gamma=gamma).loss(outer, {"labels": labels})
        kept = values[labels != -100], labels[labels != -100]
        sure = functional.softmax(kept[0], dim=-1).gather(1, kept[1][:, None])[:, 0]
        assert found.item() == pytest.approx((-((1 - sure) ** gamma) * sure.log()).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"class_weights": "balanced"}, {"focal_gamma": 2.0}, {"r_drop": 1.0}, {"adversarial": 0.05},
        {"r_drop": 1.0, "adversarial": 0.05, "label_smoothing": 0.1},
        {"augment": ("typos", "word_dropout", "synonyms"), "augment_copies": 2},
    ],
    ids=str,
)  # fmt: skip
def test_a_model_learns_with_each(
    settings: dict[str, Any], tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path: Path
) -> None:
    rows = toy_data.train.take(range(256))
    data = replace(toy_data, train=rows)
    chosen = Finetune(epochs=6, batch_size=16, learning_rate=5e-3, freeze_embeddings=False, **settings)
    model = tiny_checkpoint("bert", num_hidden_layers=1, initializer_range=0.05)
    result = finetune(model, data, chosen, TASK, tmp_path / "out", workspace=tmp_path / "work")
    assert result.metrics["accuracy"] > 0.5
    copies = 1 + chosen.augment_copies if chosen.augment else 1
    assert result.steps == 6 * 256 * copies // 16


def test_a_larger_teacher_is_learned_from(
    trained: Path, tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path: Path
) -> None:
    data = replace(toy_data, train=toy_data.train.take(range(256)))
    model = tiny_checkpoint("bert", num_hidden_layers=1, initializer_range=0.05)
    settings = Finetune(
        epochs=8, batch_size=16, learning_rate=5e-3, freeze_embeddings=False, teacher=str(trained), teacher_weight=1.0
    )
    lesson = lesson_from_teacher(settings, trained, model, data.label_names)
    # Labels that say nothing: what is learned, the teacher has said.
    silent = replace(data.train, labels=(data.label_names[0],) * 256)
    result = finetune(
        model, replace(data, train=silent), settings, TASK, tmp_path / "out", workspace=tmp_path / "work", lesson=lesson
    )
    assert result.metrics["accuracy"] > 0.5


def test_a_teacher_of_other_pieces_or_labels_is_refused(
    trained: Path, tiny_checkpoint: Callable[..., Path], toy_data: Any
) -> None:
    settings = Finetune(teacher=str(trained))
    with pytest.raises(ModelError, match="other pieces"):
        lesson_from_teacher(settings, trained, tiny_checkpoint("roberta"), toy_data.label_names)
    with pytest.raises(ModelError, match="4 labels"):
        lesson_from_teacher(settings, trained, tiny_checkpoint("bert"), ("a", "b"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"loss": "contrastive"}, "leaves no room for finetune.teacher"), ({"epochs": 0}, "nothing is trained")],
)
def test_a_teacher_nobody_would_learn_from_is_refused(
    settings: dict[str, Any], words: str, trained: Path, toy_data: Any, tmp_path: Path
) -> None:
    asked = Finetune(teacher=str(trained), **settings)
    with pytest.raises(TrainingError, match=words):
        finetune(trained, toy_data, asked, TASK, tmp_path / "out", workspace=tmp_path / "work", lesson=Lesson(trained))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"teacher": "folder", "r_drop": 1.0}, "leave no room for r_drop"),
        ({"adversarial": 1.0, "gradient_checkpointing": True}, "use one"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Finetune(**settings)
