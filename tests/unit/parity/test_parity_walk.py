"""Faults planted in tiny models: the walk has to name the layer and the part that each was planted in."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from deploykit.export.modules import module_values
from deploykit.parity.activations import OnnxTrace, TorchTrace
from deploykit.parity.localize import Localization
from deploykit.parity.walk import walk
from deploykit.runners.tokenize import Encoder
from deploykit.tasks import find_task

TASK = find_task("text-classification")
MESSAGES = [
    "hello can you tell me about the parcel please today",
    "cancel",
    "my invoice was not what i need and i want an answer",
    "login password",
    "where is the driver with my package since last week",
    "refund a bill",
]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 4 layers; its biases and normalizations are random too, as a trained model's are."""
    folder = tmp_path_factory.mktemp("walked") / "checkpoint"
    shutil.copytree(tiny_checkpoint("bert", num_hidden_layers=4), folder)
    model = TASK.load_model(folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return TASK.load_model(checkpoint).eval()


@pytest.fixture(scope="module")
def folder(checkpoint: Path) -> Path:
    """The same model, exported."""
    from deploykit.export.to_onnx import export_onnx

    out = checkpoint.with_name("exported")
    export_onnx(checkpoint, out, TASK)
    return out


@pytest.fixture(scope="module")
def feeds(folder: Path) -> list[Any]:
    encoder = Encoder(folder)
    return [encoder.encode(MESSAGES), *(encoder.encode([message]) for message in MESSAGES[:2])]


def walked(reference: Any, candidate: Any, feeds: list[Any]) -> Localization:
    traces = [
        TorchTrace(each, "logits") if isinstance(each, torch.nn.Module) else OnnxTrace(each, "logits")
        for each in (reference, candidate)
    ]
    return walk(traces[0], traces[1], feeds, "logits")


def found_in(localization: Localization) -> tuple[str, int | None]:
    assert localization.findings, "nothing was found"
    finding = localization.findings[0]
    return finding.part, finding.layer


def _fault_name(each: Any) -> str:
    return getattr(each, "__name__", "")


# --- PyTorch ---


def layers(model: Any) -> Any:
    return model.bert.encoder.layer


@torch.no_grad()
def transpose_query(model: Any) -> None:
    weight = layers(model)[2].attention.self.query.weight
    weight.copy_(weight.T.clone())


@torch.no_grad()
def swap_layers(model: Any) -> None:
    stack = layers(model)
    stack[1], stack[3] = stack[3], stack[1]


@torch.no_grad()
def zero_head(model: Any) -> None:
    value = layers(model)[1].attention.self.value
    value.weight[8:16] = 0
    value.bias[8:16] = 0


def enlarge_epsilon(model: Any) -> None:
    layers(model)[2].output.LayerNorm.eps = 0.05


def approximate_gelu(model: Any) -> None:
    layers(model)[1].intermediate.intermediate_act_fn = torch.nn.GELU(approximate="tanh")


@torch.no_grad()
def shift_positions(model: Any) -> None:
    table = model.bert.embeddings.position_embeddings.weight
    table.copy_(torch.roll(table, -1, dims=0))


@torch.no_grad()
def zero_types(model: Any) -> None:
    model.bert.embeddings.token_type_embeddings.weight.zero_()


def drop_last_layer(model: Any) -> None:
    del layers(model)[3]


def drop_a_layer(model: Any) -> None:
    del layers(model)[1]


@torch.no_grad()
def put_nan(model: Any) -> None:
    layers(model)[3].intermediate.dense.weight[0, 0] = torch.nan


@torch.no_grad()
def other_weights(model: Any) -> None:
    torch.manual_seed(1)
    for layer in layers(model):
        for parameter in layer.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))


def leave_dropout_on(model: Any) -> None:
    model.bert.embeddings.dropout.train()


@torch.no_grad()
def scale_pooler(model: Any) -> None:
    model.bert.pooler.dense.weight.mul_(1.5)


@torch.no_grad()
def change_head(model: Any) -> None:
    model.classifier.weight[1] += 0.5


@torch.no_grad()
def change_narrow(model: Any) -> None:
    layers(model)[0].output.dense.weight[3] += 0.3


TORCH_FAULTS: list[tuple[Callable[[Any], None], str, int | None, str]] = [
    (transpose_query, "attention", 2, "query is transposed"),
    (swap_layers, "attention", 1, "weights of layer 3"),
    (zero_head, "attention", 1, "head 1 is zero"),
    (enlarge_epsilon, "layer norm", 2, "epsilon is 0.05"),
    (approximate_gelu, "ffn", 1, "GELU by tanh"),
    (shift_positions, "embeddings", None, "begin at 1"),
    (zero_types, "embeddings", None, "zero"),
    (drop_last_layer, "layer", 3, "not in the candidate"),
    (drop_a_layer, "attention", 1, "weights of layer 2"),
    (put_nan, "ffn", 3, "NaN"),
    (other_weights, "attention", 0, "other weights"),
    (leave_dropout_on, "embeddings", None, ""),
    (scale_pooler, "pooler", None, ""),
    (change_head, "head", None, ""),
    (change_narrow, "ffn", 0, ""),
]


