"""An ONNX folder in lower precision: int8 with dynamic or static activation scales, weights alone, or fp16."""

from __future__ import annotations

__all__ = [
    "INT8_SCHEMES",
    "INT8_VARIANTS",
    "QuantizeReport",
    "Variant",
    "product_places",
    "quantize",
    "scheme_variants",
    "sensitivity",
]

import collections
import contextlib
import dataclasses
import logging
import math
import shutil
import tempfile
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from deploykit.compress.noise import (
    FLOAT_PRODUCTS,
    Batch,
    int8_noise,
    one_by_one,
    products_by_input,
    value_ranges,
    watched,
    weight_of,
)
from deploykit.compress.products import join_products
from deploykit.compress.smooth import smooth
from deploykit.compress.weights import quantize_weights
from deploykit.errors import QuantizeError
from deploykit.events import Listener, ignore
from deploykit.export.lean import split_skip_normalization
from deploykit.export.modules import module_values
from deploykit.parity.places import place_of
from deploykit.runners.base import COMPANIONS
from deploykit.runners.texts import TEXTS
from deploykit.runners.untrusted import check_onnx
from deploykit.tasks.medium import Medium

_PRODUCTS = (
    "QAttention", "MatMulInteger", "MatMulIntegerToFloat", "QGemm", "QLinearMatMul", "DynamicQuantizeMatMul",
    "MatMulNBits", "ConvInteger",
)  # fmt: skip
"""Operators that multiply by integer weights."""
_INTEGERS = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4)


Scheme = Literal["int8_dynamic", "int8_static", "int8_weights", "int4_weights", "fp16"]
INT8_SCHEMES: tuple[Scheme, ...] = ("int8_dynamic", "int8_static")
"""The schemes that round activations too, and are mended where they lose too much."""
_WEIGHT_BITS: Mapping[str, int] = {"int8_weights": 8, "int4_weights": 4}


@dataclass(frozen=True)
class Variant:
    """One way to quantize.

    Attributes:
        scheme: how activations get their scale: per call over the whole batch (`int8_dynamic`, so a message's logits
            depend on its neighbours), or fixed by calibration (`int8_static`); `int8_weights` and `int4_weights` round
            weights alone, `fp16` casts weights and arithmetic.
        graph: `fused`; `split`, with SkipLayerNormalization taken apart again; or `plain`, as exported.
        smooth: whether static scales are made easier by moving what is hard to round into the weights (`smooth`).
    """

    scheme: Scheme
    graph: Literal["fused", "split", "plain"] = "fused"
    smooth: bool = False

    @property
    def name(self) -> str:
        return f"{self.scheme}-{self.graph}{'-smooth' * self.smooth}"


INT8_VARIANTS = (
    Variant("int8_dynamic", "fused"),
    Variant("int8_dynamic", "split"),
    Variant("int8_dynamic", "plain"),
    Variant("int8_static", "fused"),
    Variant("int8_static", "split"),
)
"""What `scheme: int8` measures against each other."""


@dataclass(frozen=True)
class QuantizeReport:
    """What was quantized, counted in the written file.

    Attributes:
        variant: how.
        products: int8 matrix products by operator.
        float_products: matrix products left in float.
        embeddings: whether the largest embedding table is of integers.
        size_bytes: of the ONNX file.
        smoothed: products whose inputs were smoothed.
    """

    variant: str
    products: Mapping[str, int]
    float_products: int
    embeddings: bool
    size_bytes: int
    smoothed: int = 0


