"""Rewrites a fused encoder graph so that little besides its matrix products is left to run.

What is rewritten, each only where the graph shows that it applies:

- the joined query, key and value weights become one initializer, which quantizers need;
- the attention bias that the exporter builds node by node from the mask becomes the mask, which `Attention` takes;
- the bias of a `MultiHeadAttention` gets a part for every head, which onnxruntime before 1.22 needs;
- outputs that nothing reads are dropped: `SkipLayerNormalization` computes each one it is asked for;
- word, position and token-type look-ups with their normalization become one `EmbedLayerNormalization`;
- what works token by token behind the last attention runs only for the token that the head reads.

The caller checks the result against PyTorch: a rewrite that assumed too much must not pass.
"""

from __future__ import annotations

__all__ = ["FUSIONS", "make_lean", "split_skip_normalization"]

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from deploykit.export.graph import Graph, attribute

_MICROSOFT = "com.microsoft"
_LOWEST = float(np.finfo(np.float32).min)
_TOKENWISE = {
    "SkipLayerNormalization",
    "LayerNormalization",
    "BiasGelu",
    "MatMul",
    "Add",
    "Gelu",
    "FastGelu",
    "Relu",
    "Tanh",
}


def make_lean(model: onnx.ModelProto, without: Collection[str] = ()) -> onnx.ModelProto:
    """The same model with a leaner graph; what does not apply is left as it is.

    Args:
        model: an encoder graph with `Attention` and `SkipLayerNormalization` nodes fused; not changed.
        without: names of `FUSIONS` that are left out.
    """
    lean = onnx.ModelProto()
    lean.CopyFrom(split_skip_normalization(model) if _SKIP in without else model)
    graph = Graph(lean)
    _fold_weight_concats(graph)
    _give_every_head_its_bias(graph)
    for name, rewrite in _REWRITES.items():
        if name not in without:
            rewrite(graph)
    graph.drop_dead()
    # The exporter's shapes contradict onnx's own inference, which stops onnxruntime's quantizer.
    del lean.graph.value_info[:]
    return lean