@pytest.mark.parametrize(("plant", "part", "layer", "words"), TORCH_FAULTS, ids=_fault_name)
def test_a_fault_in_pytorch_is_found_where_it_was_planted(
    plant: Callable[[Any], None], part: str, layer: int | None, words: str, model: Any, feeds: list[Any]
) -> None:
    candidate = copy.deepcopy(model)
    plant(candidate)
    found = walked(model, candidate, feeds)
    assert found_in(found) == (part, layer), found.findings
    assert words in found.findings[0].cause
    assert found.breaking is None or found.breaking.share >= 0.5


@pytest.mark.parametrize("plant", [transpose_query, zero_head, approximate_gelu, scale_pooler, change_head])
def test_one_fault_is_enough_to_break_a_model_by_itself(
    plant: Callable[[Any], None], model: Any, feeds: list[Any]
) -> None:
    candidate = copy.deepcopy(model)
    plant(candidate)
    found = walked(model, candidate, feeds)
    assert found.breaking is not None
    assert found.breaking.modules == (next(layer.name for layer in found.layers if layer.own_sqnr_db < 90),)
    assert found.breaking.minimal


def test_nothing_is_found_in_the_same_model(model: Any, folder: Path, feeds: list[Any]) -> None:
    for candidate in (copy.deepcopy(model), *(onnx.load(folder / name) for name in ("plain.onnx", "model.onnx"))):
        found = walked(model, candidate, feeds)
        assert found.findings == ()
        assert len(found.layers) > 20
        assert min(layer.own_sqnr_db for layer in found.layers) > 100


# --- ONNX, fused and plain, against PyTorch ---


def constant(graph: onnx.GraphProto, name: str) -> tuple[onnx.TensorProto, Any]:
    tensor = next(each for each in graph.initializer if each.name == name)
    return tensor, numpy_helper.to_array(tensor).copy()


def node_of(graph: onnx.ModelProto, path: str, kind: str) -> onnx.NodeProto:
    """The node of a kind that gives, or leads to, the output of a module."""
    value = next(value for value, module in module_values(graph).items() if module == path)
    producers = {output: node for node in graph.graph.node for output in node.output}
    node = producers[value]
    while node.op_type != kind:
        node = next(producers[name] for name in node.input if name in producers)
    return node


def replace(graph: onnx.GraphProto, name: str, values: Any) -> None:
    tensor, _ = constant(graph, name)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))


def onnx_transposed(graph: onnx.ModelProto) -> None:
    node = node_of(graph, "bert.encoder.layer.2.attention.output.LayerNorm", "MatMul")
    replace(graph.graph, node.input[1], constant(graph.graph, node.input[1])[1].T)


def onnx_epsilon(graph: onnx.ModelProto) -> None:
    path = "bert.encoder.layer.1.attention.output.LayerNorm"
    kinds = {node.op_type for node in graph.graph.node}
    node = node_of(graph, path, "SkipLayerNormalization" if "SkipLayerNormalization" in kinds else "LayerNormalization")
    next(each for each in node.attribute if each.name == "epsilon").f = 0.05


def onnx_mask(graph: onnx.ModelProto) -> None:
    """Nobody reads the mask; it stays an input."""
    for node in graph.graph.node:
        for number, name in enumerate(node.input):
            if name == "attention_mask" and node.op_type not in ("Shape",):
                node.input[number] = "all_ones"
    ones = [
        helper.make_node("Shape", ["attention_mask"], ["shape_of_mask"]),
        helper.make_node(
            "ConstantOfShape", ["shape_of_mask"], ["all_ones"], value=numpy_helper.from_array(np.ones(1, np.int64))
        ),
    ]
    for node in reversed(ones):
        graph.graph.node.insert(0, node)


def onnx_nan(graph: onnx.ModelProto) -> None:
    name = "model.bert.encoder.layer.3.output.dense.bias"
    _, values = constant(graph.graph, name)
    values[2] = np.nan
    replace(graph.graph, name, values)


def onnx_wide(graph: onnx.ModelProto) -> None:
    name = "model.bert.encoder.layer.0.intermediate.dense.bias"
    _, values = constant(graph.graph, name)
    replace(graph.graph, name, values + np.float32(0.1))


