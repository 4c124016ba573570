"""Faults to plant in exported models, with what must catch and name each written beside it; and harmless changes.

Used by `parity_faults.py` and, in a small version, by the tests.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from deploykit.compress.quantize import Variant, quantize
from deploykit.export.lean import split_skip_normalization
from deploykit.export.to_onnx import export_onnx
from deploykit.runners import Target
from deploykit.runners.tokenize import Encoder
from deploykit.tasks import find_task
from deploykit.triton.package import PackageSettings, build_package

TASK = find_task("text-classification")
_COMPANIONS = ("config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Workbench:
    """A fine-tuned checkpoint of the BERT kind, its exported forms, and messages.

    Attributes:
        checkpoint: the PyTorch folder.
        fused: its ONNX folder, with `plain.onnx` beside `model.onnx`.
        static: static int8 of the fused graph.
        dynamic: dynamic int8 of it.
        half: fp16 of it.
        texts: the messages of the comparison.
        calibration: messages to calibrate with.
    """

    checkpoint: Path
    fused: Path
    static: Path
    dynamic: Path
    half: Path
    texts: tuple[str, ...]
    calibration: tuple[str, ...]

    @classmethod
    def made(cls, checkpoint: Path, folder: Path, texts: Sequence[str], calibration: Sequence[str]) -> Workbench:
        """Export and quantize a checkpoint into `folder`; what is there already is taken as it is."""
        forms = {name: folder / name for name in ("fused", "int8_static", "int8_dynamic", "fp16")}
        if not (forms["fused"] / "model.onnx").is_file():
            export_onnx(checkpoint, forms["fused"], TASK)
        for scheme in ("int8_static", "int8_dynamic", "fp16"):
            if not (forms[scheme] / "model.onnx").is_file():
                quantize(forms["fused"], forms[scheme], Variant(scheme), calibration=calibration)  # type: ignore[arg-type]
        return cls(checkpoint, *forms.values(), tuple(texts), tuple(calibration))


class Graph:
    """An ONNX file of a folder, to be changed and written into another."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = onnx.load(path)
        self.nodes = self.model.graph.node

    def of(self, *operators: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in operators]

    def named(self, start: str) -> onnx.NodeProto:
        return next(node for node in self.nodes if node.name.startswith(start))

    def value(self, name: str) -> NDArray[Any]:
        return numpy_helper.to_array(self._tensor(name)).copy()

    def set(self, name: str, values: NDArray[Any]) -> None:
        self._tensor(name).CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))

    def add(self, name: str, values: NDArray[Any]) -> str:
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def behind(self, value: str, *new: onnx.NodeProto, result: str) -> None:
        """New nodes right after the one that makes `value`; all that used `value` use `result` then."""
        at = next((place for place, node in enumerate(self.nodes) if value in node.output), -1)
        for node in list(self.nodes)[at + 1 :]:
            for place, name in enumerate(node.input):
                if name == value:
                    node.input[place] = result
        for offset, node in enumerate(new):
            self.nodes.insert(at + 1 + offset, node)

    def at_the_end(self, *new: onnx.NodeProto) -> None:
        """New nodes that make `logits` out of `raw_logits`."""
        last = next(node for node in self.nodes if "logits" in node.output)
        last.output[list(last.output).index("logits")] = "raw_logits"
        self.nodes.extend(new)

    def prune(self) -> None:
        """Takes out what no output needs."""
        needed = {value.name for value in self.model.graph.output}
        kept = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        del self.nodes[:]
        self.nodes.extend(reversed(kept))
        unused = [tensor for tensor in self.model.graph.initializer if tensor.name not in needed]
        for tensor in unused:
            self.model.graph.initializer.remove(tensor)

    def written(self, folder: Path, **settings: Any) -> Target:
        folder.mkdir(parents=True, exist_ok=True)
        for name in _COMPANIONS:
            shutil.copyfile(self.path.parent / name, folder / name)
        onnx.save(self.model, folder / "model.onnx", **settings)
        return onnx_target(folder)

    def _tensor(self, name: str) -> onnx.TensorProto:
        return next(tensor for tensor in self.model.graph.initializer if tensor.name == name)


def onnx_target(folder: Path) -> Target:
    return Target("onnxruntime", str(folder), threads=1)


def torch_target(folder: Path) -> Target:
    return Target("torch", str(folder), threads=1)


@dataclass(frozen=True)
class Fault:
    """A fault, and what was said of it before it was planted.

    Attributes:
        name: what is wrong.
        plant: writes a candidate with the fault into a folder.
        check: the check that must fail; one of them where several are named.
        where: the part that must be named, and the layer (None: any, or none); None for a fault without a place.
        pair: of which pair.
    """

    name: str
    plant: Callable[[Workbench, Path], Target]
    check: tuple[str, ...]
    where: tuple[str, int | None] | None
    pair: Literal["fp32", "int8"] = "fp32"


