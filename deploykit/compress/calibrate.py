"""What pruning needs to know of a model on real messages: its output matrices' inputs, and how well a cut does."""

from __future__ import annotations

__all__ = ["Candidates", "candidates", "divergence", "pruned_copy"]

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit.compress.obs import Level, prune_levels
from deploykit.compress.search import LayerChoice
from deploykit.events import Listener, Progress, ignore
from deploykit.tasks import Task
from deploykit.tasks.pruned import LayerPlan, PruningPlan, cut, encoder_layers, head_size, heads_fixed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Candidates:
    """Every layer's attention and FFN at every level.

    Attributes:
        heads: by layer, by heads that stay.
        columns: by layer, by FFN columns that stay.
    """

    heads: tuple[Mapping[int, Level], ...]
    columns: tuple[Mapping[int, Level], ...]


def candidates(
    model: PreTrainedModel,
    batches: Sequence[Mapping[str, Any]],
    *,
    heads: Sequence[int],
    columns: Sequence[int],
    listener: Listener = ignore,
) -> Candidates:
    """Prune every output matrix of the model to every level, each by itself.

    Args:
        model: an encoder of the BERT kind; it is not changed.
        batches: its inputs, as PyTorch tensors, with `attention_mask`; padding does not count.
        heads: levels of attention, heads that stay.
        columns: levels of the FFN, columns that stay.
        listener: hears of progress, one step for each layer.

    Raises:
        ModelError: the model can't be pruned.
    """
    layers = encoder_layers(model)
    size, fixed = head_size(model), heads_fixed(model)
    hessians = _hessians(model, layers, batches)
    by_heads, by_columns = [], []
    for number, layer in enumerate(layers):
        output, narrow = layer.linear(layer.output).weight, layer.linear(layer.narrow).weight
        all_heads = output.shape[1] // size
        levels = [all_heads] if fixed else sorted({all_heads, *(level for level in heads if level < all_heads)})
        by_heads.append(prune_levels(output.data, hessians[number][0], size, levels))
        widths = sorted({narrow.shape[1], *(level for level in columns if level < narrow.shape[1])})
        by_columns.append(prune_levels(narrow.data, hessians[number][1], 1, widths))
        listener(Progress("prune", number + 1, len(layers), "layer"))
    return Candidates(tuple(by_heads), tuple(by_columns))


def pruned_copy(model: PreTrainedModel, found: Candidates, choice: Sequence[LayerChoice]) -> tuple[Any, PruningPlan]:
    """A copy of the model cut down to a choice of levels, and the plan of what stayed."""
    import torch

    small = copy.deepcopy(model)
    layers = encoder_layers(small)
    plans = []
    for number, chosen in enumerate(choice):
        if chosen is None:
            continue
        heads, columns = found.heads[number][chosen[0]], found.columns[number][chosen[1]]
        plans.append(LayerPlan(number, heads.kept, columns.kept))
        layer, size = layers[number], head_size(small)
        kept = torch.tensor([head * size + part for head in heads.kept for part in range(size)])
        layer.linear(layer.output).weight.data[:, kept] = heads.weight
        layer.linear(layer.narrow).weight.data[:, list(columns.kept)] = columns.weight
    plan = PruningPlan(tuple(plans))
    cut(small, plan)
    return small, plan


def divergence(
    model: PreTrainedModel, batches: Sequence[Mapping[str, Any]], expected: Sequence[torch.Tensor], task: Task
) -> float:
    """Mean Kullback-Leibler divergence of a model's answers from the expected logits, nats a message (or token).

    Over parts of the logits that are decided on apart it is summed.
    """
    import torch

    names = model.config.id2label
    sections = task.sections([names[number] for number in range(len(names))])
    totals, counts = ([0.0] * max(len(sections), 1) for _ in range(2))
    with torch.inference_mode():
        for batch, logits in zip(batches, expected, strict=True):
            found = model.eval()(**batch)[task.output]
            real = batch["attention_mask"].bool()
            pairs = [(each.columns(found), each.columns(logits)) for each in sections] or [(found, logits)]
            for number, pair in enumerate(pairs):
                among = [each.masked_fill(~real, -1e4) for each in pair] if pair[0].shape == real.shape else pair
                ours, wanted = (each.log_softmax(-1) for each in among)
                if ours.ndim == 3:
                    ours, wanted = ours[real], wanted[real]
                totals[number] += float(torch.nn.functional.kl_div(ours, wanted, reduction="sum", log_target=True))
                counts[number] += len(wanted)
    return sum(total / count for total, count in zip(totals, counts, strict=True))


def _hessians(
    model: PreTrainedModel, layers: Sequence[Any], batches: Sequence[Mapping[str, Any]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """X X^T of the inputs of each layer's two output matrices, over real tokens."""
    import torch

    sums = [
        tuple(
            torch.zeros(linear.in_features, linear.in_features) for linear in (a.linear(a.output), a.linear(a.narrow))
        )
        for a in layers
    ]
    mask = torch.empty(0)

    def add(total: torch.Tensor) -> Any:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            real = inputs[0].flatten(0, -2)[mask]
            total.addmm_(real.T, real)

        return hook

    handles = [
        layer.linear(name).register_forward_pre_hook(add(total))
        for layer, pair in zip(layers, sums, strict=True)
        for name, total in zip((layer.output, layer.narrow), pair, strict=True)
    ]
    try:
        with torch.inference_mode():
            for batch in batches:
                mask = batch["attention_mask"].bool().flatten()
                model.eval()(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return sums  # type: ignore[return-value]
