"""Two towers: the loss, the order of rows, the popularity that is added, and a tiny model that learns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import deploykit
from deploykit.data.dataset import LabelledData
from deploykit.data.entries import Entries
from deploykit.errors import TrainingError, UsageError
from deploykit.recipe import Finetune
from deploykit.tasks import find_task
from deploykit.train.finetune import finetune
from deploykit.train.index import index_checkpoint
from deploykit.train.objective import chosen_loss, objective_from_settings
from deploykit.train.towers import popularity_bias, tower_order, tower_rows, towers_loss

TASK = find_task("recommendation")
SETTINGS = Finetune(epochs=4, learning_rate=5e-3, freeze_embeddings=False)


def test_the_loss_holds_a_message_against_the_texts_of_other_entries() -> None:
    import torch

    random = np.random.default_rng(0)
    vectors = random.normal(size=(8, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels, entry = [0, 0, 1, 1, 0, 0, 2, 1], [0, 1, 0, 1, 0, 1, 0, 1]  # the last message lost its text
    costs = []
    for row in (0, 2, 4):
        raised = {other: math.exp(vectors[row] @ vectors[other] / 0.1) for other in (1, 3, 5, 7)}
        others = sum(value for other, value in raised.items() if labels[other] != labels[row])
        own = [value for other, value in raised.items() if labels[other] == labels[row]]
        costs.append(sum(-math.log(value / (value + others)) for value in own) / len(own))
    found = towers_loss(torch.from_numpy(vectors), torch.tensor(labels), torch.tensor(entry), 0.1)
    assert float(found) == pytest.approx(sum(costs) / 3, rel=1e-5)


def test_without_a_pair_the_loss_is_nothing_and_has_a_slope() -> None:
    import torch

    vectors = torch.eye(2).requires_grad_()
    towers_loss(vectors, torch.tensor([0, 1]), torch.tensor([0, 1]), 0.1).backward()
    assert vectors.grad is not None
    assert not vectors.grad.any()


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=200), st.integers(0, 9))
def test_an_epoch_has_every_row_once_and_pairs_together(lengths: list[tuple[int, int]], seed: int) -> None:
    flat = [length for pair in lengths for length in pair]
    order = tower_order(flat, 4, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(flat)))
    assert (order[1::2] == order[::2] + 1).all()
    assert (order[::2] % 2 == 0).all()


def test_each_message_is_followed_by_a_text_of_its_entry() -> None:
    messages = [{"labels": label, "input_ids": [label]} for label in (1, 0, 1, 1, 1, 1)]
    entries = [{"labels": 1, "input_ids": [7]}, {"labels": 0, "input_ids": [8]}, {"labels": 1, "input_ids": [9]}]
    rows = tower_rows(messages, entries, seed=0)
    assert [row["entry"] for row in rows] == [0, 1] * 6
    assert [row["labels"] for row in rows[1::2]] == [row["labels"] for row in rows[::2]]
    assert {tuple(row["input_ids"]) for row in rows[1::2]} == {(7,), (8,), (9,)}


def test_the_bias_is_the_logarithm_of_the_share_in_units_of_the_temperature() -> None:
    found = popularity_bias([0, 0, 0, 1], 3, temperature=0.05)
    assert found.tolist() == pytest.approx([math.log(4 / 7), math.log(2 / 7), math.log(1 / 7)])
    assert popularity_bias([0, 0, 0, 1], 3, temperature=0.1).tolist() == pytest.approx((2 * found).tolist())


@pytest.fixture(scope="module")
def shop(toy_data: LabelledData) -> tuple[LabelledData, Entries]:
    """Toy messages of which one topic is asked for more often, and two texts for each topic."""
    rows = [row for row, label in enumerate(toy_data.train.labels or ()) if label != "login" or row % 4 == 0]
    data = replace(toy_data, train=toy_data.train.take(rows[:200]), validation=toy_data.validation.take(range(48)))
    texts = {"cancel": "order cart", "delivery": "parcel van", "invoice": "bill receipt", "login": "password email"}
    pairs = [(word, label) for label, words in texts.items() for word in (words, words.split()[0])]
    return data, Entries(tuple(text for text, _ in pairs), tuple(label for _, label in pairs), {})


@pytest.fixture(scope="module")
def shopkeeper(
    tiny_checkpoint: Callable[..., Path], shop: tuple[LabelledData, Entries], tmp_path_factory: Any
) -> tuple[Path, Any]:
    """A trained recommender, and how it went."""
    folder, model = tmp_path_factory.mktemp("shop"), tiny_checkpoint("bert", initializer_range=0.05)
    data, entries = shop
    result = finetune(model, data, SETTINGS, TASK, folder / "model", workspace=folder / "work", entries=entries)
    return folder / "model", result


def test_a_model_learns_and_tells_what_popularity_alone_is_worth(
    shopkeeper: tuple[Path, Any], shop: tuple[LabelledData, Entries]
) -> None:
    folder, result = shopkeeper
    assert set(result.metrics) == {"loss", "ndcg@10", "hit_rate@10", "mrr", "popularity_ndcg@10"}
    assert result.metrics["ndcg@10"] > 0.8 > result.metrics["popularity_ndcg@10"]
    assert result.steps == 4 * math.ceil(400 / 32)  # each message with its item
    model = deploykit.load(folder, task="recommendation")
    counts = Counter(shop[0].train.labels)
    expected = [math.log((counts[label] + 1) / 204) for label in sorted(counts)]
    assert model.classifier.bias.tolist()[::2] == pytest.approx(expected, abs=1e-5)


def test_other_items_keep_what_they_are_wanted_and_a_new_one_is_the_least_wanted(
    shopkeeper: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, _ = shopkeeper
    before = deploykit.load(folder, task="recommendation").classifier.bias.tolist()[::2]
    entries = Entries(("gift card", "parcel van", "password"), ("gift", "delivery", "login"), {})
    index_checkpoint(folder, tmp_path, TASK, entries)
    after = deploykit.load(tmp_path, task="recommendation").classifier.bias.tolist()
    assert after == pytest.approx([before[1], min(before), before[3]])  # delivery, gift, login


def test_two_towers_need_entries_and_leave_no_room(
    shop: tuple[LabelledData, Entries], tmp_path: Path, tiny_checkpoint: Any
) -> None:
    with pytest.raises(UsageError, match="entries"):
        finetune(tiny_checkpoint("bert"), shop[0], SETTINGS, TASK, tmp_path / "model", workspace=tmp_path / "work")
    assert chosen_loss(Finetune(), TASK) == "two_towers"
    with pytest.raises(TrainingError, match="two_towers loss leaves no room for"):
        chosen_loss(Finetune(focal_gamma=2.0), TASK)
    with pytest.raises(TrainingError, match="begins with the head alone"):
        chosen_loss(Finetune(strategy="gradual"), TASK)
    with pytest.raises(TrainingError, match="no other entries"):
        objective_from_settings(Finetune(batch_size=2), TASK, [], (), "two_towers")
    with pytest.raises(TrainingError, match="can't be trained"):
        chosen_loss(Finetune(loss="two_towers"), find_task("text-classification"))
