"""Encoders with a prefix: learned keys and values that every layer's attention finds in front of a message's own.

Prefix tuning of Li and Liang 2021 (section 4.2), for encoders as in Liu et al. 2022 (P-Tuning v2, section 3.2).
transformers' configurations have no place for a prefix: its length stands in config.json under `deploykit_prefix`, its
parameters lie in the attention modules. Imports torch: load it where it is needed.
"""

from __future__ import annotations

__all__ = ["PREFIX", "give_prefix"]

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from deploykit.tasks.pruned import PREFIX_KEY, encoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX = ("prefix_keys", "prefix_values")
"""The names of the parameters in an attention module, each [tokens, heads x head size]."""


def give_prefix(model: PreTrainedModel, tokens: int) -> list[torch.nn.Module]:
    """Let every layer of an encoder attend to a prefix too, and note so in its configuration.

    Args:
        model: BERT, RoBERTa, XLM-R, ELECTRA, DistilBERT or MPNet, pruned or not.
        tokens: the length of the prefix.

    Returns:
        the attention modules, in order; their `PREFIX` parameters hold no values yet.

    Raises:
        ModelError: the model is of another kind.
    """
    found = []
    for layer in encoder_layers(model):
        attention: Any = layer.module.get_submodule(layer.attention)
        inside = f"{layer.attention}."
        projections = tuple(name.removeprefix(inside) for name in layer.inputs)
        output = layer.output.removeprefix(inside) if layer.output.startswith(inside) else None
        key = layer.linear(layer.inputs[1])
        for name in PREFIX:
            empty = torch.empty(tokens, key.out_features, dtype=key.weight.dtype, device=key.weight.device)
            setattr(attention, name, torch.nn.Parameter(empty))
        kind: Any = type(attention)
        attention.__class__ = _prefixed(kind, projections, output)
        found.append(attention)
    setattr(model.config, PREFIX_KEY, tokens)
    return found


@functools.cache
def _prefixed(kind: Any, projections: tuple[str, str, str], output: str | None) -> Any:
    """The kind of attention with a prefix.

    Args:
        kind: the class of transformers.
        projections: its linear modules for queries, keys and values.
        output: that of its output, where it is one of its own.
    """

    class Prefixed(kind):  # type: ignore[misc]
        def forward(
            self,
            hidden_states: torch.Tensor,
            attention_mask: torch.Tensor | None = None,
            position_bias: torch.Tensor | None = None,
            **_: Any,
        ) -> tuple[torch.Tensor, None]:
            """What the tokens see: [batch, tokens, width].

            Args:
                hidden_states: [batch, tokens, width].
                attention_mask: [batch, 1, 1 or tokens, tokens], added to scores, or true where they count.
                position_bias: [batch, heads, tokens, tokens], added to scores (MPNet); the prefix has no position.
            """
            size = self.attention_head_size

            def heads(values: torch.Tensor) -> torch.Tensor:
                return values.view(*values.shape[:-1], -1, size).transpose(1, 2)

            query, *own = (getattr(self, name)(hidden_states) for name in projections)
            key, value = (
                torch.cat([getattr(self, name).to(each.dtype).expand(each.shape[0], -1, -1), each], dim=1)
                for name, each in zip(PREFIX, own, strict=True)
            )
            query, key, value = heads(query), heads(key), heads(value)
            tokens = len(self.prefix_keys)
            bias = None if position_bias is None else functional.pad(position_bias, (tokens, 0))
            if attention_mask is not None:
                seen = True if attention_mask.dtype == torch.bool else 0.0
                mask = functional.pad(attention_mask, (tokens, 0), value=seen)
                bias = mask if bias is None else bias + mask
            if getattr(getattr(self, "config", None), "_attn_implementation", "eager") == "sdpa":
                rate = self.dropout.p if self.training else 0.0
                attended = functional.scaled_dot_product_attention(
                    query, key, value, attn_mask=bias, dropout_p=rate, scale=size**-0.5
                )
            else:
                scores = torch.matmul(query, key.transpose(2, 3)) * size**-0.5
                scores = scores if bias is None else scores + bias
                attended = torch.matmul(self.dropout(scores.softmax(-1)), value)
            joined = attended.transpose(1, 2).flatten(2)
            return joined if output is None else getattr(self, output)(joined), None

    Prefixed.__name__, Prefixed.__qualname__, Prefixed.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    return Prefixed
