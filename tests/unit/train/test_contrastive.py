"""The contrastive loss, batches in pairs, and heads that are fitted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import DataError, TrainingError
from deploykit.recipe import Finetune
from deploykit.tasks import find_task
from deploykit.train.contrastive import PairSampler, check_pairs, contrastive_loss, paired_order
from deploykit.train.heads import entry_rows, first_of_each, regression_rows
from deploykit.train.objective import chosen_loss


def unit(rows: list[list[float]]) -> np.ndarray:
    found = np.array(rows, dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def by_hand(vectors: np.ndarray, labels: list[int], temperature: float) -> float:
    """For each row, over those of its label: -log(exp(own) / (exp(own) + the sum over rows of other labels))."""
    costs = []
    for row, label in enumerate(labels):
        others = sum(
            math.exp(vectors[row] @ vectors[other] / temperature)
            for other in range(len(labels))
            if labels[other] != label
        )
        own = [
            math.exp(vectors[row] @ vectors[other] / temperature)
            for other in range(len(labels))
            if labels[other] == label and other != row
        ]
        if own:
            costs.append(sum(-math.log(each / (each + others)) for each in own) / len(own))
    return sum(costs) / len(costs)


def test_the_loss_is_that_of_ranking_against_other_labels() -> None:
    import torch

    vectors = unit([[1, 2, 0], [1, 1.5, 0.5], [1, 2, 0.2], [-1, 0, 1], [0, -1, 1]])
    labels = [0, 0, 0, 1, 2]
    found = contrastive_loss(torch.from_numpy(vectors), torch.tensor(labels), 0.1)
    assert float(found) == pytest.approx(by_hand(vectors, labels, 0.1), rel=1e-5)


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 0]])
def test_without_pairs_or_without_others_it_is_nothing_and_has_a_slope(labels: list[int]) -> None:
    import torch

    vectors = torch.from_numpy(unit([[1, 0], [0, 1], [1, 1]])).requires_grad_()
    loss = contrastive_loss(vectors, torch.tensor(labels), 0.05)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert vectors.grad is not None
    assert torch.isfinite(vectors.grad).all()


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 30)), min_size=1, max_size=80),
    st.integers(2, 16),
    st.integers(0, 3),
)
def test_every_row_comes_once_and_pairs_come_together(rows: list[tuple[int, int]], batch_size: int, seed: int) -> None:
    labels, lengths = [row[0] for row in rows], [row[1] for row in rows]
    order = paired_order(labels, lengths, batch_size, np.random.default_rng(seed)).tolist()
    assert sorted(order) == list(range(len(rows)))
    pairs = sum(labels[a] == labels[b] for a, b in zip(order[::2], order[1::2], strict=False))
    assert pairs >= sum(labels.count(label) // 2 for label in set(labels))


def test_an_epoch_is_ordered_by_its_seed_alone() -> None:
    rows = [{"labels": number % 3, "input_ids": [0] * (number % 5)} for number in range(30)]
    seeds = iter([1, 1, 2])
    sampler = PairSampler(rows, 8, lambda: next(seeds))
    first, again, other = list(sampler), list(sampler), list(sampler)
    assert first == again != other
    assert len(sampler) == 30


def test_rows_that_nothing_can_be_drawn_to_are_refused() -> None:
    with pytest.raises(DataError, match="labels of their own"):
        check_pairs([0, 1, 2])
    check_pairs([0, 1, 1])


def test_texts_stand_for_their_label_and_many_become_means() -> None:
    random = np.random.default_rng(0)
    few = unit([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    rows = entry_rows(few, np.array([1, 0, 1]), seed=0)
    assert rows.shape == (2, 2, 3)
    assert np.allclose(rows[0], [few[1], few[1]])  # one text, said twice
    assert np.allclose(rows[1], [few[0], few[2]])
    centres = unit([[1, 0, 0], [0, 1, 0]])
    many = unit((centres[[0, 1] * 50] + random.normal(0, 0.01, (100, 3))).tolist())
    rows = entry_rows(np.concatenate([many, few[2:]]), np.array([0] * 100 + [1]), seed=0)
    assert rows.shape == (2, 8, 3)
    assert np.allclose(np.linalg.norm(rows, axis=-1), 1, atol=1e-6)
    assert ((rows[0] @ centres.T) > 0.99).any(axis=0).all()


@pytest.mark.parametrize("labels", [2, 5])
def test_a_regression_becomes_a_head(labels: int) -> None:
    from deploykit.tasks.pooling import SCALE

    random = np.random.default_rng(0)
    wanted = np.repeat(np.arange(labels), 20)
    vectors = unit((np.eye(labels, 8)[wanted] + random.normal(0, 0.1, (len(wanted), 8))).tolist())
    weights, bias = regression_rows(vectors, wanted)
    logits = SCALE * vectors @ weights.T + bias
    assert logits.shape == (len(wanted), labels)
    assert (logits.argmax(axis=1) == wanted).all()


def test_the_first_rows_of_each_label_are_few() -> None:
    rows = [{"labels": number % 2} for number in range(40)]
    assert [row["labels"] for row in first_of_each(rows)] == [0, 1] * 8


@pytest.mark.parametrize(
    ("task", "settings", "said"),
    [
        ("token-classification", {"loss": "contrastive"}, "can't be trained by the contrastive"),
        ("retrieval", {"loss": "cross_entropy"}, "can't be trained by the cross_entropy"),
        ("retrieval", {"label_smoothing": 0.1, "r_drop": 1.0}, "label_smoothing, finetune.r_drop"),
        ("retrieval", {"teacher": "large"}, "teacher"),
        ("text-classification", {"epochs": 0}, "nothing is trained in 0 epochs"),
        ("text-classification", {"loss": "contrastive", "strategy": "head"}, "strategy=head"),
    ],
)
def test_what_does_not_go_together_is_refused(task: str, settings: dict[str, object], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        chosen_loss(Finetune(**settings), find_task(task))


def test_auto_is_the_loss_of_the_task() -> None:
    assert chosen_loss(Finetune(), find_task("retrieval")) == "contrastive"
    assert chosen_loss(Finetune(), find_task("text-classification")) == "cross_entropy"
    assert chosen_loss(Finetune(loss="contrastive", epochs=0), find_task("text-classification")) == "contrastive"
