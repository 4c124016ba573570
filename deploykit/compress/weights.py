"""Weights alone in 8 or 4 bits, by blocks of each column: a smaller file, with activations in float between products.

onnxruntime's `MatMulNBits` multiplies them. It knows a plain `MatMul` only, so joined products are taken apart first:
`Attention` into its three products and `MultiHeadAttention`, `Gemm` into `MatMul` and `Add`, `EmbedLayerNormalization`
(for 4 bits) into look-ups and `LayerNormalization`.
"""

from __future__ import annotations

__all__ = ["quantize_weights"]

import contextlib
import logging
from collections.abc import Collection, Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from deploykit.export.graph import Graph, attribute

_MICROSOFT = "com.microsoft"
_BLOCK = 32
"""Weights that share a scale. MiniLM-L6 on BANKING77 messages: 4 bits in blocks of 32 leave 25.6 dB of signal to noise
in the logits (15.0 MB), of 64 24.5 (13.7 MB). 8 bits in blocks of 128 answer otherwise in a batch than alone (by 0.06
in a logit; onnxruntime 1.32), in blocks of up to 64 not."""
_COMPUTE_INT8 = 4
"""The `accuracy_level` whose kernels round activations to int8, by row and block: no row sees its neighbours."""
_IR_OF_INT4 = 10
_TABLE_ROWS = 64
"""Tables of fewer rows (token types) are not worth a node."""


def quantize_weights(model: onnx.ModelProto, bits: int, in_float: Collection[str] = ()) -> onnx.ModelProto:
    """The same model with constant weights of products, and embedding tables, in few bits.

    Args:
        model: a float graph; not changed.
        bits: 8 or 4.
        in_float: names of nodes that are left as they are.
    """
    packed = onnx.ModelProto()
    packed.CopyFrom(model)
    graph = Graph(packed)
    _take_apart_attention(graph, in_float)
    _take_apart_gemm(graph, in_float)
    _take_apart_embeddings(graph)
    _pack_tables(graph, bits)
    graph.drop_dead()
    with _quiet():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(
            packed,
            bits=bits,
            block_size=_BLOCK,
            is_symmetric=True,
            accuracy_level=_COMPUTE_INT8,
            nodes_to_exclude=list(in_float),
        )
        quantizer.process()
    found: onnx.ModelProto = quantizer.model.model
    return found


