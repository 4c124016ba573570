"""Structurally pruned encoders: what was kept, cutting a model down to it, and loading what was cut.

A pruned model stays a transformers model. Where every kept layer has all heads and equally many FFN columns, its
config.json alone describes it and plain `from_pretrained` loads it. Else the shapes stand in config.json under
`deploykit_plan`, and are given to the freshly built modules before the weights are loaded.
"""

from __future__ import annotations

__all__ = [
    "KEPT_KEY",
    "PREFIX_KEY",
    "LayerPlan",
    "LayerShape",
    "PruningPlan",
    "check_prunable",
    "cut",
    "encoder_layers",
    "head_size",
    "heads_fixed",
    "kept_of",
    "layer_count",
    "shapes_to_load",
    "shrink",
]

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

PLAN_KEY = "deploykit_plan"
PREFIX_KEY = "deploykit_prefix"
"""In config.json: how many learned keys and values stand in front of those of every layer's attention."""
KEPT_KEY = "deploykit_kept_layers"
"""In config.json: which layers of the unpruned model stayed, by number; loading does not need it."""


@dataclass(frozen=True)
class LayerPlan:
    """One kept layer.

    Attributes:
        layer: its number in the unpruned model.
        heads: the attention heads that stay, numbers in the unpruned layer.
        columns: the FFN columns (neurons) that stay, likewise.
    """

    layer: int
    heads: tuple[int, ...]
    columns: tuple[int, ...]


@dataclass(frozen=True)
class PruningPlan:
    """What stays of an encoder: at least one layer, each with at least one head and one FFN column."""

    layers: tuple[LayerPlan, ...]

    def __post_init__(self) -> None:
        if not self.layers or not all(layer.heads and layer.columns for layer in self.layers):
            raise ValueError("a layer, a head and a column at least must stay")


@dataclass(frozen=True)
class LayerShape:
    """The parts of one encoder layer: the owner of the heads, and the dotted names of its linear layers in it.

    Attributes:
        module: the layer.
        attention: name of the module that splits its input into heads.
        inputs: names of the query, key and value projections.
        output: name of the attention's output projection.
        widen: name of the first FFN layer.
        narrow: name of the second.
        norms: names of the LayerNorms behind attention and behind the FFN.
    """

    module: torch.nn.Module
    attention: str
    inputs: tuple[str, str, str]
    output: str
    widen: str
    narrow: str
    norms: tuple[str, str]

    def linear(self, name: str) -> torch.nn.Linear:
        """A linear layer by its name."""
        found: Any = self.module.get_submodule(name)
        linear: torch.nn.Linear = found
        return linear

    def norm(self, place: int) -> torch.nn.LayerNorm:
        """The LayerNorm behind attention (0), or behind the FFN (1)."""
        found: Any = self.module.get_submodule(self.norms[place])
        norm: torch.nn.LayerNorm = found
        return norm

    @property
    def head_size(self) -> int:
        """The width of one head."""
        attention: Any = self.module.get_submodule(self.attention)
        return int(attention.attention_head_size)

    @property
    def shape(self) -> tuple[int, int]:
        """Its heads and FFN columns."""
        return self.linear(self.output).in_features // self.head_size, self.linear(self.narrow).in_features


_KINDS = (
    (
        "attention.self", ("query", "key", "value"), "attention.output.dense", "intermediate.dense", "output.dense",
        ("attention.output.LayerNorm", "output.LayerNorm"),
    ),
    (
        "attention.attn", ("q", "k", "v"), "attention.attn.o", "intermediate.dense", "output.dense",
        ("attention.LayerNorm", "output.LayerNorm"),
    ),
    (
        "attention", ("q_lin", "k_lin", "v_lin"), "attention.out_lin", "ffn.lin1", "ffn.lin2",
        ("sa_layer_norm", "output_layer_norm"),
    ),
)  # fmt: skip
"""BERT, RoBERTa, XLM-R and ELECTRA; MPNet; DistilBERT."""


def encoder_layers(model: PreTrainedModel) -> list[LayerShape]:
    """The layers of an encoder of the BERT kind, in order.

    Raises:
        ModelError: the model is of another kind.
    """
    return [_shape(module, model.config.model_type) for module in _stack(model)]