@dataclass(frozen=True)
class Clean:
    """A change that leaves the answers as they are; `reference` where it is not the checkpoint."""

    name: str
    make: Callable[[Workbench, Path], Target]
    reference: Callable[[Workbench], Target] = lambda bench: torch_target(bench.checkpoint)


NUMBERS = ("numbers in padded batches", "fidelity")
ALONE = ("fidelity",)
TASK_CHECKS = ("accuracy drop", "calibration shift", "fidelity")


def _fused(bench: Workbench) -> Graph:
    return Graph(bench.fused / "model.onnx")


def _plain(bench: Workbench) -> Graph:
    return Graph(bench.fused / "plain.onnx")


def _products(graph: Graph, layer: int) -> list[onnx.NodeProto]:
    """A layer's attention output, FFN up and FFN down products in a fused graph."""
    found = graph.of("MatMul") or graph.of("MatMulInteger", "MatMulIntegerToFloat")
    return found[3 * layer : 3 * layer + 3]


def _layers(graph: Graph) -> int:
    return len(graph.of("Attention", "QAttention"))


# --- in the graph, fp32 ---


def mask_dropped(bench: Workbench, folder: Path) -> Target:
    graph = _fused(bench)
    for node in graph.of("Attention"):
        node.input[3] = ""
    return graph.written(folder)


def mask_dropped_in_one_layer(bench: Workbench, folder: Path) -> Target:
    graph = _fused(bench)
    graph.of("Attention")[1].input[3] = ""
    return graph.written(folder)


def mask_too_weak(bench: Workbench, folder: Path) -> Target:
    """Padding is let through by a finite mask, as of an exporter that loses its size: one message alone is right."""
    graph = _fused(bench)
    for node in graph.of("Attention"):
        for attribute in node.attribute:
            if attribute.name == "mask_filter_value":
                attribute.f = -4.0
    return graph.written(folder)


def positions_off_by_one(bench: Workbench, folder: Path) -> Target:
    graph = _fused(bench)
    graph.set("position_and_type_embeddings", np.roll(graph.value("position_and_type_embeddings"), -1, axis=0))
    return graph.written(folder)


def _weight(start: str, suffix: str) -> Callable[[Graph], str]:
    return lambda graph: next(
        tensor.name
        for tensor in graph.model.graph.initializer
        if tensor.name.startswith(start) and tensor.name.endswith(suffix)
    )


def types_ignored(bench: Workbench, folder: Path) -> Target:
    graph = _plain(bench)
    name = _weight("model.", "token_type_embeddings.weight")(graph)
    graph.set(name, np.zeros_like(graph.value(name)))
    return graph.written(folder)


def product_changed(
    layer: int, place: int, change: Callable[[NDArray[Any]], NDArray[Any]]
) -> Callable[[Workbench, Path], Target]:
    """A plant that changes a product's weight in a layer: 0 attention output, 1 FFN up, 2 FFN down."""

    def plant(bench: Workbench, folder: Path) -> Target:
        graph = _fused(bench)
        name = _products(graph, min(layer, _layers(graph) - 1))[place].input[1]
        graph.set(name, change(graph.value(name)))
        return graph.written(folder)

    return plant


def _head_zeroed(weight: NDArray[Any]) -> NDArray[Any]:
    weight[: weight.shape[0] // 12] = 0
    return weight


def joined_changed(layer: int, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Workbench, Path], Target]:
    """A plant that changes the joined weights of query, key and value of a layer."""

    def plant(bench: Workbench, folder: Path) -> Target:
        graph = _fused(bench)
        name = graph.of("Attention")[layer].input[1]
        graph.set(name, change(graph.value(name)))
        return graph.written(folder)

    return plant


