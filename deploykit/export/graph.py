"""A graph with the look-ups that rewriting it needs."""

from __future__ import annotations

__all__ = ["Graph", "attribute"]

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper


class Graph:
    """A graph with the look-ups that rewriting needs, kept current by asking afresh."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.proto = model.graph
        self.inputs = {value.name for value in model.graph.input}
        self.constants = {value.name: value for value in model.graph.initializer}

    def array(self, name: str) -> NDArray[np.generic]:
        """A constant's value."""
        return numpy_helper.to_array(self.constants[name])

    def add_constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Add an initializer; its name."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
        self.proto.initializer.append(tensor)
        self.constants[name] = tensor
        return name

    def producers(self) -> dict[str, onnx.NodeProto]:
        """The node that gives each value."""
        return {output: node for node in self.proto.node for output in node.output if output}

    def readers(self) -> dict[str, list[onnx.NodeProto]]:
        """The nodes that each value enters, once for each time."""
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.proto.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        return readers

    def of_type(self, *kinds: str) -> list[onnx.NodeProto]:
        """The nodes of these operators, in order."""
        return [node for node in self.proto.node if node.op_type in kinds]

    def sources(self, name: str) -> set[str]:
        """The graph inputs that a value is computed from."""
        producers, seen, found, stack = self.producers(), set(), set(), [name]
        while stack:
            value = stack.pop()
            if value in seen:
                continue
            seen.add(value)
            if value in self.inputs:
                found.add(value)
            elif value in producers:
                stack.extend(name for name in producers[value].input if name)
        return found

    def part(self, name: str) -> onnx.ModelProto:
        """The part of the graph that computes one value, as a model."""
        producers, needed, stack = self.producers(), set(), [name]
        while stack:
            value = stack.pop()
            if value in producers and value not in needed:
                needed.add(value)
                stack.extend(producers[value].input)
        nodes = [node for node in self.proto.node if any(output in needed for output in node.output)]
        used = {value for node in nodes for value in node.input}
        part = helper.make_graph(
            nodes,
            "part",
            [value for value in self.proto.input if value.name in used],
            [helper.make_empty_tensor_value_info(name)],
            [self.constants[value] for value in used if value in self.constants],
        )
        return helper.make_model(part, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)

    def insert_before(self, node: onnx.NodeProto, new: onnx.NodeProto) -> None:
        """Put a node in front of another."""
        self.proto.node.insert(self._position(node), new)

    def insert_after(self, node: onnx.NodeProto, new: onnx.NodeProto) -> None:
        """Put a node behind another."""
        self.proto.node.insert(self._position(node) + 1, new)

    def _position(self, node: onnx.NodeProto) -> int:
        return next(index for index, other in enumerate(self.proto.node) if other is node)

    def drop_dead(self) -> None:
        """Remove nodes and initializers that no output needs."""
        outputs = {value.name for value in self.proto.output}
        while True:
            used = {name for node in self.proto.node for name in node.input} | outputs
            dead = [node for node in self.proto.node if not any(name in used for name in node.output if name)]
            if not dead:
                break
            for node in dead:
                self.proto.node.remove(node)
        for tensor in [tensor for tensor in self.proto.initializer if tensor.name not in used]:
            self.proto.initializer.remove(tensor)
            del self.constants[tensor.name]


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """The value of a node's attribute."""
    for each in node.attribute:
        if each.name == name:
            return helper.get_attribute_value(each)
    return default