def check_prunable(folder: Path) -> None:
    """Refuse a checkpoint whose layers pruning does not know, from its config.json alone.

    Raises:
        ModelError: the model is of another kind, or has a prefix.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if getattr(config, PREFIX_KEY, None) is not None:
        raise ModelError(
            f"{folder} has a prefix, which pruning does not cut", "prune first, then learn the prefix of what is left"
        )
    with torch.device("meta"):
        encoder_layers(AutoModel.from_config(config))


def layer_count(folder: Path) -> int:
    """The layers of a checkpoint's encoder, from its config.json alone."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(folder, trust_remote_code=False).num_hidden_layers)


def head_size(model: PreTrainedModel) -> int:
    """The width of one attention head."""
    return encoder_layers(model)[0].head_size


def heads_fixed(model: PreTrainedModel) -> bool:
    """Whether all heads must stay: a bias by distance, shared by all layers, has an entry for each (MPNet)."""
    return any(name.endswith("relative_attention_bias") for name, _ in model.named_modules())


def kept_of(whole: PreTrainedModel, small: PreTrainedModel) -> list[int] | None:
    """Which layers of a model another one has kept, by number; None where it was not cut from it."""
    first = range(len(encoder_layers(whole)))
    before, after = (getattr(model.config, KEPT_KEY, None) for model in (whole, small))
    there = list(first) if before is None else before
    if after is None or not set(after) <= set(there):
        return None
    return [there.index(number) for number in after]


def cut(model: PreTrainedModel, plan: PruningPlan) -> None:
    """Cut a model down to a plan, in place, weights and config.

    Raises:
        ModelError: the model is not of the BERT kind, or has not what the plan keeps.
    """
    import torch

    size = head_size(model)
    found = encoder_layers(model)
    full = [layer.shape for layer in found]
    for kept in plan.layers:
        if not 0 <= kept.layer < len(found):
            raise ModelError(f"the plan keeps layer {kept.layer}, and the model has {len(found)}")
        heads, columns = full[kept.layer]
        if max(kept.heads) >= heads or max(kept.columns) >= columns:
            raise ModelError(f"the plan keeps heads or columns that layer {kept.layer} has not")
        if len(kept.heads) != heads and heads_fixed(model):
            raise ModelError(f"the heads of {model.config.model_type} share a bias by distance and must all stay")
    for kept in plan.layers:
        layer = found[kept.layer]
        rows = torch.tensor([head * size + part for head in kept.heads for part in range(size)])
        columns_kept = torch.tensor(kept.columns)
        for name in layer.inputs:
            _slice(layer.linear(name), rows=rows)
        _slice(layer.linear(layer.output), columns=rows)
        _slice(layer.linear(layer.widen), rows=columns_kept)
        _slice(layer.linear(layer.narrow), columns=columns_kept)
        _name_heads(layer, len(kept.heads), size)
    stack = _stack(model)
    staying = [stack[kept.layer] for kept in plan.layers]
    for _ in range(len(stack)):
        stack.pop(0)
    stack.extend(staying)
    for number, module in enumerate(stack):
        for part in module.modules():
            if hasattr(part, "layer_idx"):
                setattr(part, "layer_idx", number)  # noqa: B010 (to mypy, modules hold tensors and modules)
    _describe(model, plan, full[0])


def shapes_to_load(config: PretrainedConfig, folder: Path) -> list[tuple[int, int]] | None:
    """The heads and FFN columns of each layer of a pruned checkpoint; None where its config.json describes it.

    Raises:
        ModelError: they are damaged.
    """
    plan = getattr(config, PLAN_KEY, None)
    if plan is None:
        return None
    try:
        return [(int(layer["heads"]), int(layer["columns"])) for layer in plan["layers"]]
    except (TypeError, KeyError, ValueError) as error:
        raise ModelError(f"{folder}/config.json: {PLAN_KEY} is damaged ({error})", "prune the model again") from error