def _query_doubled(weight: NDArray[Any]) -> NDArray[Any]:
    weight[:, : weight.shape[1] // 3] *= 1.2
    return weight


def _query_for_value(weight: NDArray[Any]) -> NDArray[Any]:
    third = weight.shape[1] // 3
    return np.concatenate([weight[:, 2 * third :], weight[:, third : 2 * third], weight[:, :third]], axis=1)


def layers_swapped(first: int, second: int) -> Callable[[Workbench, Path], Target]:
    def plant(bench: Workbench, folder: Path) -> Target:
        graph = _fused(bench)
        constants = {tensor.name for tensor in graph.model.graph.initializer}
        starts = [place for place, node in enumerate(graph.nodes) if node.op_type == "Attention"]
        kinds = ("Attention", "MatMul", "SkipLayerNormalization", "BiasGelu")

        def layer(number: int) -> list[onnx.NodeProto]:
            end = starts[number + 1] if number + 1 < len(starts) else len(graph.nodes)
            return [node for node in list(graph.nodes)[starts[number] : end] if node.op_type in kinds]

        for one, other in zip(layer(first), layer(second), strict=False):
            for place, (mine, theirs) in enumerate(zip(list(one.input), list(other.input), strict=True)):
                if mine in constants and theirs in constants:
                    one.input[place], other.input[place] = theirs, mine
        return graph.written(folder)

    return plant


def epsilon(layer: int, factor: float) -> Callable[[Workbench, Path], Target]:
    def plant(bench: Workbench, folder: Path) -> Target:
        graph = _fused(bench)
        node = graph.of("SkipLayerNormalization")[2 * layer]
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f *= factor
        return graph.written(folder)

    return plant


def gelu_by_tanh(layer: int) -> Callable[[Workbench, Path], Target]:
    def plant(bench: Workbench, folder: Path) -> Target:
        graph = _fused(bench)
        graph.of("BiasGelu")[layer].op_type = "FastGelu"
        return graph.written(folder)

    return plant


def _head(graph: Graph) -> onnx.NodeProto:
    return next(node for node in graph.nodes if "logits" in node.output)


def head_permuted(bench: Workbench, folder: Path) -> Target:
    graph = _fused(bench)
    for name in _head(graph).input[1:]:
        graph.set(name, np.roll(graph.value(name), 1, axis=0))
    return graph.written(folder)


def two_labels_swapped(bench: Workbench, folder: Path) -> Target:
    graph = _fused(bench)
    for name in _head(graph).input[1:]:
        values = graph.value(name)
        values[[0, 1]] = values[[1, 0]]
        graph.set(name, values)
    return graph.written(folder)


def head_bias_lost(bench: Workbench, folder: Path) -> Target:
    graph = _fused(bench)
    name = _head(graph).input[2]
    graph.set(name, np.full_like(graph.value(name), 0) + np.linspace(0, 0.05, len(graph.value(name)), dtype=np.float32))
    return graph.written(folder)


def not_a_number_for_one_word(bench: Workbench, folder: Path) -> Target:
    """The embedding of the rarest piece among the messages is NaN, so few rows are."""
    graph = _fused(bench)
    encoder = Encoder(bench.fused)
    ids = np.concatenate([np.unique(encoder.encode([text])["input_ids"]) for text in bench.texts])
    pieces, counts = np.unique(ids, return_counts=True)
    name = _weight("model.", "word_embeddings.weight")(graph)
    table = graph.value(name)
    table[pieces[counts.argmin()]] = np.nan
    graph.set(name, table)
    return graph.written(folder)


def overflow(layer: int) -> Callable[[Workbench, Path], Target]:
    """An FFN's inner values pass through fp16 in a scaling that overflows it."""

    def plant(bench: Workbench, folder: Path) -> Target:
        graph = _fused(bench)
        gelu = graph.of("BiasGelu")[layer].output[0]
        big, small = graph.add("big", np.array(6e4, np.float32)), graph.add("small", np.array(1 / 6e4, np.float32))
        graph.behind(
            gelu,
            helper.make_node("Mul", [gelu, big], ["overflow_big"], name="overflow_1"),
            helper.make_node("Cast", ["overflow_big"], ["overflow_half"], name="overflow_2", to=10),
            helper.make_node("Cast", ["overflow_half"], ["overflow_float"], name="overflow_3", to=1),
            helper.make_node("Mul", ["overflow_float", small], ["overflow_back"], name="overflow_4"),
            result="overflow_back",
        )
        return graph.written(folder)

    return plant


def frozen(axis: int, size: int) -> Callable[[Workbench, Path], Target]:
    def plant(bench: Workbench, folder: Path) -> Target:
        graph = _fused(bench)
        for value in graph.model.graph.input:
            value.type.tensor_type.shape.dim[axis].dim_value = size
        return graph.written(folder)

    return plant


def frozen_within(bench: Workbench, folder: Path) -> Target:
    """The inputs say that the batch is free, and a reshape inside has it at one."""
    graph = _fused(bench)
    labels = len(graph.value(_head(graph).input[2]))
    shape = graph.add("frozen_shape", np.array([1, labels], np.int64))
    graph.at_the_end(helper.make_node("Reshape", ["raw_logits", shape], ["logits"], name="frozen"))
    return graph.written(folder)


def too_short(bench: Workbench, folder: Path) -> Target:
    """The table of positions ends before the longest message that the tokenizer gives."""
    graph = _fused(bench)
    table = graph.value("position_and_type_embeddings")
    longest = max(len(Encoder(bench.fused).encode([text])["input_ids"][0]) for text in bench.texts)
    graph.set("position_and_type_embeddings", table[: longest + 1])
    return graph.written(folder)


def last_layer_dropped(bench: Workbench, folder: Path) -> Target:
    graph = _plain(bench)
    norms = graph.of("LayerNormalization")
    before, last = norms[-3].output[0], norms[-1].output[0]
    for node in graph.nodes:
        if node.op_type not in ("LayerNormalization", "Add", "MatMul"):
            for place, name in enumerate(node.input):
                if name == last:
                    node.input[place] = before
    graph.prune()
    return graph.written(folder)


def dropout_on(bench: Workbench, folder: Path) -> Target:
    """Written out: onnxruntime takes the operator Dropout for idle, whatever its training mode says."""
    graph = _fused(bench)
    pooled = graph.of("Tanh")[-1].output[0]
    ratio, kept = graph.add("ratio", np.array(0.1, np.float32)), graph.add("kept", np.array(1 / 0.9, np.float32))
    graph.behind(
        pooled,
        helper.make_node("RandomUniformLike", [pooled], ["drawn"], name="dropout_1", dtype=1),
        helper.make_node("Greater", ["drawn", ratio], ["stays"], name="dropout_2"),
        helper.make_node("Cast", ["stays"], ["stays_float"], name="dropout_3", to=1),
        helper.make_node("Mul", [pooled, "stays_float"], ["dropped_part"], name="dropout_4"),
        helper.make_node("Mul", ["dropped_part", kept], ["dropped"], name="dropout_5"),
        result="dropped",
    )
    return graph.written(folder)


def wrong_output(bench: Workbench, folder: Path) -> Target:
    """What is called logits is the pooled state before the head."""
    graph = _fused(bench)
    pooled = graph.of("Tanh")[-1].output[0]
    graph.at_the_end(helper.make_node("Identity", [pooled], ["logits"], name="wrong_output"))
    dims = graph.model.graph.output[0].type.tensor_type.shape.dim
    dims[1].dim_value = len(graph.value(graph.of("Gemm")[0].input[2]))
    return graph.written(folder)


def wrong_token_pooled(bench: Workbench, folder: Path) -> Target:
    graph = _plain(bench)
    graph.named("node_select").input[1] = graph.add("last_token", np.array(-1, np.int64))
    return graph.written(folder)


def temperature(bench: Workbench, folder: Path) -> Target:
    graph = _fused(bench)
    half = graph.add("half", np.array(0.5, np.float32))
    graph.at_the_end(helper.make_node("Mul", ["raw_logits", half], ["logits"], name="temperature"))
    return graph.written(folder)


def probabilities(bench: Workbench, folder: Path) -> Target:
    graph = _fused(bench)
    graph.at_the_end(helper.make_node("Softmax", ["raw_logits"], ["logits"], name="post", axis=-1))
    return graph.written(folder)


def batch_dependent(bench: Workbench, folder: Path) -> Target:
    """Each answer has a little of the batch's mean in it; that of one message is its own."""
    graph = _fused(bench)
    little, rest = graph.add("little", np.array(0.02, np.float32)), graph.add("rest", np.array(0.98, np.float32))
    axes = graph.add("batch_axis", np.array([0], np.int64))
    graph.at_the_end(
        helper.make_node("ReduceMean", ["raw_logits", axes], ["batch_mean"], name="mix_1", keepdims=1),
        helper.make_node("Mul", ["batch_mean", little], ["batch_part"], name="mix_2"),
        helper.make_node("Mul", ["raw_logits", rest], ["own_part"], name="mix_3"),
        helper.make_node("Add", ["own_part", "batch_part"], ["logits"], name="mix_4"),
    )
    return graph.written(folder)


def rows_turned(bench: Workbench, folder: Path) -> Target:
    """The answers of a batch come in the opposite order: one message alone is answered well."""
    graph = _fused(bench)
    names = [
        graph.add(name, np.array([value], np.int64))
        for name, value in (("from", -1), ("to", np.iinfo(np.int64).min), ("axis", 0), ("step", -1))
    ]
    graph.at_the_end(helper.make_node("Slice", ["raw_logits", *names], ["logits"], name="turned"))
    return graph.written(folder)


def embeddings_shifted(bench: Workbench, folder: Path) -> Target:
    graph = _fused(bench)
    name = _weight("model.", "word_embeddings.weight")(graph)
    graph.set(name, np.roll(graph.value(name), 1, axis=0))
    return graph.written(folder)


def double_output(bench: Workbench, folder: Path) -> Target:
    graph = _fused(bench)
    graph.at_the_end(helper.make_node("Cast", ["raw_logits"], ["logits"], name="cast", to=onnx.TensorProto.DOUBLE))
    graph.model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    return graph.written(folder)


# --- in the files beside it ---


def file_changed(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Workbench, Path], Target]:
    def plant(bench: Workbench, folder: Path) -> Target:
        shutil.copytree(bench.fused, folder, ignore=shutil.ignore_patterns("plain.onnx"))
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        change(content)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
        return onnx_target(folder)

    return plant