ONNX_FAULTS: list[tuple[Callable[[Any], None], str, int | None, str]] = [
    (onnx_transposed, "attention", 2, ""),
    (onnx_epsilon, "layer norm", 1, "epsilon is 0.05"),
    (onnx_mask, "attention", 0, "mask"),
    (onnx_nan, "ffn", 3, "NaN"),
    (onnx_wide, "ffn", 0, ""),
]


@pytest.mark.parametrize("name", ["plain.onnx", "model.onnx"])
@pytest.mark.parametrize(("plant", "part", "layer", "words"), ONNX_FAULTS, ids=_fault_name)
def test_a_fault_in_a_graph_is_found_where_it_was_planted(
    name: str,
    plant: Callable[[Any], None],
    part: str,
    layer: int | None,
    words: str,
    model: Any,
    folder: Path,
    feeds: list[Any],
) -> None:
    sound, graph = onnx.load(folder / name), onnx.load(folder / name)
    plant(graph)
    for reference in (model, sound):
        found = walked(reference, graph, feeds)
        assert found_in(found) == (part, layer), found.findings
        assert words in found.findings[0].cause


# --- static int8 against float32 ---


@pytest.fixture(scope="module")
def static(folder: Path) -> onnx.ModelProto:
    from deploykit.compress.quantize import Variant, quantize

    out = folder.with_name("static")
    quantize(folder, out, Variant("int8_static"), calibration=MESSAGES)
    return onnx.load(out / "model.onnx")


def entering(graph: onnx.ModelProto, path: str) -> onnx.NodeProto:
    """The node that rounds what a module gives."""
    value = next(value for value, module in module_values(graph).items() if module == path)
    return next(node for node in graph.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == value)


ACTIVATION = "bert.encoder.layer.2.intermediate.intermediate_act_fn"


def saturate(graph: onnx.ModelProto) -> None:
    node = entering(graph, ACTIVATION)
    replace(graph.graph, node.input[1], constant(graph.graph, node.input[1])[1] / np.float32(16))


def coarsen(graph: onnx.ModelProto) -> None:
    node = entering(graph, ACTIVATION)
    replace(graph.graph, node.input[1], constant(graph.graph, node.input[1])[1] * np.float32(40))


def shift_zero_point(graph: onnx.ModelProto) -> None:
    node = entering(graph, ACTIVATION)
    replace(graph.graph, node.input[2], np.array(constant(graph.graph, node.input[2])[1] + 120, np.uint8))


def scale_weights(graph: onnx.ModelProto) -> None:
    scale = entering(graph, ACTIVATION).input[1]
    product = next(node for node in graph.graph.node if node.op_type == "MatMulIntegerToFloat" and scale in node.input)
    replace(graph.graph, product.input[3], constant(graph.graph, product.input[3])[1] * np.float32(1.7))


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (saturate, "saturates"),
        (coarsen, "too coarse"),
        (shift_zero_point, "zero point"),
        (scale_weights, "scale is wrong"),
    ],
    ids=_fault_name,
)
def test_a_fault_in_int8_is_found_in_the_product_it_was_planted_in(
    plant: Callable[[Any], None], words: str, model: Any, folder: Path, static: onnx.ModelProto, feeds: list[Any]
) -> None:
    graph = onnx.ModelProto()
    graph.CopyFrom(static)
    plant(graph)
    for reference in (model, onnx.load(folder / "model.onnx")):
        found = walked(reference, graph, feeds)
        assert found.precision == "int8"
        assert found_in(found) == ("ffn", 2), found.findings
        assert words in found.findings[0].cause
        assert found.breaking is not None
        assert found.breaking.modules == ("layer 2 ffn output",)


def test_sound_int8_has_no_module_that_stands_out(model: Any, static: onnx.ModelProto, feeds: list[Any]) -> None:
    found = walked(model, static, feeds)
    assert "no module stands out" in found.findings[0].cause
    assert sum(layer.share or 0.0 for layer in found.layers) == pytest.approx(1.0)


def test_an_outlier_that_takes_all_steps_is_said(checkpoint: Path, feeds: list[Any]) -> None:
    from deploykit.compress.quantize import Variant, quantize
    from deploykit.export.to_onnx import export_onnx

    out = checkpoint.with_name("outlier")
    shutil.copytree(checkpoint, out)
    scaled = TASK.load_model(out)
    with torch.no_grad():
        layer = layers(scaled)[2]
        layer.attention.self.value.weight[5] *= 3e4
        layer.attention.self.value.bias[5] *= 3e4
        layer.attention.output.dense.weight[:, 5] /= 3e4
    scaled.save_pretrained(out)
    export_onnx(out, out / "onnx", TASK)
    quantize(out / "onnx", out / "int8", Variant("int8_static"), calibration=MESSAGES)
    found = walked(scaled.eval(), onnx.load(out / "int8" / "model.onnx"), feeds)
    assert found_in(found) == ("attention", 2)
    assert "in feature 5" in found.findings[0].cause
