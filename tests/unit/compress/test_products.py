"""Integer products with scales and bias in one node: the same numbers, and what else reads a value still finds it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.compress.products import join_products

_WIDTH, _LABELS = 16, 5


def quantized(*, read_again: str | None = None, zero_point: int = 0) -> onnx.ModelProto:
    """x -> QuantizeLinear -> MatMulInteger -> Cast -> Mul (scales) -> Add (bias) -> y, as the quantizer writes it."""
    rng = np.random.default_rng(0)
    constants = {
        "x_scale": np.array(0.02, np.float32),
        "x_zero": np.array(128, np.uint8),
        "w": rng.integers(-127, 128, (_WIDTH, _LABELS)).astype(np.int8),
        "w_scale": rng.uniform(0.001, 0.01, _LABELS).astype(np.float32),
        "w_zero": np.full(_LABELS, zero_point, np.int8),
        "bias": rng.normal(size=_LABELS).astype(np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_int"]),
        helper.make_node("Mul", ["x_scale", "w_scale"], ["scales"]),
        helper.make_node("MatMulInteger", ["x_int", "w", "x_zero", "w_zero"], ["sums"], name="product"),
        helper.make_node("Cast", ["sums"], ["sums_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["sums_float", "scales"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["y"]),
    ]
    outputs = ["y"]
    if read_again is not None:
        nodes.append(helper.make_node("Neg" if read_again == "scaled" else "Identity", [read_again], ["z"]))
        outputs.append("z")
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", _WIDTH])],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    x = np.random.default_rng(1).normal(size=(7, _WIDTH)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("zero_point", [0, 3])
def test_scales_and_bias_go_into_the_product(zero_point: int) -> None:
    model = quantized(zero_point=zero_point)
    joined = join_products(model)
    assert kinds(joined) == ["QuantizeLinear", "MatMulIntegerToFloat"]
    assert len(model.graph.node) == 6, "the model itself stays as it is"
    assert joined.graph.node[1].name == "product"
    assert bool(joined.graph.node[1].input[5]) == bool(zero_point)
    np.testing.assert_allclose(run(joined)[0], run(model)[0], rtol=1e-6, atol=1e-6)
    names = {tensor.name for tensor in joined.graph.initializer}
    assert names == {"x_scale", "x_zero", "w", "w_scale", "bias"} | ({"w_zero"} if zero_point else set())


def test_a_value_that_others_read_keeps_its_name() -> None:
    model = quantized(read_again="scaled")
    joined = join_products(model)
    assert kinds(joined) == ["QuantizeLinear", "MatMulIntegerToFloat", "Add", "Neg"], "the bias can't go into it"
    for ours, theirs in zip(run(joined), run(model), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", ["sums", "sums_float"])
def test_sums_that_others_read_are_left_as_they_are(value: str) -> None:
    model = quantized(read_again=value)
    assert kinds(join_products(model)) == kinds(model)


def test_scales_that_others_read_stay() -> None:
    joined = join_products(quantized(read_again="scales"))
    assert sorted(kinds(joined)) == ["Identity", "MatMulIntegerToFloat", "Mul", "QuantizeLinear"]