def checkpoint_changed(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Workbench, Path], Target]:
    def plant(bench: Workbench, folder: Path) -> Target:
        shutil.copytree(bench.checkpoint, folder)
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        change(content)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
        return torch_target(folder)

    return plant


def _labels_turned(config: dict[str, Any]) -> None:
    names = list(config["id2label"].values())
    config["id2label"] = {str(index): names[index - 1] for index in range(len(names))}


def _another_vocabulary(tokenizer: dict[str, Any]) -> None:
    pieces = tokenizer["model"]["vocab"]
    ids = sorted(index for piece, index in pieces.items() if index > 200 or len(pieces) < 1000)[5:]
    turned = dict(zip(ids, [*ids[1:], ids[0]], strict=True))
    tokenizer["model"]["vocab"] = {piece: turned.get(index, index) for piece, index in pieces.items()}


def other_epoch(bench: Workbench, folder: Path) -> Target:
    """The checkpoint as it is a few training steps away."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(bench.checkpoint, folder)
    model: Any = TASK.load_model(bench.checkpoint, dtype=torch.float32)
    encoder = Encoder(bench.checkpoint)
    feed = encoder.encode(list(bench.calibration[:16]))
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    for _ in range(4):
        logits = model(**{name: torch.from_numpy(feed[name]) for name in ("input_ids", "attention_mask")}).logits
        loss = torch.nn.functional.cross_entropy(logits, torch.randint(logits.shape[1], (len(logits),)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    names = load_file(folder / "model.safetensors").keys()
    state = {name: value.contiguous() for name, value in model.state_dict().items() if name in names}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return torch_target(folder)


# --- int8 ---


def scale_changed(node: Callable[[Graph], str], factor: float) -> Callable[[Workbench, Path], Target]:
    """A plant that changes a scale, which is found from the graph."""

    def plant(bench: Workbench, folder: Path) -> Target:
        graph = Graph(bench.static / "model.onnx")
        name = node(graph)
        graph.set(name, graph.value(name) * np.float32(factor))
        return graph.written(folder)

    return plant


def _entering(graph: Graph, layer: int, place: int) -> str:
    """The value that is quantized before a layer's product."""
    quantized = _products(graph, layer)[place].input[0]
    return quantized.removesuffix("_quantized")


