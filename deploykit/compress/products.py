"""Integer matrix products with their scales and bias in one node: `MatMulIntegerToFloat` in place of four or five.

onnxruntime fuses them itself where a scale is computed in the graph. Where scales are constants it folds their product
into one first, and then does not find the pattern.
"""

from __future__ import annotations

__all__ = ["join_products"]

from onnx import ModelProto, NodeProto, helper

from deploykit.export.graph import Graph


def join_products(model: ModelProto) -> ModelProto:
    """The graph with each `MatMulInteger`, `Cast` and `Mul` by the product of two scales as one node, and its bias.

    Values that others read, or that the graph gives, keep their names; the arithmetic stays as it is.
    """
    joined = ModelProto()
    joined.CopyFrom(model)
    graph = Graph(joined)
    producers, readers = graph.producers(), graph.readers()
    given = {value.name for value in graph.proto.output}

    def next_alone(value: str, kind: str) -> NodeProto | None:
        """The node of that kind, where it alone reads the value."""
        found = readers.get(value, [])
        return found[0] if len(found) == 1 and found[0].op_type == kind and value not in given else None

    gone: list[NodeProto] = []
    for product in graph.of_type("MatMulInteger"):
        cast = next_alone(product.output[0], "Cast")
        scaled = next_alone(cast.output[0], "Mul") if cast is not None else None
        if cast is None or scaled is None or len(product.input) != 4:
            continue
        factor = producers.get(next(name for name in scaled.input if name != cast.output[0]))
        if factor is None or factor.op_type != "Mul" or not set(factor.input) <= set(graph.constants):
            continue
        output, bias, last = scaled.output[0], "", next_alone(scaled.output[0], "Add")
        if last is not None:
            other = next(name for name in last.input if name != output)
            if other in graph.constants and len(graph.constants[other].dims) == 1:
                output, bias = last.output[0], other
                gone.append(last)
        entering, weight, entering_zero, weight_zero = product.input
        if not graph.array(weight_zero).any():
            weight_zero = ""
        inputs = [entering, weight, *factor.input, entering_zero, weight_zero, bias]
        while not inputs[-1]:
            inputs.pop()
        node = helper.make_node("MatMulIntegerToFloat", inputs, [output], name=product.name, domain="com.microsoft")
        product.CopyFrom(node)
        gone += [cast, scaled]
        if len(readers[factor.output[0]]) == 1:
            gone.append(factor)
    for node in gone:
        graph.proto.node.remove(node)
    used = {name for node in graph.proto.node for name in node.input}
    for tensor in [tensor for tensor in graph.proto.initializer if tensor.name not in used]:
        graph.proto.initializer.remove(tensor)
    if not any(opset.domain == "com.microsoft" for opset in joined.opset_import):
        joined.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return joined
