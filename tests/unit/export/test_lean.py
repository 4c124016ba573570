"""Each rewrite on small made graphs: right where it applies, and left alone where it would be wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from deploykit.export.lean import make_lean, split_skip_normalization

HIDDEN = 8
RANDOM = np.random.default_rng(0)


def constant(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(RANDOM.normal(size=shape).astype(np.float32), name)


def integers(name: str, values: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=np.int64), name)


def graph(text: str, *constants: onnx.TensorProto) -> onnx.ModelProto:
    model = parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18, "com.microsoft" : 1]> {text}')
    model.graph.initializer.extend(constants)
    return model


def run(model: onnx.ModelProto, feed: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: feed[value.name] for value in session.get_inputs()})


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def hidden_states(length: int = 5) -> dict[str, Any]:
    return {name: RANDOM.normal(size=(3, length, HIDDEN)).astype(np.float32) for name in ("x", "y")}


# --- SkipLayerNormalization taken apart ---

NORM = (constant("gamma", HIDDEN), constant("beta", HIDDEN), constant("bias", HIDDEN))


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ("x, y, gamma, beta", "z"),
        ("x, y, gamma, beta, bias", "z"),
        ("x, y, gamma", "z"),
        ("x, y, gamma, , bias", "z"),
        ("x, y, gamma, beta, bias", "z, , , sum"),
    ],
)
def test_split_skip_normalization_computes_the_same(inputs: str, outputs: str) -> None:
    model = graph(
        f"""g (float[b, s, {HIDDEN}] x, float[b, s, {HIDDEN}] y) => (float[b, s, {HIDDEN}] z)
        {{ {outputs} = com.microsoft.SkipLayerNormalization <epsilon = 1.0e-12> ({inputs}) }}""",
        *NORM,
    )
    if "sum" in outputs:  # it is read too, as by models that normalize first
        model.graph.output.append(onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, ["b", "s", HIDDEN]))
    split = split_skip_normalization(model)
    assert "SkipLayerNormalization" not in kinds(split)
    feed = hidden_states()
    for before, after in zip(run(model, feed), run(split, feed), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-5)


# --- the first token ---


def tail(index: int, extra: str = "") -> onnx.ModelProto:
    """Attention's outputs go through a normalization and a product; then one token is read."""
    return graph(
        f"""g (float[b, s, {HIDDEN}] x, float[b, s, {HIDDEN}] y) => (float[b, {HIDDEN}] z)
        {{
            p = Identity(x)
            q = Identity(y)
            n = com.microsoft.SkipLayerNormalization (p, q, gamma, beta)
            m = MatMul(n, weight)
            a = Add(m, bias)
            token = Gather <axis = 1> (a, index)
            {extra}
            z = Tanh(token)
        }}""",
        *NORM,
        constant("weight", HIDDEN, HIDDEN),
        integers("index", index),
    )


def test_only_the_first_token_is_computed_where_only_it_is_read() -> None:
    model = tail(0)
    lean = make_lean(model)
    assert kinds(lean).count("Slice") == 2
    feed = hidden_states()
    np.testing.assert_allclose(run(lean, feed)[0], run(model, feed)[0], atol=1e-6)


def test_every_token_is_computed_where_another_is_read() -> None:
    assert "Slice" not in kinds(make_lean(tail(1)))
    model = tail(0)
    model.graph.output.append(onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, ["b", "s", HIDDEN]))
    lean = make_lean(model)
    feed = hidden_states()
    for before, after in zip(run(model, feed), run(lean, feed), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-6)


def test_a_reduction_over_tokens_ends_the_part_that_works_token_by_token() -> None:
    model = tail(0, "")
    model.graph.node[3].op_type = "Identity"
    del model.graph.node[3].input[1:]
    softmax = onnx.helper.make_node("Softmax", ["n"], ["mixed"], axis=1)
    model.graph.node.insert(3, softmax)
    model.graph.node[4].input[0] = "mixed"
    lean = make_lean(model)
    feed = hidden_states()
    np.testing.assert_allclose(run(lean, feed)[0], run(model, feed)[0], atol=1e-6)


