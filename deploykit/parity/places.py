"""What the parts of a model are called to people: `layer 3 attention output` for the path of a PyTorch module."""

from __future__ import annotations

__all__ = ["Part", "Place", "aligned", "bare_name", "place_of"]

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Part = Literal[
    "tokenizer", "inputs", "embeddings", "attention", "ffn", "layer norm", "layer", "pooler", "head", "post-processing",
    "labels", "serving", "other",
]  # fmt: skip
"""The parts of the way from text to answer."""

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)(?=\.|$)")
_NORM = re.compile(r"norm|(?:^|\.)ln_", re.IGNORECASE)
_HEAD = re.compile(r"(?:^|\.)(?:pre_classifier|classifier|score|lm_head|qa_outputs|head)(?:\.|$)")
_LINEAR_NAMES = {
    "query": "query", "q": "query", "q_lin": "query", "q_proj": "query",
    "key": "key", "k": "key", "k_lin": "key", "k_proj": "key",
    "value": "value", "v": "value", "v_lin": "value", "v_proj": "value",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A part of a model.

    Attributes:
        module: the path of the PyTorch module.
        part: what kind of part it is.
        layer: of which layer of the stack; None outside of it.
        name: for people.
    """

    module: str
    part: Part
    layer: int | None
    name: str


def place_of(point: str, output: str = "logits") -> Place:
    """The place of a point of measurement.

    Args:
        point: the path of a module, for what leaves it; with `:in` behind it, for what enters it.
        output: the point behind the whole model.
    """
    module, _, side = point.partition(":")
    if point == output:
        return Place("", "head", None, "output")
    found = _LAYER.search(module)
    if found is None:
        return _outside(module, side)
    layer, inner = int(found[1]), module[found.end() :].lstrip(".")
    part, name = _inside(inner, side)
    return Place(module, part, layer, f"layer {layer} {name}".rstrip())


def aligned(ours: Iterable[str], theirs: Iterable[str], kept: Mapping[int, int] | None = None) -> dict[str, str]:
    """Points of one model by those of another: the same path, whatever wraps the model and whatever it renames.

    Args:
        ours: points of the reference.
        theirs: points of the candidate.
        kept: the candidate's layers by number, and the reference's that each was; None where none was dropped.

    Returns:
        the candidate's points, each with the reference's.
    """
    known: dict[str, str] = {}
    for point in ours:
        known.setdefault(bare_name(point), point)
    found: dict[str, str] = {}
    for point in theirs:
        bare = bare_name(point)
        layer = _LAYER.search(bare)
        if layer is not None and kept is not None:
            if int(layer[1]) not in kept:
                continue
            bare = f"{bare[: layer.start(1)]}{kept[int(layer[1])]}{bare[layer.end(1) :]}"
        if bare in known and known[bare] not in found.values():
            found[point] = known[bare]
    return found


def bare_name(point: str) -> str:
    """The name of a point or parameter without what wraps the model, and with one for every FFN activation function."""
    module, _, side = point.partition(":")
    layer = _LAYER.search(module)
    if layer is not None:
        module = "layer." + layer[1] + module[layer.end() :]
    else:
        parts = module.split(".")
        names = ("embeddings", "pooler", "classifier", "pre_classifier", "score")
        begin = next((number for number, part in enumerate(parts) if part in names), 0)
        module = ".".join(parts[begin:])
    module = re.sub(r"\.[a-z_]*act_fn$", ".activation", module)
    return f"{module}:{side}" if side else module


def _outside(module: str, side: str) -> Place:
    last = module.rpartition(".")[2]
    if _HEAD.search(module):
        return Place(module, "head", None, "head")
    if "pooler" in module:
        return Place(module, "pooler", None, "pooler")
    if "embeddings" in module or "embed" in last:
        if last.endswith("_embeddings"):
            return Place(module, "embeddings", None, last.replace("_", " "))
        if _NORM.search(last):
            return Place(module, "embeddings", None, "embeddings" if side else "embeddings layer norm")
        return Place(module, "embeddings", None, "embeddings")
    if "relative_attention_bias" in module:
        return Place(module, "attention", None, "attention's bias by distance")
    if _NORM.search(last):
        return Place(module, "layer norm", None, "last layer norm")
    return Place(module, "other", None, module or "model")


def _inside(inner: str, side: str) -> tuple[Part, str]:
    """The part of a layer by the path in it."""
    last = inner.rpartition(".")[2]
    attends = re.search(r"attention|attn|(?:^|\.)sa_", inner) is not None
    if _NORM.search(last):
        if side:
            before = re.search(r"before|input|ln_1", inner)
            after = re.search(r"after|post_attention|ln_2", inner)
            if before:
                return "layer", "input"
            return ("attention", "attention output") if attends or after else ("ffn", "ffn output")
        return "layer norm", "attention layer norm" if attends else "output layer norm"
    if attends:
        if last in _LINEAR_NAMES:
            return "attention", f"attention {_LINEAR_NAMES[last]}"
        output = last in ("dense", "o", "out_lin", "o_proj", "out_proj", "c_proj") or inner.endswith("output.dropout")
        return "attention", "attention output" if output else "attention"
    if not inner:
        return "layer", ""
    if re.search(r"intermediate|lin1|c_fc|up_proj|gate_proj|fc1|activation|act", inner):
        return "ffn", "ffn activation" if "act" in last else "ffn first product"
    return "ffn", "ffn output"
