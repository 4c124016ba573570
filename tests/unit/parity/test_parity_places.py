"""The names of a model's parts, in the families that deploykit knows, and which of two models' parts are the same."""

from __future__ import annotations

import pytest

from deploykit.parity.places import aligned, place_of


@pytest.mark.parametrize(
    ("point", "part", "layer", "name"),
    [
        ("bert.embeddings.LayerNorm", "embeddings", None, "embeddings layer norm"),
        ("bert.embeddings.position_embeddings", "embeddings", None, "position embeddings"),
        ("bert.encoder.layer.3.attention.self.query", "attention", 3, "layer 3 attention query"),
        ("bert.encoder.layer.3.attention.self", "attention", 3, "layer 3 attention"),
        ("bert.encoder.layer.3.attention.output.dense", "attention", 3, "layer 3 attention output"),
        ("bert.encoder.layer.3.attention.output.LayerNorm:in", "attention", 3, "layer 3 attention output"),
        ("bert.encoder.layer.3.attention.output.LayerNorm", "layer norm", 3, "layer 3 attention layer norm"),
        ("bert.encoder.layer.0.intermediate.intermediate_act_fn", "ffn", 0, "layer 0 ffn activation"),
        ("bert.encoder.layer.0.output.LayerNorm:in", "ffn", 0, "layer 0 ffn output"),
        ("bert.encoder.layer.0.output.LayerNorm", "layer norm", 0, "layer 0 output layer norm"),
        ("distilbert.transformer.layer.1.attention.q_lin", "attention", 1, "layer 1 attention query"),
        ("distilbert.transformer.layer.1.attention.out_lin", "attention", 1, "layer 1 attention output"),
        ("distilbert.transformer.layer.1.sa_layer_norm:in", "attention", 1, "layer 1 attention output"),
        ("distilbert.transformer.layer.1.sa_layer_norm", "layer norm", 1, "layer 1 attention layer norm"),
        ("distilbert.transformer.layer.1.ffn.lin1", "ffn", 1, "layer 1 ffn first product"),
        ("distilbert.transformer.layer.1.ffn.lin2", "ffn", 1, "layer 1 ffn output"),
        ("mpnet.encoder.layer.2.attention.attn.o", "attention", 2, "layer 2 attention output"),
        ("mpnet.encoder.layer.2.attention.LayerNorm", "layer norm", 2, "layer 2 attention layer norm"),
        ("bert.pooler.dense", "pooler", None, "pooler"),
        ("pre_classifier", "head", None, "head"),
        ("classifier.out_proj", "head", None, "head"),
        ("logits", "head", None, "output"),
    ],
)
def test_a_part_has_its_name(point: str, part: str, layer: int | None, name: str) -> None:
    place = place_of(point)
    assert (place.part, place.layer, place.name) == (part, layer, name)


def test_parts_are_the_same_whatever_wraps_the_model() -> None:
    ours = ["bert.embeddings.LayerNorm", "bert.encoder.layer.1.intermediate.intermediate_act_fn", "classifier"]
    theirs = [
        "model.bert.embeddings.LayerNorm",
        "model.bert.encoder.layer.1.intermediate.activation",
        "model.classifier",
    ]
    assert aligned(ours, theirs) == dict(zip(theirs, ours, strict=True))


def test_layers_of_a_pruned_model_are_those_that_it_kept() -> None:
    ours = [f"bert.encoder.layer.{layer}.output.LayerNorm" for layer in range(6)]
    theirs = ours[:2]
    assert list(aligned(ours, theirs, {0: 0, 1: 5}).values()) == [ours[0], ours[5]]