# --- look-ups ---

WORDS, POSITIONS, TYPES = constant("words", 20, HIDDEN), constant("places", 16, HIDDEN), constant("types", 2, HIDDEN)
COUNTED = """
    shape = Shape(input_ids)
    length = Gather(shape, one)
    counted = Range(zero, length, one)
    row = Unsqueeze(counted, first)
    expanded = Expand(row, shape)
"""


def embeddings(indices: str, type_indices: str) -> onnx.ModelProto:
    return graph(
        f"""g (int64[b, s] input_ids, int64[b, s] attention_mask) => (float[b, s, {HIDDEN}] z)
        {{
            {COUNTED}
            zeros = Sub(input_ids, input_ids)
            ones = Add(zeros, one)
            shifted = Add(expanded, one)
            masked = Mul(expanded, attention_mask)
            word = Gather(words, input_ids)
            position = Gather(places, {indices})
            kind = Gather(types, {type_indices})
            sum = Add(word, kind)
            total = Add(sum, position)
            z = LayerNormalization <axis = -1, epsilon = 1.0e-12> (total, gamma, beta)
        }}""",
        *NORM[:2], WORDS, POSITIONS, TYPES, integers("zero", 0), integers("one", 1), integers("first", [0]),
    )  # fmt: skip


FEED = {
    "input_ids": RANDOM.integers(0, 20, (3, 6)),
    "attention_mask": np.array([[1] * 6, [1] * 4 + [0] * 2, [1] + [0] * 5]),
}


def test_look_ups_become_one_node_where_positions_count_from_zero_and_types_are_zero() -> None:
    model = embeddings("expanded", "zeros")
    lean = make_lean(model)
    assert sorted(kinds(lean)) == ["Cast", "EmbedLayerNormalization"]
    np.testing.assert_allclose(run(lean, FEED)[0], run(model, FEED)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("indices", "type_indices"),
    [("shifted", "zeros"), ("masked", "zeros"), ("input_ids", "zeros"), ("expanded", "ones"), ("zeros", "zeros")],
)
def test_other_look_ups_are_left_alone(indices: str, type_indices: str) -> None:
    model = embeddings(indices, type_indices)
    lean = make_lean(model)
    assert "EmbedLayerNormalization" not in kinds(lean)
    feed = FEED | {"input_ids": FEED["input_ids"] % 15}
    np.testing.assert_allclose(run(lean, feed)[0], run(model, feed)[0], atol=1e-5)


# --- the mask ---


def attention(bias: str) -> onnx.ModelProto:
    return graph(
        f"""g (float[b, s, {HIDDEN}] x, int64[b, s] attention_mask, int64[b, s] input_ids) => (float[b, s, {HIDDEN}] z)
        {{
            kept = Cast <to = 1> (attention_mask)
            absent = Sub(unit, kept)
            wide = Unsqueeze(absent, axes)
            far = Mul(wide, lowest)
            shape = Shape(input_ids)
            batch = Gather(shape, first)
            length = Gather(shape, second)
            ones = Concat <axis = 0> (batch, second, length, length)
            by_mask = Expand(far, ones)
            ids = Cast <to = 1> (input_ids)
            wide_ids = Unsqueeze(ids, axes)
            by_ids = Add(by_mask, wide_ids)
            z = com.microsoft.Attention <num_heads = 2> (x, weight, qkv_bias, , , {bias})
        }}""",
        constant("weight", HIDDEN, 3 * HIDDEN), constant("qkv_bias", 3 * HIDDEN), integers("axes", [1, 2]),
        integers("first", [0]), integers("second", [1]),
        numpy_helper.from_array(np.array(1, np.float32), "unit"),
        numpy_helper.from_array(np.array(np.finfo(np.float32).min, np.float32), "lowest"),
    )  # fmt: skip


