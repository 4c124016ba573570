"""SmoothQuant: the graph stays what it is in float, and int8 loses less where channels stand out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from deploykit.compress import smooth as smoothing
from deploykit.compress.noise import int8_noise, one_by_one, watched
from deploykit.compress.smooth import smooth
from deploykit.export.modules import module_values
from deploykit.runners.tokenize import Encoder

WIDTH = 8


def normalized(*, residual: bool, outlier: float = 100.0) -> onnx.ModelProto:
    """A normalization with one large channel, two products behind it, and (where asked) a residual path around them."""
    random = np.random.default_rng(0)
    scale = np.ones(WIDTH, np.float32)
    scale[3] = outlier
    weights = {name: random.normal(size=(WIDTH, WIDTH)).astype(np.float32) for name in ("first", "second")}
    weights["first"][3] /= outlier
    weights["second"][3] /= outlier
    constants = {"scale": scale, "shift": scale * 0.1, **weights}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "shift"], ["normal"], name="norm"),
        helper.make_node("MatMul", ["normal", "first"], ["a"], name="a"),
        helper.make_node("MatMul", ["normal", "second"], ["b"], name="b"),
        helper.make_node("Add", ["a", "b"], ["sum" if residual else "y"], name="sum"),
    ]
    if residual:
        nodes.append(helper.make_node("Add", ["sum", "normal"], ["y"], name="residual"))
    form = {"elem_type": TensorProto.FLOAT, "shape": ["rows", WIDTH]}
    graph = helper.make_graph(
        nodes,
        "normalized",
        [helper.make_tensor_value_info("x", **form)],
        [helper.make_tensor_value_info("y", **form)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def batches(count: int = 8) -> list[Any]:
    random = np.random.default_rng(1)
    return [{"x": random.normal(size=(5, WIDTH)).astype(np.float32)} for _ in range(count)]


def value_of(model: onnx.ModelProto, name: str, batch: Any, folder: Path) -> NDArray[np.float32]:
    found: NDArray[np.float32] = watched(model, [name], folder, "seen").run([name], batch)[0]
    return found


@pytest.mark.parametrize("residual", [False, True])
def test_a_normalization_before_products_is_smoothed_and_the_graph_stays_equal(residual: bool, tmp_path: Path) -> None:
    model = normalized(residual=residual)
    smoothed, done = smooth(model, batches())
    (found,) = done
    assert found.products == ("a", "b")
    assert found.free == (not residual)
    assert found.after_db > found.before_db + 10
    kinds = [node.op_type for node in smoothed.graph.node]
    assert kinds.count("Mul") == (1 if residual else 0)  # what the residual path reads stays as it was
    for batch in batches(3):
        expected = value_of(model, "y", batch, tmp_path)
        np.testing.assert_allclose(value_of(smoothed, "y", batch, tmp_path), expected, rtol=1e-4, atol=1e-3)
    assert len(model.graph.initializer) == 4, "the model that was given is not changed"
    assert ("normal" in {name for node in smoothed.graph.node for name in node.output}) == residual


def test_a_product_that_int8_holds_well_gets_no_multiplication() -> None:
    model = normalized(residual=True, outlier=1.0)
    smoothed, done = smooth(model, batches())
    assert done == []
    assert [node.op_type for node in smoothed.graph.node] == [node.op_type for node in model.graph.node]


def test_noise_does_not_depend_on_a_common_factor() -> None:
    random = np.random.default_rng(2)
    values, weight = (random.normal(size=(16, 16)).astype(np.float32) for _ in range(2))
    assert int8_noise(8 * values, weight / 8) == pytest.approx(int8_noise(values, weight), rel=1e-3)
    values[:, 0] *= 1000
    weight[0] /= 1000
    assert int8_noise(values, weight) > 100 * int8_noise(random.normal(size=(16, 16)).astype(np.float32), weight)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "electra", "mpnet"])
def test_smoothing_everything_changes_no_answer_in_float(
    kind: str, exported: Callable[[str], Any], toy_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smoothing, "_WORTH_DB", -1e9)
    folder = exported(kind).folder
    encoder, texts = Encoder(folder), list(toy_data.train.texts)
    model = onnx.load(folder / "model.onnx")
    smoothed, done = smooth(model, one_by_one(encoder, texts[:20]))
    assert done
    together = encoder.encode(texts[20:36])  # padded
    feed = {value.name: together[value.name] for value in model.graph.input}
    expected, found = (value_of(each, "logits", feed, tmp_path) for each in (model, smoothed))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    # What parity finds by the names of PyTorch's modules has the values that it had.
    for name in module_values(smoothed):
        before, after = (value_of(each, name, feed, tmp_path) for each in (model, smoothed))
        np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4 * max(1.0, float(np.abs(before).max())))
