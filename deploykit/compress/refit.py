"""A cut model nearer to the whole one without training: its output matrices fitted again, one after the other.

What Kwon et al. 2022 (A Fast Post-Training Pruning Framework for Transformers, section 3.4) do to one factor for each
head and column is done here to whole matrices: least squares of the sums before each LayerNorm, on the inputs that the
layers cut before it now give.
"""

from __future__ import annotations

__all__ = ["refit"]

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deploykit.events import Listener, Progress, ignore
from deploykit.tasks.pruned import LayerShape, PruningPlan, encoder_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def refit(
    whole: PreTrainedModel,
    small: PreTrainedModel,
    plan: PruningPlan,
    batches: Sequence[Mapping[str, Any]],
    *,
    ridge: float = 0.02,
    listener: Listener = ignore,
) -> None:
    """Fit the output matrices of a cut model to the whole one's activations, in place.

    A layer whose successors were dropped learns to give what the last of those gave, through that one's LayerNorm.

    Args:
        whole: the model that was cut, in evaluation mode.
        small: what is left of it.
        plan: what that is.
        batches: inputs with `attention_mask`, as PyTorch tensors; padding does not count.
        ridge: how strongly the matrices are held to what they were, as a share of the inputs' mean square.
        listener: hears of progress, one step for each layer.
    """
    import torch

    before, after = encoder_layers(whole), encoder_layers(small)
    kept = [layer.layer for layer in plan.layers]
    follows = [*kept[1:], len(before)]
    theirs = [
        norm
        for first, after_last in zip(kept, follows, strict=True)
        for norm in (_norms(before[first])[0], _norms(before[after_last - 1])[1])
    ]
    wanted = [[value.half() for value in values] for values in _inputs(whole, theirs, batches)]
    for number, layer in enumerate(after):
        ours = _norms(layer)
        ours[1].load_state_dict(theirs[2 * number + 1].state_dict())
        for place, name in enumerate((layer.output, layer.narrow)):
            linear = layer.linear(name)
            square = torch.zeros(linear.in_features + 1, linear.in_features + 1)
            cross = torch.zeros(linear.in_features + 1, linear.out_features)
            found = _inputs(small, [linear, ours[place]], batches)
            for targets, (entered, summed) in zip(wanted, found, strict=True):
                rest = targets[2 * number + place].float() - summed
                given = torch.nn.functional.pad(entered, (0, 1), value=1.0)
                square.addmm_(given.T, given)
                cross.addmm_(given.T, rest)
            held = ridge * square.diagonal()[:-1].mean().clamp_min(1e-12)
            square.diagonal()[:-1].add_(held)
            change = torch.linalg.solve(square.double(), cross.double()).float()
            linear.weight.data += change[:-1].T
            if linear.bias is not None:
                linear.bias.data += change[-1]
        listener(Progress("prune", number + 1, len(after), "fitted layer"))


def _norms(layer: LayerShape) -> list[torch.nn.LayerNorm]:
    """The LayerNorm behind attention, and that behind the FFN."""
    import torch

    return [module for module in layer.module.modules() if isinstance(module, torch.nn.LayerNorm)]


def _inputs(model: PreTrainedModel, modules: Sequence[torch.nn.Module], batches: Sequence[Mapping[str, Any]]) -> Any:
    """What enters modules, batch by batch: [tokens, width] of each, real tokens only."""
    import torch

    seen: dict[int, torch.Tensor] = {}

    def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        seen[id(module)] = inputs[0]

    handles = [module.register_forward_pre_hook(hook) for module in modules]
    try:
        for batch in batches:
            with torch.inference_mode():
                model.eval()(**batch)
            real = batch["attention_mask"].bool().flatten()
            yield [seen[id(module)].flatten(0, -2)[real] for module in modules]
    finally:
        for handle in handles:
            handle.remove()