def quantize(
    source: Path,
    out: Path,
    variant: Variant,
    *,
    calibration: Sequence[str] = (),
    in_float: Sequence[str] = (),
    medium: Medium = TEXTS,
    listener: Listener = ignore,
) -> QuantizeReport:
    """Write the ONNX folder `source` in lower precision to `out`, with what messages need and config beside it.

    Weights are int8 per output channel, symmetric; activations uint8 per tensor. Static scales are the extremes seen
    over the calibration messages.

    Args:
        source: an ONNX folder as `export_onnx` writes it; a foreign one needs `model.onnx` only.
        out: the folder to write; made if it is not there.
        variant: how.
        calibration: messages for static scales, like those to be served.
        in_float: names of the graph's nodes that are left in float (`sensitivity` ranks them).
        medium: what the messages are.
        listener: hears of progress.

    Raises:
        QuantizeError: nothing was quantized, static scales are asked for without messages, or others smoothed.
    """
    if variant.scheme == "int8_static" and not calibration:
        raise QuantizeError("static int8 needs calibration messages", "give --data, or use int8_dynamic")
    if variant.smooth and variant.scheme != "int8_static":
        raise QuantizeError(f"{variant.name}: only static scales can be smoothed", "take int8_static")
    batches = list(one_by_one(medium.encoder(source), calibration)) if variant.scheme == "int8_static" else []
    model, smoothed = _in_form(source, variant, batches)
    out.mkdir(parents=True, exist_ok=True)
    for name in COMPANIONS:
        if (source / name).is_file() and source != out:
            shutil.copy2(source / name, out / name)
    if variant.scheme in _WEIGHT_BITS:
        quantized = quantize_weights(model, _WEIGHT_BITS[variant.scheme], in_float)
    else:
        quantized = _to_fp16(model) if variant.scheme == "fp16" else _to_dynamic_int8(model, out, in_float)
    if variant.scheme != "fp16" and not _products(quantized):
        raise QuantizeError(
            f"{source} has no matrix product that could be quantized",
            "export it with `deploykit export`, whose graphs the quantizer knows",
        )
    if variant.scheme == "int8_static":
        quantized = join_products(_with_static_scales(model, quantized, batches, out))
    quantized.producer_name = "deploykit"
    onnx.save(quantized, out / "model.onnx")
    return dataclasses.replace(_count(quantized, variant), smoothed=smoothed)


def sensitivity(
    source: Path, variant: Variant, messages: Sequence[str], medium: Medium = TEXTS
) -> list[tuple[str, float]]:
    """The matrix products of a float graph by how much int8 hurts each by itself, the worst first.

    Args:
        source: the ONNX folder that is quantized.
        variant: how.
        messages: whose activations enter the products.
        medium: what they are.

    Returns:
        the names of nodes, with the signal-to-quantization-noise ratio of their outputs in dB: activations rounded to
        256 steps of their range over the messages, weights to 255 for each output.
    """
    encoder = medium.encoder(source)
    model, _ = _in_form(source, variant, list(one_by_one(encoder, messages)))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    products = products_by_input(model)
    entering = list(products)
    seen: dict[str, list[NDArray[np.float32]]] = {name: [] for name in entering}
    with tempfile.TemporaryDirectory() as scratch:
        session = watched(model, entering, Path(scratch), "observed")
        inputs = [value.name for value in session.get_inputs()]
        for batch in one_by_one(encoder, messages):
            for name, found in zip(entering, session.run(entering, {key: batch[key] for key in inputs}), strict=True):
                seen[name].append(found.reshape(-1, found.shape[-1]))
    ratios = []
    for name, nodes in products.items():
        values = np.concatenate(seen[name])
        for node in nodes:
            noise = int8_noise(values, weight_of(node, constants))
            ratios.append((node.name, -10 * float(np.log10(max(noise, 1e-30)))))
    return sorted(ratios, key=lambda each: each[1])


def product_places(source: Path, variant: Variant) -> dict[str, str]:
    """The nodes of a float graph that are matrix products, with what they are called to people."""
    model, _ = _in_form(source, variant, ())
    modules = module_values(model)
    readers: dict[str, onnx.NodeProto] = {}
    for node in reversed(model.graph.node):
        readers |= dict.fromkeys(node.input, node)
    found = {}
    for node in model.graph.node:
        if node.op_type not in FLOAT_PRODUCTS:
            continue
        reached: onnx.NodeProto | None = node
        while reached is not None and reached.output[0] not in modules:
            reached = readers.get(reached.output[0])
        if reached is not None:
            normalizes = "LayerNormalization" in reached.op_type
            found[node.name] = place_of(modules[reached.output[0]] + (":in" if normalizes else "")).name
    return found


def _in_form(source: Path, variant: Variant, batches: Sequence[Batch]) -> tuple[onnx.ModelProto, int]:
    """The float graph that a variant quantizes, and how many of its products have smoothed inputs."""
    path = source / ("plain.onnx" if variant.graph == "plain" and (source / "plain.onnx").is_file() else "model.onnx")
    check_onnx(path)
    model = onnx.load(path)
    del model.graph.value_info[:]
    model = split_skip_normalization(model) if variant.graph == "split" else model
    if not variant.smooth or not batches:
        return model, 0
    model, done = smooth(model, batches)
    return model, sum(len(each.products) for each in done)


