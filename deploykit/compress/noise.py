"""What enters the matrix products of a float graph, message by message, and the noise that int8 adds to them."""

from __future__ import annotations

__all__ = [
    "FLOAT_PRODUCTS",
    "Batch",
    "int8_noise",
    "one_by_one",
    "products_by_input",
    "value_ranges",
    "watched",
    "weight_of",
]

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from deploykit.export.graph import attribute
from deploykit.runners.onnx_runner import open_session
from deploykit.tasks.medium import Encoder

FLOAT_PRODUCTS = ("MatMul", "Gemm", "Attention", "FusedMatMul")
"""Operators that multiply in float."""
Batch = Mapping[str, NDArray[Any]]


def products_by_input(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """The matrix products of a graph whose weights are constant, by the value that enters them."""
    constants = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type in FLOAT_PRODUCTS and node.input[1] in constants and not attribute(node, "transA", 0):
            found.setdefault(node.input[0], []).append(node)
    return found


def weight_of(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> NDArray[np.float32]:
    """The weights of a product, [in, out]."""
    weight: NDArray[np.float32] = numpy_helper.to_array(constants[node.input[1]])
    return weight.T if attribute(node, "transB", 0) else weight


def int8_noise(values: NDArray[np.float32], weight: NDArray[np.float32]) -> float:
    """The noise of an int8 product as a share of its output's power.

    Args:
        values: what enters it, [tokens, in]; rounded to 256 steps of their range.
        weight: [in, out]; rounded to 255 steps for each output.
    """
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    step = (high - low) / 255 or 1.0
    steps = np.maximum(np.abs(weight).max(axis=0, keepdims=True) / 127, 1e-12)
    wanted = values @ weight
    noise = (np.rint(values / step) * step) @ (np.rint(weight / steps) * steps) - wanted
    signal = float(np.square(wanted).mean(dtype=np.float64))
    return float(np.square(noise).mean(dtype=np.float64)) / max(signal, 1e-30)


def watched(model: onnx.ModelProto, values: Sequence[str], folder: Path, name: str) -> Any:
    """A session whose outputs are inner values of a graph."""
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    del observed.graph.output[:]
    observed.graph.output.extend(helper.make_empty_tensor_value_info(value) for value in values)
    path = folder / f"{name}.onnx"
    onnx.save(observed, path)
    return open_session(path, device="cpu")


def value_ranges(
    model: onnx.ModelProto, values: Sequence[str], batches: Iterable[Batch], folder: Path
) -> dict[str, tuple[float, float]]:
    """The least and greatest element of each value over the batches."""
    ranges = {name: (float("inf"), float("-inf")) for name in values}
    names = list(ranges)
    session = watched(model, names, folder, "observed")
    inputs = [value.name for value in session.get_inputs()]
    for batch in batches:
        for name, found in zip(names, session.run(names, {key: batch[key] for key in inputs}), strict=True):
            low, high = ranges[name]
            ranges[name] = (min(low, float(found.min())), max(high, float(found.max())))
    return ranges


def one_by_one(encoder: Encoder, messages: Sequence[str]) -> Iterable[Batch]:
    """One message a batch: what padding computes would only widen the ranges."""
    for message in messages:
        yield encoder.encode([message])