def shrink(model: PreTrainedModel, shapes: Sequence[tuple[int, int]]) -> None:
    """Give a freshly built model the shapes of a pruned checkpoint.

    Raises:
        ModelError: the shapes are those of another model.
    """
    size, layers = head_size(model), encoder_layers(model)
    if len(layers) != len(shapes):
        raise ModelError(f"{PLAN_KEY} describes {len(shapes)} layers, num_hidden_layers is {len(layers)}")
    for layer, (heads, columns) in zip(layers, shapes, strict=True):
        for name in layer.inputs:
            _replace(layer, name, out_features=heads * size)
        _replace(layer, layer.output, in_features=heads * size)
        _replace(layer, layer.widen, out_features=columns)
        _replace(layer, layer.narrow, in_features=columns)
        _name_heads(layer, heads, size)


def _replace(layer: LayerShape, name: str, *, in_features: int | None = None, out_features: int | None = None) -> None:
    import torch

    old = layer.linear(name)
    new = torch.nn.Linear(
        in_features or old.in_features,
        out_features or old.out_features,
        bias=old.bias is not None,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    layer.module.set_submodule(name, new)


def _slice(linear: torch.nn.Linear, *, rows: Any = None, columns: Any = None) -> None:
    import torch

    weight = linear.weight.data
    if rows is not None:
        weight = weight[rows.to(weight.device)]
        if linear.bias is not None:
            linear.bias = torch.nn.Parameter(linear.bias.data[rows.to(weight.device)].clone())
        linear.out_features = len(rows)
    if columns is not None:
        weight = weight[:, columns.to(weight.device)]
        linear.in_features = len(columns)
    linear.weight = torch.nn.Parameter(weight.clone())


def _name_heads(layer: LayerShape, heads: int, size: int) -> None:
    """The counts that attention modules keep of themselves."""
    attention = layer.module.get_submodule(layer.attention)
    for name, value in (("num_attention_heads", heads), ("n_heads", heads), ("all_head_size", heads * size)):
        if hasattr(attention, name):
            setattr(attention, name, value)


def _describe(model: PreTrainedModel, plan: PruningPlan, full: tuple[int, int]) -> None:
    config = model.config
    before = getattr(config, KEPT_KEY, None)
    setattr(config, KEPT_KEY, [before[kept.layer] if before else kept.layer for kept in plan.layers])
    counts = [(len(layer.heads), len(layer.columns)) for layer in plan.layers]
    _set(config, ("num_hidden_layers", "n_layers"), len(counts))
    uniform = len(set(counts)) == 1
    if uniform and counts[0][0] == full[0] == _get(config, ("num_attention_heads", "n_heads")):
        _set(config, ("intermediate_size", "hidden_dim"), counts[0][1])
        if hasattr(config, PLAN_KEY):
            delattr(config, PLAN_KEY)
        return
    setattr(config, PLAN_KEY, {"layers": [{"heads": heads, "columns": columns} for heads, columns in counts]})


def _get(config: Any, names: Sequence[str]) -> int:
    return next(int(getattr(config, name)) for name in names if hasattr(config, name))


def _set(config: Any, names: Sequence[str], value: int) -> None:
    setattr(config, next(name for name in names if hasattr(config, name)), value)


def _stack(model: PreTrainedModel) -> torch.nn.ModuleList:
    for name in ("encoder.layer", "transformer.layer"):
        try:
            found: torch.nn.ModuleList = model.base_model.get_submodule(name)
        except AttributeError:
            continue
        return found
    raise _not_prunable(model.config.model_type)


def _shape(module: torch.nn.Module, kind: str) -> LayerShape:
    import torch

    names = dict(module.named_modules())
    for attention, inputs, output, widen, narrow, norms in _KINDS:
        projections = tuple(f"{attention}.{name}" for name in inputs)
        if all(isinstance(names.get(name), torch.nn.Linear) for name in (*projections, output, widen, narrow)) and all(
            isinstance(names.get(name), torch.nn.LayerNorm) for name in norms
        ):
            return LayerShape(module, attention, projections, output, widen, narrow, norms)  # type: ignore[arg-type]
    raise _not_prunable(kind)


def _not_prunable(kind: str) -> ModelError:
    return ModelError(
        f"a model of the type {kind} can't be pruned: its layers are not those of an encoder of the BERT kind",
        "BERT, DistilBERT, RoBERTa, XLM-R, ELECTRA, MiniLM and MPNet can; leave the limits on speed and size out",
    )
