"""Dropout that costs little on a CPU, where PyTorch draws one random number after the other."""

from __future__ import annotations

__all__ = ["cheap_dropout"]

import contextlib
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_LEVELS = 1 << 16


def cheap_dropout() -> contextlib.AbstractContextManager[Any]:
    """While this is open, dropout draws 16 random bits for each element, from PyTorch's own generator.

    A quarter of a training step of a small encoder on a CPU went into `bernoulli_`, and attention with dropout took the
    slow path besides. The rate is kept to 1/65536; seeds and resuming work as they did. It covers
    `torch.nn.functional.dropout` (so `torch.nn.Dropout`) and `scaled_dot_product_attention` on CPU tensors.
    """
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    class CheapDropout(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is functional.dropout:
                return _dropout_call(*args, **kwargs)
            if func is functional.scaled_dot_product_attention and kwargs.get("dropout_p"):
                found = _attention(*args, **kwargs)
                if found is not None:
                    return found
            return func(*args, **kwargs)

    def _dropout_call(
        input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> torch.Tensor:
        if inplace or not training or input.device.type != "cpu":
            return functional.dropout(input, p, training, inplace)
        return _dropout(input, p)

    return CheapDropout()


def _dropout(values: torch.Tensor, rate: float) -> torch.Tensor:
    import torch

    if not 0 < rate < 1:
        return torch.nn.functional.dropout(values, rate)
    count = values.numel()
    # From the lowest number on: `random_()` leaves the sign bit out, and every fourth element would differ.
    drawn = torch.empty(math.ceil(count / 4), dtype=torch.int64).random_(-(1 << 63), None)
    bits = drawn.view(torch.int16)[:count].view(values.shape)
    dropped = round(rate * _LEVELS)
    kept = (bits >= dropped - _LEVELS // 2).to(values.dtype).mul_(_LEVELS / (_LEVELS - dropped))
    return values * kept


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor | None:
    """Attention by its definition; None for what this does not cover."""
    import torch

    if query.device.type != "cpu" or is_causal or enable_gqa:
        return None
    scores = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attn_mask
    return _dropout(scores.softmax(-1), dropout_p) @ value
