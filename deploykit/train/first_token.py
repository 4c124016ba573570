"""Training without what nobody reads: behind the last layer's attention, the first token alone goes on."""

from __future__ import annotations

__all__ = ["first_token_only"]

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from deploykit.errors import ModelError
from deploykit.tasks.pruned import encoder_layers

_TOLERANCE = 1e-4
_NOT_FOR_IT = ("teacher_", "labels")
"""What a batch has for the loss."""


@contextlib.contextmanager
def first_token_only(network: Any, batch: Mapping[str, Any], output: str) -> Iterator[bool]:
    """While this is open, the last layer computes its FFN for the first token alone, where the head reads no other.

    Logits and gradients stay what they are. Whether the head reads no other token is tried, on `batch`; a network of
    another kind, or with another head, computes as before. The last hidden states are those of the first token then.

    Args:
        network: the model that is trained, on its device.
        batch: of rows, as tensors, as they are trained on.
        output: the name of the logits.

    Yields:
        whether it does.
    """
    behind_attention = _attention_output(network)
    if behind_attention is None:
        yield False
        return
    whole = _logits(network, batch, output)
    handle = behind_attention.register_forward_pre_hook(_of_first_token)
    try:
        same = False
        with contextlib.suppress(RuntimeError):  # PyTorch's for shapes that do not fit: a head that pools all tokens
            same = _same(whole, _logits(network, batch, output))
        if not same:
            handle.remove()
        yield same
    finally:
        handle.remove()


def _attention_output(network: Any) -> Any:
    """What adds the last layer's attention to the residual stream; None where that is no module of its own."""
    try:
        last = encoder_layers(network)[-1].module
    except ModelError:
        return None
    attention = getattr(last, "attention", None)
    return None if getattr(attention, "self", None) is None else getattr(attention, "output", None)


def _of_first_token(module: Any, values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value[:, :1] for value in values)


def _logits(network: Any, batch: Mapping[str, Any], output: str) -> Any:
    import torch

    training = network.training
    network.eval()
    device = next(network.parameters()).device
    with torch.inference_mode():
        inputs = {name: value.to(device) for name, value in batch.items() if not name.startswith(_NOT_FOR_IT)}
        found = network(**inputs)[output]
    network.train(training)
    return found


def _same(whole: Any, shortened: Any) -> bool:
    import torch

    return whole.shape == shortened.shape and torch.allclose(whole, shortened, rtol=_TOLERANCE, atol=_TOLERANCE)
