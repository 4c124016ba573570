"""Retrieval: sentence models that save, load, prune and export, answers with scores, recall, and what is served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import deploykit
from deploykit.errors import DataError, ModelError
from deploykit.tasks import find_task, task_of_outputs
from deploykit.tasks.pooling import SCALE
from deploykit.tasks.retrieval import Retrieved, ranks

TASK = find_task("retrieval")
NAMES = ("cancel", "refund", "track")


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "mpnet", "electra"])
def test_an_encoder_becomes_a_sentence_model_that_saves_and_loads(
    kind: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    import torch

    model: Any = TASK.load_model(tiny_checkpoint(kind, head="MaskedLM"), NAMES, dtype=torch.float32).eval()
    rows = torch.nn.functional.normalize(torch.randn(3, 2, 32), dim=-1)
    model.set_head(rows)
    ids = torch.tensor([[3, 7, 9, 11, 4], [3, 8, 4, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    expected = model(ids, mask).logits
    embedded = model.embed(ids, mask)
    assert torch.allclose(embedded.norm(dim=-1), torch.ones(2), atol=1e-6)
    nearest = torch.einsum("bw,lew->ble", embedded, rows).amax(dim=-1)
    assert torch.allclose(expected, SCALE * nearest, atol=1e-5)
    assert torch.allclose(model(ids[1:, :3], mask[1:, :3]).logits, expected[1:], atol=1e-5)  # padding changes nothing
    model.save_pretrained(tmp_path)
    again = deploykit.load(tmp_path, task="retrieval").eval()
    assert torch.equal(again(ids, mask).logits, expected)
    assert tuple(again.config.id2label.values()) == NAMES


def test_an_encoder_without_entries_is_refused(tiny_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match=r"classifier"):
        TASK.load_model(tiny_checkpoint("bert", head="MaskedLM"))


def test_a_pruned_one_loads_with_its_shapes(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    import torch

    from deploykit.tasks.pruned import LayerPlan, PruningPlan, cut, encoder_layers

    model: Any = TASK.load_model(tiny_checkpoint("bert", head="MaskedLM"), NAMES, dtype=torch.float32).eval()
    cut(model, PruningPlan((LayerPlan(1, (0, 2), tuple(range(10))),)))
    ids = torch.tensor([[3, 7, 9, 11, 4]])
    expected = model(ids, torch.ones_like(ids)).logits
    model.save_pretrained(tmp_path)
    again = deploykit.load(tmp_path, task="retrieval").eval()
    assert [layer.shape for layer in encoder_layers(again)] == [(2, 10)]
    assert torch.equal(again(ids, torch.ones_like(ids)).logits, expected)


def test_answers_are_the_nearest_entries_with_their_cosines() -> None:
    logits = np.array([[2.0, 18.0, 10.0], [5.0, 5.0, -3.0]], dtype=np.float32)
    first, second = TASK.answers({"logits": logits}, NAMES, top_k=2)
    assert first.as_json("text") == {
        "entry": "refund",
        "score": pytest.approx(0.9),
        "answer": "",
        "alternatives": [{"entry": "track", "score": pytest.approx(0.5), "answer": ""}],
    }
    assert str(second) == "cancel"  # of equal ones the first
    assert first.line("where is it") == "refund (0.900, track 0.500)  where is it"
    assert TASK.scores([first, second], TASK.right_answers(["refund", "track"], NAMES)).value == 0.5
    assert TASK.scores([first], TASK.right_answers(["refund"], NAMES)).is_share
    with pytest.raises(DataError, match="unknown"):
        TASK.right_answers(["unknown"], NAMES)


@given(
    arrays.arrays(np.float32, (6, 5), elements=st.sampled_from([-1.0, 0.0, 0.5, 1.0])),
    arrays.arrays(np.int64, 6, elements=st.integers(0, 4)),
)
def test_a_rank_is_the_place_in_the_order_of_the_answers(logits: Any, targets: Any) -> None:
    names = tuple("abcde")
    answers = TASK.answers({"logits": logits}, names, top_k=5)
    for found, answer, target in zip(ranks(logits, targets), answers, targets, strict=True):
        listed = answer.as_json("")
        order = [listed["entry"], *(other["entry"] for other in listed["alternatives"])]
        assert order[found - 1] == names[target]


def test_a_model_that_gives_no_numbers_ranks_nothing_well() -> None:
    logits = np.array([[np.nan, 1.0, 2.0], [0.0, np.nan, 1.0], [np.nan] * 3])
    assert ranks(logits, np.array([0, 2, 1])).tolist() == [4, 2, 4]


def test_recall_counts_ranks() -> None:
    logits = np.array([[3, 2, 1, 0, 0, 0], [3, 2, 1, 0, 0, 0], [6, 5, 4, 3, 2, 1]], dtype=np.float32)
    found = TASK.metrics(logits, np.array([0, 1, 5]), ())
    assert found == {"recall@1": pytest.approx(1 / 3), "recall@5": pytest.approx(2 / 3), "mrr": pytest.approx(5 / 9)}


def test_what_is_served_is_read() -> None:
    assert task_of_outputs(["entry", "answer", "score", "logits"]).name == "retrieval"  # type: ignore[union-attr]
    assert task_of_outputs(["label", "score", "logits"]).name == "text-classification"  # type: ignore[union-attr]
    found = {
        "entry": np.array([[b"refund", b"track"]], dtype=np.object_),
        "answer": np.array([["Zurück".encode(), b""]], dtype=np.object_),
        "score": np.array([[0.9, 0.1]], dtype=np.float32),
        "logits": np.zeros((1, 3), dtype=np.float32),
    }
    (answer,) = TASK.served_answers(found)
    assert answer == Retrieved("refund")
    assert (answer.as_json("")["answer"], answer.as_json("")["alternatives"][0]["entry"]) == ("Zurück", "track")
    with pytest.raises(ValueError, match="scores"):
        TASK.served_answers({**found, "score": found["score"][:, :1]})
