"""A cut model nearer to the whole one without training: its output matrices fitted again, one after the other.

What Kwon et al. 2022 (A Fast Post-Training Pruning Framework for Transformers, section 3.4) do to one factor for each
head and column is done here to whole matrices: least squares of the sums before each LayerNorm, on the inputs that the
layers cut before it now give.
"""

from __future__ import annotations

__all__ = ["refit"]

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

    A layer whose successors were dropped learns to give what the last of those gave, through that one's LayerNorm. Both
    models are gone through once, layer by layer, with all batches.

    Args:
        whole: the model that was cut, in evaluation mode.
        small: what is left of it.
        plan: what that is.
        batches: inputs with `attention_mask`, as PyTorch tensors; padding does not count.
        ridge: how strongly the matrices are held to what they were, as a share of the inputs' mean square.
        listener: hears of progress.
    """
    before, after = encoder_layers(whole), encoder_layers(small.eval())
    kept = [layer.layer for layer in plan.layers]
    flows = [_entering(whole, batch) for batch in batches]
    for flow in flows:
        for gone in before[: kept[0]]:
            flow.theirs, _ = _through(gone, flow.theirs, flow)
    for number, (layer, first, behind) in enumerate(zip(after, kept, [*kept[1:], len(before)], strict=True)):
        wanted = [_stood_for(before[first:behind], flow) for flow in flows]
        layer.norm(1).load_state_dict(before[behind - 1].norm(1).state_dict())
        for place, name in enumerate((layer.output, layer.narrow)):
            _fit(layer, name, place, flows, [sums[place] for sums in wanted], ridge)
        for flow in flows:
            flow.ours, _ = _through(layer, flow.ours, flow)
        listener(Progress("prune", number + 1, len(after), "fitted layer"))


@dataclass
class _Flow:
    """One batch on its way through both models.

    Attributes:
        theirs: the hidden states of the whole model, [rows, tokens, width].
        ours: those of the cut one.
        beside: what else a layer is called with.
        named: the same, by name.
        real: which tokens are no padding, flat.
    """

    theirs: torch.Tensor
    ours: torch.Tensor
    beside: tuple[Any, ...]
    named: Mapping[str, Any]
    real: torch.Tensor


class _Reached(Exception):
    """The first layer is called: no need to go on."""


def _entering(model: PreTrainedModel, batch: Mapping[str, Any]) -> _Flow:
    """A batch in front of the first layer; the cut model has the same embeddings and masks."""
    import torch

    called: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def stop(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        called.append((arguments, named))
        raise _Reached

    handle = encoder_layers(model)[0].module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.inference_mode(), contextlib.suppress(_Reached):
            model.eval()(**batch)
    finally:
        handle.remove()
    (hidden, *beside), named = called[0]
    return _Flow(hidden, hidden, tuple(beside), named, batch["attention_mask"].bool().flatten())


def _through(
    layer: LayerShape, hidden: torch.Tensor, flow: _Flow, watched: Sequence[str] = ()
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What a layer makes of hidden states, and what enters modules in it, [real tokens, width]."""
    import torch

    seen: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Any:
        return lambda module, inputs: seen.__setitem__(name, inputs[0].flatten(0, -2)[flow.real])

    handles = [layer.module.get_submodule(name).register_forward_pre_hook(watch(name)) for name in watched]
    try:
        with torch.inference_mode():
            found = layer.module(hidden, *flow.beside, **flow.named)
    finally:
        for handle in handles:
            handle.remove()
    return (found[0] if isinstance(found, tuple) else found), [seen[name] for name in watched]


def _stood_for(layers: Sequence[LayerShape], flow: _Flow) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums that one layer has to give in place of several: behind the first one's attention, the last one's FFN."""
    sums = []
    for layer in layers:
        flow.theirs, found = _through(layer, flow.theirs, flow, layer.norms)
        sums.append(found)
    return sums[0][0], sums[-1][1]


def _fit(
    layer: LayerShape, name: str, place: int, flows: Sequence[_Flow], wanted: Sequence[torch.Tensor], ridge: float
) -> None:
    """Change one output matrix, and its bias, so that the sums it enters are nearest to those that are wanted."""
    import torch

    linear = layer.linear(name)
    square = torch.zeros(linear.in_features + 1, linear.in_features + 1)
    cross = torch.zeros(linear.in_features + 1, linear.out_features)
    for flow, targets in zip(flows, wanted, strict=True):
        _, (entered, summed) = _through(layer, flow.ours, flow, (name, layer.norms[place]))
        given = torch.nn.functional.pad(entered, (0, 1), value=1.0)
        square.addmm_(given.T, given)
        cross.addmm_(given.T, targets - summed)
    held = ridge * square.diagonal()[:-1].mean().clamp_min(1e-12)
    square.diagonal()[:-1].add_(held)
    change = torch.linalg.solve(square.double(), cross.double()).float()
    linear.weight.data += change[:-1].T
    if linear.bias is not None:
        linear.bias.data += change[-1]
