"""Which value of an ONNX graph is the output of which module of the PyTorch model it was exported from."""

from __future__ import annotations

__all__ = ["SCOPES", "module_values", "record_modules", "scopes", "values_from_scopes"]

import ast
import json
from collections.abc import Iterator, Mapping

import onnx

_KEY = "deploykit.modules"
"""Of the model's metadata: fusing and quantizing keep it, as they keep the names of the values it speaks of."""
SCOPES = "pkg.torch.onnx.name_scopes"
"""Where the dynamo exporter notes the modules of a node."""
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_NORMS = ("LayerNormalization", "SkipLayerNormalization", "EmbedLayerNormalization", "SimplifiedLayerNormalization")


def values_from_scopes(model: onnx.ModelProto, prefix: str = "") -> dict[str, str]:
    """Values by the dotted path of the innermost module that gives them, from what PyTorch's dynamo exporter notes.

    A module gives a value where that is the only floating-point one that leaves it.

    Args:
        model: as exported, with `value_info` and the nodes' metadata.
        prefix: the name of a wrapper that the paths begin with.
    """
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)}
    read_by: dict[str, list[int]] = {}
    inside: dict[str, set[int]] = {}
    for number, node in enumerate(model.graph.node):
        for name in node.input:
            read_by.setdefault(name, []).append(number)
        for path in scopes(node):
            inside.setdefault(path, set()).add(number)
    outputs = {value.name for value in model.graph.output}
    found = {}
    for path in sorted(inside, key=lambda each: each.count(".")):
        if not path.startswith(prefix) or path == prefix:
            continue
        members = inside[path]
        leaving = [
            name
            for number in members
            for name in model.graph.node[number].output
            if types.get(name) in _FLOATS and (name in outputs or not members.issuperset(read_by.get(name, ())))
        ]
        if len(leaving) == 1:
            found[leaving[0]] = path.removeprefix(prefix)
    return found


def record_modules(model: onnx.ModelProto, values: Mapping[str, str]) -> None:
    """Write into a graph which of its values are outputs of modules; those it has not are left out."""
    present = {name for node in model.graph.node for name in node.output}
    entry = model.metadata_props.add()
    entry.key, entry.value = _KEY, json.dumps({name: path for name, path in values.items() if name in present})


def module_values(model: onnx.ModelProto) -> dict[str, str]:
    """Values of a graph by the module whose output they are.

    Taken from what `record_modules` wrote; else from the exporter's notes; else, for a graph of another exporter, from
    the names of the weights, which keep those of PyTorch's parameters where nothing was folded into them.
    """
    for entry in model.metadata_props:
        if entry.key == _KEY:
            recorded = json.loads(entry.value)
            present = {name for node in model.graph.node for name in node.output}
            return {str(name): str(path) for name, path in recorded.items() if name in present}
    return values_from_scopes(model) or dict(_from_weights(model))


def scopes(node: onnx.NodeProto) -> list[str]:
    """The modules that a node is in, the outermost first; the exporter notes the node's own name behind them."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            return [name for name in ast.literal_eval(entry.value)[:-1] if name]
    return []


def _from_weights(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """The outputs of nodes that a parameter with a telling name enters last."""
    parameters = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        named = [name for name in node.input if name in parameters and name.endswith((".weight", ".bias"))]
        paths = {name.rpartition(".")[0] for name in named}
        norms = {path for path in paths if "norm" in path.lower()}
        if node.op_type in _NORMS and len(norms) == 1:
            yield node.output[0], norms.pop()
        elif node.op_type in ("Add", "Gemm", "Gather") and len(paths) == 1:
            yield node.output[0], paths.pop()
        elif node.op_type in ("BiasGelu", "FastGelu") and len(paths) == 1:
            yield node.output[0], f"{paths.pop().rpartition('.')[0]}.activation"