def layer_saturating(bench: Workbench, folder: Path) -> Target:
    """All four activations that a layer quantizes have a fiftieth of their range: one alone changes few answers."""
    graph = Graph(bench.static / "model.onnx")
    last = _layers(graph) - 1
    names = [graph.of("QAttention")[-1].input[3], *(f"{_entering(graph, last, place)}_scale" for place in range(3))]
    for name in names:
        graph.set(name, graph.value(name) * np.float32(0.02))
    return graph.written(folder)


def wrong_zero_point(bench: Workbench, folder: Path) -> Target:
    """A product subtracts another zero point than its activations were quantized with."""
    graph = Graph(bench.static / "model.onnx")
    product = _products(graph, 1)[2]
    right = graph.value(product.input[4])
    product.input[4] = graph.add("wrong_zero_point", (right + np.uint8(20)).astype(np.uint8))
    return graph.written(folder)


def scale_of_another(bench: Workbench, folder: Path) -> Target:
    """The attention output of layer 1 is dequantized with the scale of a product in the FFN."""
    graph = Graph(bench.static / "model.onnx")
    _products(graph, 1)[0].input[2] = f"{_entering(graph, 1, 1)}_scale"
    return graph.written(folder)


def weights_read_as_unsigned(bench: Workbench, folder: Path) -> Target:
    """The int8 weights of a product have their lowest bits and sign mixed up, as when read with another offset."""
    graph = Graph(bench.static / "model.onnx")
    name = _products(graph, 1)[2].input[1]
    graph.set(name, (graph.value(name).view(np.uint8) ^ np.uint8(128)).view(np.int8))
    return graph.written(folder)


def wrong_calibration(bench: Workbench, folder: Path) -> Target:
    """Ranges as of a calibration that saw hardly any activation: every one is a tenth."""
    graph = Graph(bench.static / "model.onnx")
    for node in graph.of("QuantizeLinear"):
        graph.set(node.input[1], graph.value(node.input[1]) * np.float32(0.1))
    return graph.written(folder)


def dynamic_weight_scale(bench: Workbench, folder: Path) -> Target:
    graph = Graph(bench.dynamic / "model.onnx")
    name = f"{_products(graph, 0)[1].input[1].removesuffix('_quantized')}_scale"
    graph.set(name, graph.value(name) * np.float32(8))
    return graph.written(folder)