def test_a_bias_computed_from_the_mask_becomes_the_mask() -> None:
    model = attention("by_mask")
    # What computes the bias reads the ids for their shape; here as in the exporter's graphs it may be the mask's.
    next(node for node in model.graph.node if node.op_type == "Shape").input[0] = "attention_mask"
    lean = make_lean(model)
    assert kinds(lean) == ["Cast", "Attention"]
    feed = hidden_states(6) | FEED | {"attention_mask": np.array([[1] * 6, [0, 0, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0]])}
    np.testing.assert_allclose(run(lean, feed)[0], run(model, feed)[0], atol=1e-5)


def test_a_bias_that_depends_on_more_than_the_mask_stays() -> None:
    model = attention("by_ids")
    lean = make_lean(model)
    node = next(node for node in lean.graph.node if node.op_type == "Attention")
    assert node.input[5] == "by_ids"
    feed = hidden_states(6) | FEED
    np.testing.assert_allclose(run(lean, feed)[0], run(model, feed)[0], atol=1e-5)


def prefixed(*heads: int) -> onnx.ModelProto:
    """Attention layers whose keys have two constant ones in front, with a bias from the mask that all heads share."""
    layers = [
        f"z{number} = com.microsoft.MultiHeadAttention <num_heads = {count}> (x, keys, keys, , , bias)"
        for number, count in enumerate(heads)
    ]
    total = " ".join(f"z{number}," for number in range(len(heads)))[:-1]
    return graph(
        f"""g (float[b, s, {HIDDEN}] x, int64[b, s] attention_mask) => (float[b, s, {HIDDEN}] z)
        {{
            kept = Cast <to = 1> (attention_mask)
            absent = Sub(unit, kept)
            wide = Unsqueeze(absent, axes)
            far = Mul(wide, lowest)
            shape = Shape(attention_mask)
            batch = Gather(shape, first)
            length = Gather(shape, second)
            sizes = Concat <axis = 0> (batch, second, length, length)
            by_mask = Expand(far, sizes)
            bias = Pad(by_mask, pads)
            three = Concat <axis = 0> (batch, two, width)
            in_front = Expand(learned, three)
            keys = Concat <axis = 1> (in_front, x)
            {" ".join(layers)}
            z = Sum({total})
        }}""",
        constant("learned", 1, 2, HIDDEN), integers("axes", [1, 2]), integers("first", [0]), integers("second", [1]),
        integers("two", [2]), integers("width", [HIDDEN]), integers("pads", [0, 0, 0, 2, 0, 0, 0, 0]),
        numpy_helper.from_array(np.array(1, np.float32), "unit"),
        numpy_helper.from_array(np.array(np.finfo(np.float32).min, np.float32), "lowest"),
    )  # fmt: skip


def test_a_bias_that_heads_share_is_written_out_for_each() -> None:
    model = prefixed(2, 4, 2)
    lean = make_lean(model)
    nodes = [node for node in lean.graph.node if node.op_type == "MultiHeadAttention"]
    assert [node.input[5] for node in nodes] == ["bias_of_2_heads", "bias_of_4_heads", "bias_of_2_heads"]
    seen = onnx.ModelProto()
    seen.CopyFrom(lean)
    seen.graph.output.extend(onnx.helper.make_empty_tensor_value_info(node.input[5]) for node in nodes[:2])
    mask = np.array([[1] * 6, [0, 0, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0]])
    feed = hidden_states(6) | {"attention_mask": mask}
    answer, two, four = run(seen, feed)
    assert (two.shape, four.shape) == ((3, 2, 6, 8), (3, 4, 6, 8)), "batch, heads, queries, keys"
    np.testing.assert_allclose(answer, run(model, feed)[0], atol=1e-5)


def test_the_model_given_is_not_changed() -> None:
    model = embeddings("expanded", "zeros")
    before = model.SerializeToString(deterministic=True)
    make_lean(model)
    split_skip_normalization(model)
    assert model.SerializeToString(deterministic=True) == before