def _take_apart_attention(graph: Graph, in_float: Collection[str]) -> None:
    """`Attention` as three products and `MultiHeadAttention`."""
    for node in graph.of_type("Attention"):
        names = [*node.input, *[""] * (7 - len(node.input))]
        if node.name in in_float or names[1] not in graph.constants or names[4] or len(node.output) > 1:
            continue
        weight = graph.array(names[1])
        sizes = attribute(node, "qkv_hidden_sizes", [weight.shape[1] // 3] * 3)
        products = []
        parts = np.split(weight, np.cumsum(sizes)[:-1], axis=1)
        for what, part in zip(("query", "key", "value"), parts, strict=True):
            name = f"{node.output[0]}_{what}"
            graph.insert_before(
                node,
                helper.make_node("MatMul", [names[0], graph.add_constant(f"{name}_weight", part)], [name], name=name),
            )
            products.append(name)
        kept = [value for value in node.attribute if value.name in ("num_heads", "mask_filter_value", "scale")]
        attends = helper.make_node(
            "MultiHeadAttention",
            [*products, names[2], names[3], names[5]],
            list(node.output),
            name=node.name,
            domain=_MICROSOFT,
        )
        attends.attribute.extend(kept)
        graph.insert_before(node, attends)
        graph.proto.node.remove(node)


def _take_apart_gemm(graph: Graph, in_float: Collection[str]) -> None:
    for node in graph.of_type("Gemm"):
        factors = (attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0), attribute(node, "transA", 0))
        if node.name in in_float or node.input[1] not in graph.constants or factors != (1.0, 1.0, 0):
            continue
        weight = graph.array(node.input[1])
        name = f"{node.output[0]}_product" if len(node.input) > 2 else node.output[0]
        turned = graph.add_constant(f"{node.output[0]}_weight", weight.T if attribute(node, "transB", 0) else weight)
        graph.insert_before(node, helper.make_node("MatMul", [node.input[0], turned], [name], name=node.name))
        if len(node.input) > 2:
            add = helper.make_node("Add", [name, node.input[2]], [node.output[0]], name=f"{node.name}_bias")
            graph.insert_before(node, add)
        graph.proto.node.remove(node)


def _take_apart_embeddings(graph: Graph) -> None:
    """`EmbedLayerNormalization` as look-ups and `LayerNormalization`, where it counts positions itself."""
    for node in graph.of_type("EmbedLayerNormalization"):
        names: list[str] = [*node.input, *[""] * (9 - len(node.input))]
        ids, types, words, positions, type_table, scale, shift = names[:7]
        mask_read = len(node.output) > 1 and node.output[1] in graph.readers()
        if types or type_table or any(names[7:]) or mask_read or len(node.output) > 2:
            continue
        name = node.output[0]
        begin = graph.add_constant(f"{name}_begin", np.array([0], np.int64))
        steps = (
            helper.make_node("Gather", [words, ids], [f"{name}_words"], name=f"{name}_words"),
            helper.make_node("Shape", [ids], [f"{name}_length"], name=f"{name}_length", start=1, end=2),
            helper.make_node(
                "Slice", [positions, begin, f"{name}_length"], [f"{name}_positions"], name=f"{name}_positions"
            ),
            helper.make_node("Add", [f"{name}_words", f"{name}_positions"], [f"{name}_sum"], name=f"{name}_sum"),
            helper.make_node(
                "LayerNormalization", [f"{name}_sum", scale, shift], [name],
                name=node.name, axis=-1, epsilon=attribute(node, "epsilon", 1e-12),
            ),
        )  # fmt: skip
        for step in steps:
            graph.insert_before(node, step)
        graph.proto.node.remove(node)


def _pack_tables(graph: Graph, bits: int) -> None:
    """Embedding tables in few bits: 8 by row in plain operators, 4 by blocks for `GatherBlockQuantized`."""
    for node in graph.of_type("Gather"):
        table = graph.constants.get(node.input[0])
        lookup = table is not None and table.data_type == TensorProto.FLOAT and attribute(node, "axis", 0) == 0
        if table is None or not lookup or len(table.dims) != 2 or table.dims[0] < _TABLE_ROWS:
            continue
        name, ids = node.output[0], node.input[1]
        steps, scales = _rounded(
            graph.array(node.input[0]).astype(np.float32), bits, _BLOCK if bits == 4 else int(table.dims[1])
        )
        scales_name = graph.add_constant(f"{name}_scales", scales)
        if bits == 4:
            flat = np.append(steps.ravel(), np.zeros(steps.size % 2, np.int8)).view(np.uint8) & 0xF
            packed = (flat[::2] | flat[1::2] << 4).tobytes()
            graph.proto.initializer.append(
                helper.make_tensor(f"{name}_table", TensorProto.INT4, steps.shape, packed, raw=True)
            )
            new = [
                helper.make_node(
                    "GatherBlockQuantized", [f"{name}_table", ids, scales_name], [name],
                    name=node.name, domain=_MICROSOFT, block_size=_BLOCK, gather_axis=0, quantize_axis=1,
                )
            ]  # fmt: skip
            graph.model.ir_version = max(graph.model.ir_version, _IR_OF_INT4)
        else:
            table_name = graph.add_constant(f"{name}_table", steps)
            new = [
                helper.make_node("Gather", [table_name, ids], [f"{name}_steps"], name=node.name),
                helper.make_node(
                    "Cast", [f"{name}_steps"], [f"{name}_cast"], name=f"{name}_cast", to=TensorProto.FLOAT
                ),
                helper.make_node("Gather", [scales_name, ids], [f"{name}_scale"], name=f"{name}_scale"),
                helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [name], name=f"{name}_scaled"),
            ]
        for each in new:
            graph.insert_before(node, each)
        graph.proto.node.remove(node)


def _rounded(table: NDArray[np.float32], bits: int, block: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A table rounded to whole steps by blocks of each row, symmetric, and the steps' sizes [rows, blocks]."""
    rows, width = table.shape
    blocks = np.pad(table, ((0, 0), (0, -width % block))).reshape(rows, -1, block)
    scales = np.maximum(np.abs(blocks).max(axis=2) / (2 ** (bits - 1) - 1), 1e-12).astype(np.float32)
    steps = np.rint(blocks / scales[:, :, None]).reshape(rows, -1)[:, :width]
    return np.ascontiguousarray(steps, np.int8), scales


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the root logger as it was: onnxruntime's module sets it up when imported, and then tells of each node."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    logger = logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer")
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