def _to_dynamic_int8(model: onnx.ModelProto, scratch_parent: Path, in_float: Sequence[str]) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(dir=scratch_parent) as scratch, _quiet():
        before, after = Path(scratch) / "before.onnx", Path(scratch) / "after.onnx"
        onnx.save(model, before)
        try:
            quantize_dynamic(
                before,
                after,
                per_channel=True,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[each for name in in_float for each in (name, f"{name}_MatMul")],  # of a Gemm
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )
        except (onnx.shape_inference.InferenceError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise QuantizeError(
                f"onnxruntime's quantizer failed: {error}",
                "export the model with `deploykit export`, whose graphs the quantizer knows",
            ) from error
        return onnx.load(after)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnxruntime's advice to pre-process, which is done here, from the screen; it speaks on the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        root.setLevel(level)


def _with_static_scales(
    model: onnx.ModelProto,
    dynamic: onnx.ModelProto,
    batches: Iterable[Batch],
    scratch_parent: Path,
) -> onnx.ModelProto:
    """The dynamic graph with each `DynamicQuantizeLinear` replaced by `QuantizeLinear` at a calibrated scale."""
    static = onnx.ModelProto()
    static.CopyFrom(dynamic)
    graph = static.graph
    measured = [node.input[0] for node in graph.node if node.op_type == "DynamicQuantizeLinear"]
    with tempfile.TemporaryDirectory(dir=scratch_parent) as scratch:
        ranges = value_ranges(model, measured, batches, Path(scratch))
    for node in [node for node in graph.node if node.op_type == "DynamicQuantizeLinear"]:
        low, high = (min(ranges[node.input[0]][0], 0.0), max(ranges[node.input[0]][1], 0.0))
        scale = (high - low) / 255 or 1.0
        zero_point = np.clip(np.rint(-low / scale), 0, 255)
        graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), node.output[1]))
        graph.initializer.append(numpy_helper.from_array(np.array(zero_point, np.uint8), node.output[2]))
        position = next(index for index, other in enumerate(graph.node) if other is node)
        new = helper.make_node("QuantizeLinear", [node.input[0], node.output[1], node.output[2]], [node.output[0]])
        new.name = node.name
        graph.node.remove(node)
        graph.node.insert(position, new)
    return static


def _to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    # Inputs and outputs keep their types, so clients and parity see the same interface.
    converted: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
    return converted


def _products(model: onnx.ModelProto) -> dict[str, int]:
    kinds = collections.Counter(node.op_type for node in model.graph.node)
    return {name: kinds[name] for name in _PRODUCTS if kinds[name]}


def _count(model: onnx.ModelProto, variant: Variant) -> QuantizeReport:
    kinds = collections.Counter(node.op_type for node in model.graph.node)
    tables = {tensor.name: tensor for tensor in model.graph.initializer if len(tensor.dims) == 2}
    looked_up = [
        tables[name]
        for node in model.graph.node
        if node.op_type in ("Gather", "GatherBlockQuantized", "QEmbedLayerNormalization", "EmbedLayerNormalization")
        for name in node.input
        if name in tables
    ]
    largest = max(looked_up, key=lambda table: math.prod(table.dims), default=None)
    return QuantizeReport(
        variant=variant.name,
        products=_products(model),
        float_products=sum(kinds[name] for name in FLOAT_PRODUCTS),
        embeddings=largest is not None and largest.data_type in _INTEGERS,
        size_bytes=model.ByteSize(),
    )


def scheme_variants(scheme: str, fusions: str, smooth: str = "auto") -> tuple[Variant, ...]:
    """The variants that a recipe's `quantize.scheme`, `fusions` and `smooth` leave open.

    Args:
        scheme: `int8`, or one of `Scheme`.
        fusions: `auto`, `all` or `none`.
        smooth: `always` smooths where scales are static.
    """
    graph: Literal["fused", "plain"] = "plain" if fusions == "none" else "fused"
    schemes = [known for known in typing.get_args(Scheme) if known == scheme]
    if scheme == "int8":
        schemes = list(INT8_SCHEMES)
    variants = tuple(Variant(known, graph) for known in schemes)
    if fusions == "auto" and schemes[0] in INT8_SCHEMES:
        variants = tuple(variant for variant in INT8_VARIANTS if variant.scheme in schemes)
    always = smooth == "always"
    return tuple(dataclasses.replace(each, smooth=always and each.scheme == "int8_static") for each in variants)