def split_skip_normalization(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with each `SkipLayerNormalization` as `Add` and `LayerNormalization`: at times faster."""
    split = onnx.ModelProto()
    split.CopyFrom(model)
    graph = Graph(split)
    for number, node in enumerate(graph.of_type("SkipLayerNormalization")):
        inputs = [*node.input, *[""] * (5 - len(node.input))]
        total, *others = [name for name in (inputs[0], inputs[1], inputs[4]) if name]
        for step, term in enumerate(others):
            name = f"skip_sum_{number}_{step}"
            if step == len(others) - 1 and len(node.output) > 3 and node.output[3]:
                name = node.output[3]  # the sum itself, where something reads it (models that normalize first)
            graph.insert_before(node, helper.make_node("Add", [total, term], [name], name=name))
            total = name
        norm = helper.make_node(
            "LayerNormalization", [name for name in (total, *inputs[2:4]) if name], [node.output[0]],
            name=f"skip_norm_{number}", axis=-1, epsilon=attribute(node, "epsilon", 1e-5),
        )  # fmt: skip
        graph.insert_before(node, norm)
        graph.proto.node.remove(node)
    return split


def _fold_weight_concats(graph: Graph) -> None:
    for node in graph.of_type("Concat"):
        if all(name in graph.constants for name in node.input):
            joined = np.concatenate([graph.array(name) for name in node.input], axis=attribute(node, "axis", 0))
            graph.add_constant(node.output[0], joined)
            graph.proto.node.remove(node)


def _give_every_head_its_bias(graph: Graph) -> None:
    """Write out a bias that all heads of a `MultiHeadAttention` share.

    Where it has one part for all, [batch, 1, queries, keys], onnxruntime 1.17 and 1.19 fail, and 1.20 and 1.21 give
    wrong answers for batches. (A mask in its place, where there are more keys than queries, is wrong up to 1.20.)
    """
    written: dict[tuple[str, int], str] = {}
    for node in graph.of_type("MultiHeadAttention"):
        bias, heads = node.input[5] if len(node.input) > 5 else "", attribute(node, "num_heads", 1)
        if not bias:
            continue
        if (bias, heads) not in written:
            name = written[bias, heads] = f"{bias}_of_{heads}_heads"
            shape = graph.add_constant(f"{name}_shape", np.array([1, heads, 1, 1], dtype=np.int64))
            graph.insert_before(node, helper.make_node("Expand", [bias, shape], [name], name=name))
        node.input[5] = written[bias, heads]


def _attend_by_mask(graph: Graph) -> None:
    """Give `Attention` the int32 mask [batch, length] in place of a bias computed from that mask alone."""
    if "attention_mask" not in graph.inputs:
        return
    rewritten = False
    for node in graph.of_type("Attention"):
        names = [*node.input, *[""] * (7 - len(node.input))]
        bias = names[5]
        if not bias or names[3] or names[4] or not graph.sources(bias) <= {"attention_mask"}:
            continue
        del node.input[:]
        node.input.extend([*names[:3], "attention_mask_int32"])
        kept = [value for value in node.attribute if value.name not in {"mask_filter_value", "qkv_hidden_sizes"}]
        sizes = attribute(node, "qkv_hidden_sizes", [])
        if len(set(sizes)) > 1:  # unequal sizes have to be said; equal ones keep quantizers away
            kept.append(helper.make_attribute("qkv_hidden_sizes", sizes))
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("mask_filter_value", _LOWEST)])
        rewritten = True
    if rewritten:
        cast = helper.make_node(
            "Cast", ["attention_mask"], ["attention_mask_int32"], name="mask_to_int32", to=onnx.TensorProto.INT32
        )
        graph.proto.node.insert(0, cast)


def _drop_unread_outputs(graph: Graph) -> None:
    read = set(graph.readers()) | {value.name for value in graph.proto.output}
    for node in graph.of_type("SkipLayerNormalization", "EmbedLayerNormalization"):
        if not any(name in read for name in node.output[1:]):
            del node.output[1:]


def _fuse_embeddings(graph: Graph) -> None:
    """Sum and normalization of word, position and (constant) token-type look-ups as one `EmbedLayerNormalization`.

    Applies where positions count from zero and token types are all zero; that is found out by computing the indices.
    """
    producers = graph.producers()
    for norm in graph.of_type("LayerNormalization"):
        lookups = list(_summed_lookups(graph, producers, norm.input[0]))
        words = [node for node in lookups if node.input[1] == "input_ids"]
        others = [node for node in lookups if node.input[1] != "input_ids"]
        if len(words) != 1 or not 1 <= len(others) <= 2:
            continue
        indices = [_indices(graph, node.input[1]) for node in others]
        positions = [node for node, found in zip(others, indices, strict=True) if found == "positions"]
        types = [node for node, found in zip(others, indices, strict=True) if found == "zeros"]
        if len(positions) != 1 or len(positions) + len(types) != len(others):
            continue
        table = graph.array(positions[0].input[0])
        if types:
            table = table + graph.array(types[0].input[0])[0]
        name = graph.add_constant("position_and_type_embeddings", table.astype(np.float32))
        cast = helper.make_node(
            "Cast", ["input_ids"], ["input_ids_int32"], name="ids_to_int32", to=onnx.TensorProto.INT32
        )
        fused = helper.make_node(
            "EmbedLayerNormalization",
            ["input_ids_int32", "", words[0].input[0], name, "", norm.input[1], norm.input[2]],
            [norm.output[0], "embeddings_mask_index"],
            name="embeddings", domain=_MICROSOFT, epsilon=attribute(norm, "epsilon", 1e-5),
        )  # fmt: skip
        graph.insert_before(norm, cast)
        graph.insert_before(norm, fused)
        graph.proto.node.remove(norm)
        return


def _summed_lookups(graph: Graph, producers: dict[str, onnx.NodeProto], name: str) -> Iterator[onnx.NodeProto]:
    """The look-ups whose sum a value is; something else in the sum ends the search with a node that matches nothing."""
    node = producers.get(name)
    if node is not None and node.op_type == "Add":
        for term in node.input:
            yield from _summed_lookups(graph, producers, term)
    elif node is not None and node.op_type == "Gather" and node.input[0] in graph.constants:
        yield node
    else:
        yield helper.make_node("Gather", [name, ""], [])


def _indices(graph: Graph, name: str) -> str:
    """What indices a value holds, for some batch: `positions` counted from zero, `zeros`, or `other`."""
    if not name:
        return "other"
    if name in graph.constants:
        values = graph.array(name)
        return "zeros" if not values.any() else "other"
    import onnxruntime  # onnx's reference evaluator gets GatherElements on a broadcast row wrong

    part = graph.part(name)
    session = onnxruntime.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
    found = set()
    for shape in ((1, 3), (2, 5)):
        ids = np.full(shape, 7, dtype=np.int64)
        ids[-1, 1:] = 0  # ends in what is padding for most vocabularies
        feed = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}
        (values,) = session.run(None, {value.name: feed[value.name] for value in part.graph.input})
        values = np.broadcast_to(values, shape) if values.ndim <= 2 else values
        if np.array_equal(values, np.broadcast_to(np.arange(shape[1]), shape)):
            found.add("positions")
        elif not values.any():
            found.add("zeros")
        else:
            found.add("other")
    return found.pop() if len(found) == 1 else "other"


def _keep_first_token(graph: Graph) -> None:
    """Where only the first token is read in the end, select it right behind the last `Attention`.

    Everything between works token by token, so the answer is the same with less work (for the last layer alone).
    """
    producers = graph.producers()
    for select in graph.of_type("Gather"):
        if select.input[1] not in graph.constants or attribute(select, "axis", 0) != 1:
            continue
        index = graph.array(select.input[1])
        if index.ndim != 0 or int(index) != 0:
            continue
        region, border = _tokenwise_region(graph, select)
        if not region or not all(name in producers for name in border):
            continue
        begin = graph.add_constant("first_token_begin", np.array([0], dtype=np.int64))
        end = graph.add_constant("first_token_end", np.array([1], dtype=np.int64))
        for number, name in enumerate(border):
            sliced = f"first_token_{number}"
            graph.insert_after(
                producers[name], helper.make_node("Slice", [name, begin, end, end], [sliced], name=sliced)
            )
            for node in region:
                for position, value in enumerate(node.input):
                    if value == name:
                        node.input[position] = sliced
        return


def _tokenwise_region(graph: Graph, select: onnx.NodeProto) -> tuple[list[onnx.NodeProto], list[str]]:
    """The nodes that work token by token and feed only `select`, and the values that enter them from outside."""
    producers, readers = graph.producers(), graph.readers()
    outputs = {value.name for value in graph.proto.output}
    region: list[onnx.NodeProto] = []
    border = [select.input[0]]
    grown = True
    while grown:
        grown = False
        for name in border:
            node = producers.get(name)
            inside = [*region, select]
            if (
                node is not None
                and node.op_type in _TOKENWISE
                and outputs.isdisjoint(node.output)
                and (node.op_type != "MatMul" or node.input[1] in graph.constants)
                and all(any(reader is member for member in inside) for reader in _all_readers(node, readers))
            ):
                region.append(node)
                border.remove(name)
                border += [value for value in _token_inputs(graph, node) if value not in border]
                grown = True
                break
    return region, border


def _all_readers(node: onnx.NodeProto, readers: Mapping[str, Sequence[onnx.NodeProto]]) -> list[onnx.NodeProto]:
    """What reads any output of a node: a `SkipLayerNormalization` has the sum as another, for the residual path."""
    return [reader for output in node.output for reader in readers.get(output, ())]


def _token_inputs(graph: Graph, node: onnx.NodeProto) -> list[str]:
    return [name for name in node.input if name and name not in graph.constants]


_SKIP = "SkipLayerNormalization"
_REWRITES: Mapping[str, Callable[[Graph], None]] = {
    "attention by mask": _attend_by_mask,
    "unread outputs dropped": _drop_unread_outputs,
    "EmbedLayerNormalization": _fuse_embeddings,
    "first token only": _keep_first_token,
}
FUSIONS = (*reversed(list(_REWRITES)), _SKIP)
"""What can be left out, the cheapest to miss first."""
