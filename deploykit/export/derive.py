"""The graph of a cut model from that of the whole one: what PyTorch would have exported, without exporting anew.

Its exporter names each parameter and notes the module of each node. So a layer that went is led past, and the others
are given the weights that are left of them; attention counts its heads from the width of what enters, in a graph as in
PyTorch. The caller checks the result against PyTorch, as everything that is exported.
"""

from __future__ import annotations

__all__ = ["derive"]

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray

from deploykit.errors import ExportError
from deploykit.export.graph import Graph
from deploykit.export.modules import SCOPES, scopes
from deploykit.tasks.pruned import encoder_layers, kept_of

_PREFIX = "model."
"""Of all names: what is exported is a wrapper around the model."""
_PARTS: Mapping[str, Sequence[tuple[int, str]]] = {
    "MatMul": [(1, "weight")],
    "Add": [(0, "bias"), (1, "bias")],
    "Gemm": [(1, "weight"), (2, "bias")],
    "LayerNormalization": [(1, "weight"), (2, "bias")],
    "Gather": [(0, "weight")],
}
"""The inputs of nodes that are parameters of the module that the node is in."""


def derive(exported: onnx.ModelProto, whole: Any, small: Any) -> onnx.ModelProto:
    """The exported graph of a model that was cut from another one, whose exported graph is there.

    Args:
        exported: the whole model's graph as PyTorch's dynamo exporter gives it, with what it notes of modules; it is
            not changed.
        whole: the model that it was exported from.
        small: what was cut from that; its weights may have changed since.

    Raises:
        ExportError: the model is not one that was cut from the whole one, or that one's graph is no chain of layers by
            the exporter's notes.
    """
    kept, paths = kept_of(whole, small), _layer_paths(whole)
    found = onnx.ModelProto()
    found.CopyFrom(exported)
    graph = Graph(found)
    ends = _ends(graph, whole)
    if kept is None or ends is None:
        raise ExportError("the model's graph can't be derived from that of the whole one", "export the model itself")
    _lead_past(graph, [pair for number, pair in enumerate(ends) if number not in kept])
    graph.drop_dead()
    _rename(graph, {paths[before]: path for before, path in zip(kept, _layer_paths(small), strict=True)})
    _give_weights(graph, small)
    _give_shapes(graph, whole, kept, small)
    return found


def _layer_paths(model: Any) -> list[str]:
    """The names of the encoder's layers in what is exported."""
    names = {id(module): name for name, module in model.named_modules()}
    return [_PREFIX + names[id(layer.module)] for layer in encoder_layers(model)]


def _ends(graph: Graph, whole: Any) -> list[tuple[str, str]] | None:
    """What enters each layer and what leaves it; None where one does not enter the next."""
    inside = _by_module(graph)
    found = []
    for path, layer in zip(_layer_paths(whole), encoder_layers(whole), strict=True):
        products = [node for node in inside.get(f"{path}.{layer.inputs[0]}", ()) if node.op_type == "MatMul"]
        norms = inside.get(f"{path}.{layer.norms[1]}", ())
        if len(products) != 1 or len(norms) != 1:
            return None
        found.append((products[0].input[0], norms[0].output[0]))
    chained = all(before[1] == after[0] for before, after in itertools.pairwise(found))
    return found if chained else None


def _by_module(graph: Graph) -> Mapping[str, Sequence[onnx.NodeProto]]:
    """The nodes by the innermost module that they are in."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.proto.node:
        for path in scopes(node)[-1:]:
            found.setdefault(path, []).append(node)
    return found


def _lead_past(graph: Graph, gone: Sequence[tuple[str, str]]) -> None:
    """Let what read the output of a layer that went read its input; what others use of it stays."""
    instead: dict[str, str] = {}
    for entering, leaving in gone:
        instead[leaving] = instead.get(entering, entering)
    for node in graph.proto.node:
        for position, name in enumerate(node.input):
            if name in instead:
                node.input[position] = instead[name]


def _rename(graph: Graph, paths: Mapping[str, str]) -> None:
    """Give modules their names in the cut model, in what the exporter notes."""
    pattern = re.compile("|".join(rf"{re.escape(path)}(?![0-9])" for path in paths))
    for node in graph.proto.node:
        for entry in node.metadata_props:
            if entry.key == SCOPES:
                entry.value = pattern.sub(lambda match: paths[match[0]], entry.value)


def _give_weights(graph: Graph, small: Any) -> None:
    """Give each node that reads parameters the cut model's: its own, even where the exporter joined equal ones."""
    weights = {f"{_PREFIX}{name}": value.detach().numpy() for name, value in small.state_dict().items()}
    given: dict[str, NDArray[Any]] = {}
    for node in graph.proto.node:
        path = "".join(scopes(node)[-1:])
        for position, part in _PARTS.get(node.op_type, ()):
            value = weights.get(f"{path}.{part}")
            if position >= len(node.input) or node.input[position] not in graph.constants or value is None:
                continue
            name = f"{path}.{part}"
            if node.op_type == "MatMul":  # it takes the weight transposed, under a name of the exporter's
                name, value = node.input[position], value.T
                name = name if name not in given else f"{name}_{len(given)}"
            node.input[position] = name
            given[name] = value
    for name in [name for name in graph.constants if name in given]:
        graph.proto.initializer.remove(graph.constants.pop(name))
    for name, value in given.items():
        graph.add_constant(name, value)
    graph.drop_dead()


def _give_shapes(graph: Graph, whole: Any, kept: Sequence[int], small: Any) -> None:
    """Note the widths that values inside of layers have now: the fuser reads from them how many heads there are."""
    before = encoder_layers(whole)
    made = {name for node in graph.proto.node for name in node.output}
    for value in [value for value in graph.proto.value_info if value.name not in made]:
        graph.proto.value_info.remove(value)
    shapes = {value.name: value.type.tensor_type.shape for value in graph.proto.value_info}
    for number, path, layer in zip(kept, _layer_paths(small), encoder_layers(small), strict=True):
        size, (heads, columns), (all_heads, all_columns) = layer.head_size, layer.shape, before[number].shape
        attention = _reached(graph, path, layer.inputs, layer.output)
        for shape in [shapes[name] for name in attention if name in shapes]:
            # [rows, tokens, heads * size], or four axes with the heads in front of their size; rows and tokens vary
            widths = [axis for axis in shape.dim if axis.HasField("dim_value")]
            if len(shape.dim) == 4 and widths and widths[0].dim_value == all_heads:
                widths[0].dim_value = heads
            elif len(shape.dim) == 3 and shape.dim[-1].dim_value == all_heads * size:
                shape.dim[-1].dim_value = heads * size
        ffn = _reached(graph, path, [layer.widen], layer.narrow)
        for shape in [shapes[name] for name in ffn if name in shapes]:
            if len(shape.dim) and shape.dim[-1].dim_value == all_columns:
                shape.dim[-1].dim_value = columns


def _reached(graph: Graph, layer: str, begin: Sequence[str], end: str) -> set[str]:
    """The values computed in a layer from what modules of it give, before another one."""
    inside = _by_module(graph)
    found = {name for path in begin for node in inside.get(f"{layer}.{path}", ()) for name in node.output}
    for node in graph.proto.node:  # each stands behind what it reads
        path = "".join(scopes(node)[-1:])
        if path.startswith(f"{layer}.") and path != f"{layer}.{end}" and not found.isdisjoint(node.input):
            found.update(node.output)
    return found
