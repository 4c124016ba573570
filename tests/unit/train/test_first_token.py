"""The last layer computes for the first token alone where nobody reads another, and the training stays the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification

from deploykit.recipe import Finetune
from deploykit.tasks import find_task
from deploykit.train.finetune import finetune
from deploykit.train.first_token import first_token_only
from deploykit.train.lesson import Lesson

BATCH = {
    "input_ids": torch.tensor([[2, 7, 9, 11, 3], [2, 8, 3, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    "labels": torch.tensor([0, 1]),
    "teacher_logits": torch.zeros(2, 2),
}


def network_of(kind: str, task: str = "SequenceClassification", **settings: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=40, pad_token_id=0, **settings,
    )  # fmt: skip
    network: Any = getattr(transformers, f"AutoModelFor{task}").from_config(config)
    return network.train()


def gradients(network: Any) -> dict[str, torch.Tensor]:
    network.eval()  # no dropout
    network.zero_grad()
    inputs = {name: BATCH[name] for name in ("input_ids", "attention_mask", "labels")}
    network(**inputs).loss.backward()
    return {name: each.grad.clone() for name, each in network.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "xlm-roberta"])
def test_logits_and_gradients_stay_what_they_are(kind: str) -> None:
    network = network_of(kind)
    whole = gradients(network)
    widths: list[int] = []
    watch = [each for each in network.modules() if type(each).__name__.endswith("Intermediate")][-1]
    watch.register_forward_hook(lambda module, given, found: widths.append(found.shape[1]))
    with first_token_only(network, BATCH, "logits") as used:
        assert used
        widths.clear()
        shortened = gradients(network)
        assert widths == [1]
    assert whole.keys() == shortened.keys()
    for name, each in whole.items():
        torch.testing.assert_close(shortened[name], each, rtol=1e-4, atol=1e-6, msg=name)
    gradients(network)
    assert widths[-1] == 5  # it ends with the block


def test_a_head_that_reads_every_token_computes_as_before() -> None:
    network = network_of("bert", "TokenClassification")
    with first_token_only(network, BATCH | {"labels": BATCH["input_ids"] % 2}, "logits") as used:
        assert not used
        assert network(input_ids=BATCH["input_ids"]).logits.shape[:2] == (2, 5)


class Pooled(BertForSequenceClassification):
    """A head over the sum of all tokens."""

    as_product = False

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        states = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
        if self.as_product:  # which can't be computed of the first token alone
            return {"logits": self.classifier((attention_mask[:, None].float() @ states)[:, 0])}
        return {"logits": self.classifier((states * attention_mask[..., None]).sum(1))}


@pytest.mark.parametrize("as_product", [False, True])
def test_a_head_that_pools_every_token_computes_as_before(as_product: bool) -> None:
    network = Pooled(network_of("bert").config)
    network.as_product = as_product
    inputs = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
    whole = network.eval()(**inputs)["logits"]
    with first_token_only(network, BATCH, "logits") as used:
        assert not used
        torch.testing.assert_close(network(**inputs)["logits"], whole)


@pytest.mark.parametrize("kind", ["distilbert", "mpnet"])
def test_an_encoder_of_another_kind_computes_as_before(kind: str) -> None:
    names = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24} if kind == "distilbert" else {}
    network = network_of(kind, **names)
    with first_token_only(network, BATCH, "logits") as used:
        assert not used


def test_the_mode_stays_while_it_is_tried() -> None:
    network = network_of("bert")
    with first_token_only(network, BATCH, "logits"):
        assert network.training


@pytest.mark.parametrize(("hidden_weight", "used"), [(0.0, [True]), (5.0, [])])
def test_a_recovery_uses_it_where_hidden_states_do_not_count(
    tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    hidden_weight: float, used: list[bool],
) -> None:  # fmt: skip
    found: list[bool] = []

    @contextlib.contextmanager
    def watched(*given: Any) -> Iterator[bool]:
        with first_token_only(*given) as value:
            found.append(value)
            yield value

    monkeypatch.setattr("deploykit.train.computing.first_token_only", watched)
    lesson = Lesson(tiny_checkpoint("bert", seed=3), hidden_weight=hidden_weight)
    result = finetune(
        tiny_checkpoint("bert"), toy_data, Finetune(epochs=1), find_task("text-classification"), tmp_path / "out",
        workspace=tmp_path / "work", lesson=lesson,
    )  # fmt: skip
    assert found == used
    assert result.steps
    assert (tmp_path / "work" / "teacher-hidden.npy").exists() is (not used)
