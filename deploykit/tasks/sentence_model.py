"""An encoder that is read from the mean of its tokens: a vector of length one, compared with those of each label.

Mean pooling is that of Reimers and Gurevych 2019 (Sentence-BERT, section 3). Imports torch: load it where it is needed.
"""

from __future__ import annotations

__all__ = ["SentenceOutput", "sentence_class"]

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import MODEL_MAPPING, PreTrainedModel
from transformers.utils import ModelOutput

from deploykit.errors import ModelError
from deploykit.tasks.pooling import ENTRIES_KEY, POOLING_KEY, SCALE


@dataclass
class SentenceOutput(ModelOutput):  # type: ignore[misc]
    """What a sentence model gives.

    Attributes:
        loss: cross entropy of the logits, where labels are given.
        logits: [batch, labels].
        embedding: [batch, width], of length one; in training only.
        hidden_states: of all layers, where asked for.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    embedding: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


@functools.cache
def sentence_class(config_class: Any) -> Any:
    """The sentence model around the encoder of that configuration.

    Raises:
        ModelError: transformers has no such encoder.
    """
    try:
        encoder_class: Any = MODEL_MAPPING[config_class]
    except KeyError:
        raise ModelError(f"{config_class.__name__} is not that of an encoder", "use a model of the BERT kind") from None
    parent: Any = next(each for each in encoder_class.__mro__[1:] if issubclass(each, PreTrainedModel))
    pooler = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(encoder_class).parameters else {}
    typed = "token_type_ids" in inspect.signature(encoder_class.forward).parameters

    class Sentence(parent):  # type: ignore[misc]
        """An encoder, the mean of its tokens at length one, and rows of a head that it is compared with.

        Each label has `deploykit_entries` rows (1 unless its configuration says so), of which the nearest counts.
        """

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            setattr(config, POOLING_KEY, "mean")
            setattr(config, ENTRIES_KEY, getattr(config, ENTRIES_KEY, 1))
            setattr(self, self.base_model_prefix, encoder_class(config, **pooler))
            self.classifier = torch.nn.Linear(config.hidden_size, config.num_labels * getattr(config, ENTRIES_KEY))
            self.post_init()

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            token_type_ids: torch.Tensor | None = None,
            labels: torch.Tensor | None = None,
            output_hidden_states: bool | None = None,
        ) -> SentenceOutput:
            types = {"token_type_ids": token_type_ids} if typed and token_type_ids is not None else {}
            found = self.base_model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                output_hidden_states=output_hidden_states,
                return_dict=True,
                **types,
            )
            embedding = _pooled(found.last_hidden_state, attention_mask)
            logits = self.classifier(SCALE * embedding)
            entries = getattr(self.config, ENTRIES_KEY)
            if entries > 1:
                logits = logits.unflatten(-1, (-1, entries)).amax(dim=-1)
            return SentenceOutput(
                loss=None if labels is None else functional.cross_entropy(logits.float(), labels),
                logits=logits,
                embedding=embedding if self.training else None,
                hidden_states=found.hidden_states,
            )

        def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **others: torch.Tensor) -> torch.Tensor:
            """The embeddings of a batch: [batch, width], each of length one."""
            types = {name: value for name, value in others.items() if typed and name == "token_type_ids"}
            found = self.base_model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **types)
            return _pooled(found.last_hidden_state, attention_mask)

        def set_head(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
            """Take other rows for the head.

            Args:
                weight: [labels, entries, width]: logits are `SCALE` times the products with an embedding.
                bias: [labels]; none unless told.
            """
            labels, entries, width = weight.shape
            old = self.classifier.weight
            head = torch.nn.Linear(width, labels * entries, device=old.device, dtype=old.dtype)
            offsets = torch.zeros(labels) if bias is None else bias
            head.weight.data.copy_(weight.reshape(labels * entries, width))
            head.bias.data.copy_(offsets.repeat_interleave(entries))
            self.classifier = head.requires_grad_(old.requires_grad)
            setattr(self.config, ENTRIES_KEY, entries)

    Sentence.__name__ = Sentence.__qualname__ = f"{parent.__name__.removesuffix('PreTrainedModel')}ForSentences"
    return Sentence


def _pooled(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean over real tokens at length one: [batch, tokens, width] to [batch, width].

    As products, not sums over an axis: onnxruntime adds up an axis in another order for one message than for several,
    and the last digits, rounded to int8, would depend on the company.
    """
    total = mask.unsqueeze(1).to(hidden.dtype) @ hidden  # at length one a sum is a mean
    length = (total @ total.transpose(1, 2)).sqrt()
    return (total / length.clamp_min(1e-12)).squeeze(1)
