"""SmoothQuant: what is hard to round in activations is moved into the weights, before a graph is quantized.

Xiao et al. 2023, section 4: channel j of what enters a product is divided by s_j = max|X_j|^a / max|W_j|^(1-a), and row
j of the weights multiplied by it, so that the product stays what it was. The division costs nothing where it goes into
what gives the value: into the weights of the attention's values, or into the scale and shift of a normalization that
only products read. Where something else reads the value too, as the residual path of every encoder that normalizes last
does, the products read a divided copy: one multiplication, whichever of the two readers gets it.
"""

from __future__ import annotations

__all__ = ["Smoothed", "smooth"]

import math
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from deploykit.compress.noise import Batch, int8_noise, products_by_input, watched, weight_of
from deploykit.export.graph import Graph, attribute

_ALPHAS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Of s_j: how much of the difficulty goes into the weights; chosen for each value by the noise of its products."""
_TOKENS = 512
"""Tokens of a value at most that the noise is measured on; its largest elements are those of all messages."""
_WORTH_DB = 3.0
"""What a multiplication must take off the noise of the products behind it: half."""
_NORMS = {"LayerNormalization": (1, 2), "SkipLayerNormalization": (2, 3)}
"""Normalizations, with the inputs that scale and shift. Those of an EmbedLayerNormalization become int8 themselves."""
_TINY = 1e-5
Scales = NDArray[np.float32]


@dataclass(frozen=True)
class Smoothed:
    """One value that was divided by channel.

    Attributes:
        products: names of the nodes that it enters.
        alpha: of the scales.
        before_db: signal to noise of those products in int8, without.
        after_db: with.
        free: whether it costs no multiplication.
    """

    products: tuple[str, ...]
    alpha: float
    before_db: float
    after_db: float
    free: bool


@dataclass
class _Seen:
    """What messages show of a value: the largest element of each channel, and some tokens."""

    peaks: NDArray[np.float32]
    tokens: NDArray[np.float32]


def smooth(model: onnx.ModelProto, batches: Iterable[Batch]) -> tuple[onnx.ModelProto, list[Smoothed]]:
    """The same model with activations that int8 rounds better, and what was done.

    A value stays as it is where no scales make its products' noise enough smaller.

    Args:
        model: a float graph; not changed.
        batches: messages like those to be served.
    """
    smoothed = onnx.ModelProto()
    smoothed.CopyFrom(model)
    graph = Graph(smoothed)
    seen = _observed(smoothed, list(products_by_input(smoothed)), batches)
    # Dividing what attention gives changes weights that the value before it is weighed against: it comes first.
    order = sorted(seen, key=lambda name: _attention(graph, name, len(seen[name].peaks)) is None)
    done = [found for name in order if (found := _smooth_value(graph, name, seen[name])) is not None]
    graph.drop_dead()
    return smoothed, done


def _observed(model: onnx.ModelProto, names: Sequence[str], batches: Iterable[Batch]) -> dict[str, _Seen]:
    found: dict[str, _Seen] = {}
    with tempfile.TemporaryDirectory() as scratch:
        session = watched(model, names, Path(scratch), "smoothed")
        inputs = [value.name for value in session.get_inputs()]
        for batch in batches:
            for name, value in zip(names, session.run(names, {key: batch[key] for key in inputs}), strict=True):
                rows = value.reshape(-1, value.shape[-1])
                peaks = np.abs(rows).max(axis=0)
                known = found.setdefault(name, _Seen(peaks, rows[:0]))
                known.peaks = np.maximum(known.peaks, peaks)
                known.tokens = np.concatenate([known.tokens, rows[: _TOKENS - len(known.tokens)]])
    return found


def _smooth_value(graph: Graph, name: str, seen: _Seen) -> Smoothed | None:
    """Divide one value by channel where that is worth it."""
    products = products_by_input(graph.model)[name]
    weights = [weight_of(node, graph.constants) for node in products]
    attention, norm = _attention(graph, name, len(seen.peaks)), _norm(graph, name, products)
    free = attention is not None or norm is not None

    def noise(scales: Scales) -> float:
        tokens = seen.tokens / scales
        return float(np.mean([int8_noise(tokens, weight * scales[:, None]) for weight in weights]))

    rows = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    tried = {alpha: _scales(seen.peaks, rows, alpha) for alpha in _ALPHAS}
    found = {alpha: noise(scales) for alpha, scales in tried.items()}
    alpha = min(found, key=lambda each: found[each])
    before, after = _decibels(noise(np.ones_like(seen.peaks))), _decibels(found[alpha])
    if after - before <= (0.0 if free else _WORTH_DB):
        return None
    scales = tried[alpha]
    if attention is not None:
        _divide_attention(graph, attention, scales)
    elif norm is not None:
        _divide_norm(graph, norm, scales)
    else:
        _divide_copy(graph, name, scales, products)
    for node, weight in zip(products, weights, strict=True):
        scaled = weight * scales[:, None]
        turned = attribute(node, "transB", 0)
        node.input[1] = graph.add_constant(f"{node.output[0]}_smooth_weight", scaled.T if turned else scaled)
    return Smoothed(tuple(node.name for node in products), alpha, before, after, free)


def _scales(peaks: NDArray[np.float32], rows: NDArray[np.float32], alpha: float) -> Scales:
    """s_j, with a geometric mean of 1: a factor that all share changes nothing."""
    logs = alpha * np.log(np.maximum(peaks, _TINY)) - (1 - alpha) * np.log(np.maximum(rows, _TINY))
    scales: Scales = np.exp(logs - logs.mean()).astype(np.float32)
    return scales


def _decibels(noise: float) -> float:
    return -10 * math.log10(max(noise, 1e-30))


def _attention(graph: Graph, name: str, width: int) -> onnx.NodeProto | None:
    """The `Attention` whose output a value is, whole or for some tokens, where nothing else reads that output."""
    producers, readers = graph.producers(), graph.readers()
    node = producers.get(name)
    while node is not None and node.op_type == "Slice" and len(readers[node.input[0]]) == 1:
        node = producers.get(node.input[0])
    if node is None or node.op_type != "Attention" or not {node.input[1], node.input[2]} <= {"", *graph.constants}:
        return None
    joined = graph.constants[node.input[1]].dims[1]
    whole = attribute(node, "qkv_hidden_sizes", [joined // 3] * 3)[-1] == width
    alone = len(readers[node.output[0]]) == 1 and len(readers[name]) == 1 and len(node.output) == 1
    return node if whole and alone else None


def _norm(graph: Graph, name: str, products: Sequence[onnx.NodeProto]) -> onnx.NodeProto | None:
    """The normalization that gives a value, where only products read it."""
    node = graph.producers().get(name)
    if node is None or node.op_type not in _NORMS or name in {value.name for value in graph.proto.output}:
        return None
    parameters = [node.input[place] for place in _NORMS[node.op_type] if place < len(node.input) and node.input[place]]
    only_products = len(graph.readers()[name]) == len(products)
    return node if only_products and all(each in graph.constants for each in parameters) else None


def _divide_attention(graph: Graph, node: onnx.NodeProto, scales: Scales) -> None:
    """Attention gives means of its values: they are divided through the weights and biases that make them."""
    width = len(scales)
    for place in (1, 2):
        if node.input[place]:
            joined = graph.array(node.input[place]).astype(np.float32)
            joined[..., -width:] /= scales
            node.input[place] = graph.add_constant(f"{node.output[0]}_smooth_{place}", joined)
    _rename(graph, node.output[0])


def _divide_norm(graph: Graph, node: onnx.NodeProto, scales: Scales) -> None:
    for place in _NORMS[node.op_type]:
        if place < len(node.input) and node.input[place]:
            divided = graph.array(node.input[place]).astype(np.float32) / scales
            node.input[place] = graph.add_constant(f"{node.output[0]}_smooth_{place}", divided)
    _rename(graph, node.output[0])


def _divide_copy(graph: Graph, name: str, scales: Scales, products: Sequence[onnx.NodeProto]) -> None:
    factors = graph.add_constant(f"{name}_smooth_factors", 1 / scales)
    copy = helper.make_node("Mul", [name, factors], [f"{name}_smooth"], name=f"{name}_smooth")
    producer = graph.producers().get(name)
    if producer is None:
        graph.proto.node.insert(0, copy)
    else:
        graph.insert_after(producer, copy)
    for node in products:
        node.input[0] = copy.output[0]


def _rename(graph: Graph, name: str) -> None:
    """Call a divided value something else: parity looks values up by the name of what they were in PyTorch."""
    for node in graph.proto.node:
        for names in (node.input, node.output):
            for place, value in enumerate(names):
                if value == name:
                    names[place] = f"{name}_smooth"