def rounded_to_two_bits(bench: Workbench, folder: Path) -> Target:
    graph = Graph(bench.static / "model.onnx")
    name = _products(graph, 1)[1].input[1]
    values = graph.value(name)
    graph.set(name, (np.sign(values) * (np.abs(values.astype(np.int16)) // 100) * 100).astype(np.int8))
    return graph.written(folder)


FAULTS: tuple[Fault, ...] = (
    Fault("mask dropped", mask_dropped, NUMBERS, ("attention", 0)),
    Fault("mask dropped in one layer", mask_dropped_in_one_layer, NUMBERS, ("attention", 1)),
    Fault("a mask that lets padding through", mask_too_weak, NUMBERS, ("attention", 0)),
    Fault("position ids off by one", positions_off_by_one, ALONE, ("embeddings", None)),
    Fault("token types ignored", types_ignored, ALONE, ("embeddings", None)),
    Fault("word embeddings shifted by a row", embeddings_shifted, ALONE, ("embeddings", None)),
    Fault("a weight transposed", product_changed(1, 0, lambda weight: weight.T), ALONE, ("attention", 1)),
    Fault("two layers' weights swapped", layers_swapped(0, 1), ALONE, ("attention", 0)),
    Fault("one head zeroed", product_changed(1, 0, _head_zeroed), ALONE, ("attention", 1)),
    Fault("queries a fifth too large", joined_changed(0, _query_doubled), ALONE, ("attention", 0)),
    Fault("query and value exchanged", joined_changed(1, _query_for_value), ALONE, ("attention", 1)),
    Fault("an FFN column negated", product_changed(1, 1, lambda w: np.where(np.arange(w.shape[1]) == 3, -w, w)), ALONE,
          ("ffn", 1)),
    Fault("LayerNorm epsilon x1000", epsilon(1, 1e3), ("normalization epsilon",), ("layer norm", 1)),
    Fault("LayerNorm epsilon of 0.01", epsilon(1, 1e10), (*ALONE, "normalization epsilon"), ("layer norm", 1)),
    Fault("GELU by tanh", gelu_by_tanh(1), ALONE, ("ffn", 1)),
    Fault("labels permuted in the head", head_permuted, ALONE, ("labels", None)),
    Fault("two labels swapped in the head", two_labels_swapped, ALONE, ("labels", None)),
    Fault("labels permuted in config.json", file_changed("config.json", _labels_turned), ("label order",),
          ("labels", None)),
    Fault("the head's bias lost", head_bias_lost, ALONE, ("head", None)),
    Fault("another vocabulary", file_changed("tokenizer.json", _another_vocabulary), ("tokenizer",),
          ("tokenizer", None)),
    Fault("lower-casing lost", file_changed("tokenizer.json", lambda t: t["normalizer"].update(lowercase=False)),
          ("tokenizer",), ("tokenizer", None)),
    Fault("truncation at another length", file_changed("tokenizer_config.json", lambda c: c.update(model_max_length=9)),
          ("tokenizer",), ("tokenizer", None)),
    Fault("truncation at the other side",
          file_changed("tokenizer_config.json", lambda c: c.update(truncation_side="left")), ("tokenizer settings",),
          ("tokenizer", None)),
    Fault("padding at the other side",
          checkpoint_changed("tokenizer_config.json", lambda c: c.update(padding_side="left")), ("tokenizer settings",),
          ("tokenizer", None)),
    Fault("NaN in few rows", not_a_number_for_one_word, ALONE, ("embeddings", None)),
    Fault("fp16 overflow", overflow(1), ALONE, ("ffn", 1)),
    Fault("frozen batch axis", frozen(0, 1), ("interface",), ("interface", None)),
    Fault("frozen length axis", frozen(1, 16), ("interface",), ("interface", None)),
    Fault("batch frozen within", frozen_within, ("every batch size and length",), ("interface", None)),
    Fault("too few positions for the longest message", too_short, ("every batch size and length",),
          ("interface", None)),
    Fault("another epoch's weights", other_epoch, ALONE, None),
    Fault("last layer dropped", last_layer_dropped, ALONE, ("layer", -1)),
    Fault("dropout left on", dropout_on, ("the same answers a second time",), ("chance", None)),
    Fault("wrong output picked", wrong_output, ("interface",), ("interface", None)),
    Fault("another token pooled", wrong_token_pooled, ALONE, ("pooler", None)),
    Fault("output of another type", double_output, ("interface",), ("interface", None)),
    Fault("a temperature", temperature, ALONE, ("post-processing", None)),
    Fault("probabilities in place of logits", probabilities, ALONE, ("post-processing", None)),
    Fault("a batch-dependent answer", batch_dependent, ("answers alone and among others",), ("batching", None)),
    Fault("the rows of a batch in another order", rows_turned, ("answers alone and among others",),
          ("batching", None)),
    Fault("int8: one layer saturating", layer_saturating, TASK_CHECKS, ("attention", -1), "int8"),
    Fault("int8: wrong calibration set", wrong_calibration, TASK_CHECKS, None, "int8"),
    Fault("int8: wrong zero point", wrong_zero_point, TASK_CHECKS, ("ffn", 1), "int8"),
    Fault("int8: scales of another product", scale_of_another, TASK_CHECKS, ("attention", 1), "int8"),
    Fault("int8: weights read with another offset", weights_read_as_unsigned, TASK_CHECKS, ("ffn", 1), "int8"),
    Fault("int8: attention's weight scale x8",
          scale_changed(lambda g: g.of("QAttention")[1].input[4], 8), TASK_CHECKS, ("attention", 1), "int8"),
    Fault("int8: dynamic, weight scale of a product x8", dynamic_weight_scale, TASK_CHECKS, ("ffn", 0), "int8"),
    Fault("int8: a product left with three values", rounded_to_two_bits, TASK_CHECKS, ("ffn", 1), "int8"),
)  # fmt: skip


# --- harmless ---


def refactored(change: Callable[[onnx.ModelProto], onnx.ModelProto | None], *, plain: bool = False, **saving: Any) -> (
    Callable[[Workbench, Path], Target]
):  # fmt: skip
    def make(bench: Workbench, folder: Path) -> Target:
        graph = _plain(bench) if plain else _fused(bench)
        graph.model = change(graph.model) or graph.model
        return graph.written(folder, **saving)

    return make


def _renamed(model: onnx.ModelProto) -> None:
    kept = {value.name for value in (*model.graph.input, *model.graph.output)} | {""}
    for node in model.graph.node:
        node.name = f"n_{node.name}"
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = name if name in kept else f"v_{name}"
    for tensor in model.graph.initializer:
        tensor.name = f"v_{tensor.name}"


def _with_identities(model: onnx.ModelProto) -> None:
    for number, node in enumerate(list(model.graph.node)):
        if node.op_type in ("BiasGelu", "Gelu", "LayerNormalization", "SkipLayerNormalization"):
            made = node.output[0]
            node.output[0] = f"{made}_before"
            model.graph.node.insert(
                _place(model, node) + 1,
                helper.make_node("Identity", [node.output[0]], [made], name=f"identity_{number}"),
            )


def _place(model: onnx.ModelProto, node: onnx.NodeProto) -> int:
    return next(at for at, other in enumerate(model.graph.node) if other.output[0] == node.output[0])


def _turned_initializers(model: onnx.ModelProto) -> None:
    tensors = list(model.graph.initializer)[::-1]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)


def _as_constants(model: onnx.ModelProto) -> None:
    small = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 1]
    for tensor in small:
        model.graph.initializer.remove(tensor)
        model.graph.node.insert(
            0, helper.make_node("Constant", [], [tensor.name], name=f"c_{tensor.name}", value=tensor)
        )


def _with_dead_nodes(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 3), np.float32), "unused"))
    model.graph.node.append(helper.make_node("Add", ["unused", "unused"], ["nowhere"], name="dead"))


