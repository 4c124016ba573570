"""Prefix tuning: the encoder stays as it is, and every layer's attention learns keys and values of its own.

Li and Liang 2021; without a network in front of the parameters, as Liu et al. 2022 (P-Tuning v2) have it for encoders.
"""

from __future__ import annotations

__all__ = ["learn_prefix"]

from collections.abc import Sequence
from typing import Any

import torch

from deploykit.errors import ModelError, TrainingError
from deploykit.recipe import Finetune
from deploykit.tasks.prefixed import PREFIX, give_prefix
from deploykit.tasks.pruned import PREFIX_KEY, encoder_layers
from deploykit.train.prompt import pieces_of_labels


def learn_prefix(model: Any, tokenizer: Any, settings: Finetune, labels: Sequence[str], positions: int) -> None:
    """Give a model a prefix, to be learned; it begins as the keys and values of the labels' names.

    Li and Liang found the activations of real words the best start (section 7.4).

    Args:
        model: whose encoder is frozen.
        tokenizer: its own.
        settings: with `prompt_tokens`.
        labels: what is learned.
        positions: tokens that the model takes.

    Raises:
        TrainingError: the model is of a kind that takes no prefix, has one already, or the prefix is too long.
    """
    count = settings.prompt_tokens
    if getattr(model.config, PREFIX_KEY, None) is not None:
        raise TrainingError(
            "finetune.strategy=prefix: the model has a prefix already", "go on from the model that it was learned on"
        )
    if count > positions:
        raise TrainingError(
            f"finetune.prompt_tokens={count} is more than the {positions} tokens of the model", "use fewer"
        )
    try:
        layers = encoder_layers(model)
    except ModelError as error:
        raise TrainingError(
            f"finetune.strategy=prefix: a model of the type {model.config.model_type} takes no prefix",
            "use another finetune.strategy, such as lora, or a BERT, RoBERTa, XLM-R, ELECTRA, DistilBERT or MPNet",
        ) from error
    starts: dict[torch.nn.Module, torch.Tensor] = {}
    projections = [[layer.linear(name) for name in layer.inputs[1:]] for layer in layers]
    handles = [
        each.register_forward_hook(lambda module, _, output: starts.update({module: output[0].clone()}))
        for layer in projections
        for each in layer
    ]
    training = model.training
    ids = torch.tensor([pieces_of_labels(tokenizer, labels, count)], device=model.device)
    with torch.no_grad():
        model.eval().base_model(input_ids=ids, attention_mask=torch.ones_like(ids))
    model.train(training)
    for handle in handles:
        handle.remove()
    for attention, layer in zip(give_prefix(model, count), projections, strict=True):
        for name, projection in zip(PREFIX, layer, strict=True):
            getattr(attention, name).data.copy_(starts[projection])
