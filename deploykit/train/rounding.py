"""Training that sees int8: weights and activations rounded as static int8 will round them (Jacob et al. 2018).

In the forward pass the weights of every linear module are rounded to 255 steps for each output channel, and what enters
it to 256 steps of the range seen lately. In the backward pass rounding counts as the identity within the range (the
straight-through estimator). What is saved are the weights as they were before rounding: the quantizer rounds them
alike, and calibrates the ranges again.
"""

from __future__ import annotations

__all__ = ["first_rounded_step", "int8_rounding"]

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_MEMORY = 0.95
"""Share of a range that stays at each step. Calibration takes extremes: what is larger widens a range at once."""
_SMALLEST_STEP = 1e-8


def first_rounded_step(total: int, epochs: float, rounded_epochs: float) -> int:
    """The step of the optimizer from which on a training of `total` steps rounds."""
    return total - round(total * min(rounded_epochs / epochs, 1.0)) if epochs else total


@contextlib.contextmanager
def int8_rounding(network: Any, due: Callable[[], bool]) -> Iterator[None]:
    """Round in the linear modules of a network, while it trains and `due` says so; it is left as it was found.

    Args:
        network: whose `nn.Linear` modules round.
        due: whether to round now; asked in every forward pass.
    """
    import torch

    rounded: list[Any] = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
    for module in rounded:
        module.forward = _Rounded(module, due)
    try:
        yield
    finally:
        for module in rounded:
            del module.forward


class _Rounded:
    """The forward pass of a linear module that rounds."""

    def __init__(self, module: Any, due: Callable[[], bool]) -> None:
        self._module, self._due = module, due
        self._range: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        module = self._module
        if not (module.training and self._due()):
            return functional.linear(values, module.weight, module.bias)
        rounded = self._round_values(values.float()).to(values.dtype)
        return functional.linear(rounded, _round_weight(module.weight), module.bias)

    def _round_values(self, values: torch.Tensor) -> torch.Tensor:
        import torch

        extremes = torch.aminmax(values.detach())
        low, high = extremes.min.clamp(max=0.0), extremes.max.clamp(min=0.0)
        if self._range is not None:
            low = torch.minimum(low, torch.lerp(low, self._range[0], _MEMORY))
            high = torch.maximum(high, torch.lerp(high, self._range[1], _MEMORY))
        self._range = low, high
        step = ((high - low) / 255).clamp_min(_SMALLEST_STEP)
        zero = torch.round(-low / step).clamp(0, 255).to(torch.int32)
        rounded: torch.Tensor = torch.fake_quantize_per_tensor_affine(values, step, zero, 0, 255)
        return rounded


def _round_weight(weight: torch.Tensor) -> torch.Tensor:
    import torch

    steps = (weight.detach().abs().amax(dim=1).float() / 127).clamp_min(_SMALLEST_STEP)
    zeros = torch.zeros_like(steps, dtype=torch.int32)
    rounded: torch.Tensor = torch.fake_quantize_per_channel_affine(weight.float(), steps, zeros, 0, -127, 127)
    return rounded.to(weight.dtype)