def _other_axis_names(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        for place, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                dim.dim_param = f"d{place}"


def _unshaped_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.ClearField("shape")


def _with_notes(model: onnx.ModelProto) -> None:
    model.doc_string = "made elsewhere"
    model.producer_name = "another tool"
    helper.set_model_props(model, {"author": "somebody"})
    for node in model.graph.node:
        node.doc_string = "a note"


def _with_hidden_output(model: onnx.ModelProto) -> None:
    tanh = next(node for node in model.graph.node if node.op_type == "Tanh")
    model.graph.output.append(helper.make_tensor_value_info(tanh.output[0], onnx.TensorProto.FLOAT, None))


def _with_idle_dropout(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Tanh")
    made = node.output[0]
    node.output[0] = f"{made}_kept"
    model.graph.node.insert(_place(model, node) + 1, helper.make_node("Dropout", [node.output[0]], [made], name="idle"))


def _product_split(model: onnx.ModelProto) -> None:
    """The head as a product and a sum."""
    node = next(node for node in model.graph.node if "logits" in node.output)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    turned = numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(weight).T), "head_turned")
    model.graph.initializer.append(turned)
    new = [
        helper.make_node("MatMul", [node.input[0], "head_turned"], ["head_product"], name="head_product"),
        helper.make_node("Add", ["head_product", node.input[2]], ["logits"], name="head_sum"),
    ]
    model.graph.node.remove(node)
    model.graph.node.extend(new)


def _opset(number: int) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    from onnx import version_converter

    return lambda model: version_converter.convert_version(model, number)


def _ir(number: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.ir_version = number

    return change


def optimized(level: str, *, plain: bool = True) -> Callable[[Workbench, Path], Target]:
    """As onnxruntime itself rewrites the graph: constants folded, nodes fused its way."""

    def make(bench: Workbench, folder: Path) -> Target:
        import onnxruntime

        shutil.copytree(bench.fused, folder, ignore=shutil.ignore_patterns("*.onnx"))
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.optimized_model_filepath = str(folder / "model.onnx")
        options.log_severity_level = 3
        source = bench.fused / ("plain.onnx" if plain else "model.onnx")
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        return onnx_target(folder)

    return make


def quantized(variant: Variant, *, half: bool = False, in_float: int = 0) -> Callable[[Workbench, Path], Target]:
    def make(bench: Workbench, folder: Path) -> Target:
        calibration = bench.calibration[::2] if half else bench.calibration
        graph = Graph(bench.fused / "model.onnx")
        names = [node.name for node in graph.of("MatMul")[:in_float]]
        quantize(bench.fused, folder, variant, calibration=calibration, in_float=names)
        return onnx_target(folder)

    return make


def copied(bench: Workbench, folder: Path) -> Target:
    shutil.copytree(bench.checkpoint, folder)
    return torch_target(folder)


def sharded(bench: Workbench, folder: Path) -> Target:
    import torch

    copied(bench, folder)
    (folder / "model.safetensors").unlink()
    model = TASK.load_model(bench.checkpoint, dtype=torch.float32)
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    model.save_pretrained(folder, max_shard_size=max(size // 3, 1000))
    return torch_target(folder)


def packaged(bench: Workbench, folder: Path) -> Target:
    build_package(bench.fused, folder, "toy", TASK, PackageSettings(device="cpu"), samples=())
    return Target(
        "onnxruntime", str(folder / "toy_onnx" / "1" / "model.onnx"), threads=1, tokenizer=str(folder / "toy" / "1")
    )


def bare(bench: Workbench, folder: Path) -> Target:
    folder.mkdir()
    shutil.copyfile(bench.fused / "model.onnx", folder / "bare.onnx")
    return Target("onnxruntime", str(folder / "bare.onnx"), threads=1, tokenizer=str(bench.checkpoint))


def rewritten_json(bench: Workbench, folder: Path) -> Target:
    """The same tokenizer and configuration with other spaces, other order, and settings that only repeat defaults."""
    shutil.copytree(bench.fused, folder, ignore=shutil.ignore_patterns("plain.onnx"))
    for name in _COMPANIONS:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(content, indent=3, sort_keys=True), encoding="utf-8")
    return onnx_target(folder)


def _of(name: str) -> Callable[[Workbench], Target]:
    return lambda bench: onnx_target(getattr(bench, name))


def _same(name: str) -> Callable[[Workbench, Path], Target]:
    return lambda bench, folder: onnx_target(getattr(bench, name))


def _plain_file(bench: Workbench, folder: Path) -> Target:
    return _plain(bench).written(folder)


def _plain_reference(bench: Workbench) -> Target:
    return Target("onnxruntime", str(bench.fused / "plain.onnx"), threads=1)


def half_weights(bench: Workbench, folder: Path) -> Target:
    return replace(torch_target(bench.checkpoint), precision="bf16")


CLEAN: tuple[Clean, ...] = (
    Clean("fused as exported", _same("fused")),
    Clean("plain as exported", _plain_file),
    Clean("PyTorch against itself", copied),
    Clean("weights in shards", sharded),
    Clean("fused against plain", _same("fused"), _plain_reference),
    Clean("plain against fused", _plain_file, _of("fused")),
    Clean("opset 19", refactored(_opset(19), plain=True)),
    Clean("opset 20", refactored(_opset(20), plain=True)),
    Clean("opset 21", refactored(_opset(21), plain=True)),
    Clean("older IR", refactored(_ir(8), plain=True)),
    Clean("another set of fusions: skip and norm apart", refactored(split_skip_normalization)),
    Clean("onnxruntime's basic rewriting", optimized("BASIC")),
    Clean("onnxruntime's extended fusions", optimized("EXTENDED")),
    Clean("onnxruntime's rewriting of the fused graph", optimized("EXTENDED", plain=False)),
    Clean("renamed tensors", refactored(_renamed)),
    Clean("identity nodes", refactored(_with_identities)),
    Clean("identity nodes in the plain graph", refactored(_with_identities, plain=True)),
    Clean("initializers in another order", refactored(_turned_initializers)),
    Clean("initializers as constants", refactored(_as_constants)),
    Clean("dead nodes and weights", refactored(_with_dead_nodes)),
    Clean("other names of axes", refactored(_other_axis_names)),
    Clean("output without a shape", refactored(_unshaped_output)),
    Clean("notes and another producer", refactored(_with_notes)),
    Clean("one output more", refactored(_with_hidden_output)),
    Clean("an idle dropout", refactored(_with_idle_dropout)),
    Clean("the head as product and sum", refactored(_product_split)),
    Clean("external data", refactored(lambda model: None, save_as_external_data=True, location="weights.bin",
                                      size_threshold=1024)),
    Clean("inferred shapes in the graph", refactored(onnx.shape_inference.infer_shapes, plain=True)),
    Clean("configuration written anew", rewritten_json),
    Clean("a package folder", packaged),
    Clean("a bare file", bare),
    Clean("bf16 in PyTorch", half_weights),
    Clean("fp16", _same("half")),
    Clean("static int8", _same("static")),
    Clean("static int8, half of the calibration", quantized(Variant("int8_static"), half=True)),
    Clean("static int8, skip and norm apart", quantized(Variant("int8_static", "split"))),
    Clean("static int8, two products in float", quantized(Variant("int8_static"), in_float=2)),
    Clean("dynamic int8", _same("dynamic")),
    Clean("dynamic int8 of the plain graph", quantized(Variant("int8_dynamic", "plain"))),
    Clean("static int8 against itself", _same("static"), _of("static")),
    Clean("dynamic against static int8", _same("dynamic"), _of("static")),
)  # fmt: skip
