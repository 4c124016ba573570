"""What a model's files say of it, without running it: inputs, outputs, opset, precision, epsilons."""

from __future__ import annotations

__all__ = ["Anatomy", "Precision", "TensorForm", "anatomy_of", "coarser"]

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from deploykit.errors import MissingDependencyError
from deploykit.runners.base import Target
from deploykit.runners.medium import medium_of
from deploykit.runners.onnx_runner import onnx_file
from deploykit.runners.untrusted import check_checkpoint, check_onnx, nodes_of_model
from deploykit.tasks.quiet import quiet_transformers

if TYPE_CHECKING:
    import onnx

Precision = Literal["fp32", "fp16", "bf16", "int8", "int4"]
"""What weights or arithmetic are rounded to, the finest first."""

_INT8_OPERATORS: Final = frozenset({
    "MatMulInteger", "QAttention", "QGemm", "QLinearMatMul", "QLinearConv", "ConvInteger", "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat", "QEmbedLayerNormalization", "DequantizeLinear",
})  # fmt: skip
_DYNAMIC_OPERATORS: Final = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"})
_PACKED_OPERATORS: Final = frozenset({"MatMulNBits", "GatherBlockQuantized", "MatMulBnb4"})
_NORMALIZATIONS: Final = frozenset({
    "LayerNormalization", "SkipLayerNormalization", "EmbedLayerNormalization", "QEmbedLayerNormalization",
    "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "RMSNormalization",
})  # fmt: skip
_EPSILON_KEYS: Final = ("layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "rms_norm_eps", "norm_eps")
_SAFETENSORS_PRECISIONS: Final[Mapping[str, Precision]] = {"F16": "fp16", "BF16": "bf16"}


@dataclass(frozen=True)
class TensorForm:
    """An input or output: its name, numpy dtype, and shape with None for an axis that is said to be free."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Anatomy:
    """What a model's files say of it.

    Attributes:
        precision: the coarsest that its weights or arithmetic are rounded to.
        source: what in the files tells the precision.
        dynamic_scales: whether an activation's scale is taken from the batch at hand, so that answers depend on it.
        inputs: of an ONNX graph; empty for PyTorch, which takes what its tokenizer gives.
        outputs: of an ONNX graph.
        opset: of an ONNX graph's default domain.
        epsilons: those of its normalizations, by the names of the nodes or the key in config.json.
    """

    precision: Precision
    source: str
    dynamic_scales: bool = False
    inputs: tuple[TensorForm, ...] = ()
    outputs: tuple[TensorForm, ...] = ()
    opset: int | None = None
    epsilons: tuple[tuple[str, float], ...] = ()


def coarser(first: Precision, second: Precision) -> Precision:
    """That of two precisions which explains the larger difference."""
    order = get_args(Precision)
    return first if order.index(first) >= order.index(second) else second


def anatomy_of(target: Target) -> Anatomy | None:
    """What the files of a target in process say; None for a server, whose files are elsewhere.

    Raises:
        ModelError: the files are missing, damaged or unsafe.
    """
    if target.kind == "triton":
        return None
    if target.kind == "torch":
        return _of_checkpoint(Path(target.location), target)
    return _of_graph(onnx_file(target.location))


def _of_checkpoint(folder: Path, target: Target) -> Anatomy:
    check_checkpoint(folder, beside=medium_of(target.task).beside)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    epsilons = _module_epsilons(folder, config)
    quantized = config.get("quantization_config")
    if isinstance(quantized, dict):
        bits = 4 if quantized.get("load_in_4bit") or quantized.get("bits") == 4 else 8
        return Anatomy("int4" if bits == 4 else "int8", "quantization_config of config.json", epsilons=epsilons)
    if target.precision in ("fp16", "bf16"):
        return Anatomy(target.precision, "the weights are cast to it", epsilons=epsilons)
    stored = _stored_precision(folder)
    return Anatomy(stored, "the dtype of the weights in safetensors", epsilons=epsilons)


def _module_epsilons(folder: Path, config: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """The epsilon of every normalization of a checkpoint's model, by module; from config.json where it can't be built.

    The model is built without memory for its weights. A config names one epsilon, but a head may have another.
    """
    import torch
    import transformers

    named = tuple((key, float(config[key])) for key in _EPSILON_KEYS if isinstance(config.get(key), float | int))
    kind = getattr(transformers, str((config.get("architectures") or [None])[0]), None)
    if kind is None:
        return named
    try:
        with torch.device("meta"), quiet_transformers():
            model = kind(transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        return named
    found = {
        name: getattr(module, "eps", getattr(module, "variance_epsilon", None))
        for name, module in model.named_modules()
    }
    return tuple((name, value) for name, value in found.items() if isinstance(value, float)) or named


def _stored_precision(folder: Path) -> Precision:
    """The coarsest dtype of a matrix in a folder's safetensors."""
    try:
        from safetensors import safe_open
    except ImportError:
        raise MissingDependencyError("safetensors is not installed", "pip install safetensors") from None
    found: Precision = "fp32"
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dict
                part = tensors.get_slice(name)
                if len(part.get_shape()) >= 2:
                    found = coarser(found, _SAFETENSORS_PRECISIONS.get(str(part.get_dtype()), "fp32"))
    return found


def _of_graph(path: Path) -> Anatomy:
    import onnx

    check_onnx(path)
    model = onnx.load(path, load_external_data=False)
    nodes = list(nodes_of_model(model))
    weights = list(_weights(model))
    precision, source = _graph_precision(nodes, weights)
    constants = {tensor.name for tensor in weights}
    return Anatomy(
        precision,
        source,
        dynamic_scales=any(node.op_type in _DYNAMIC_OPERATORS for node in nodes),
        inputs=tuple(_form(value) for value in model.graph.input if value.name not in constants),
        outputs=tuple(_form(value) for value in model.graph.output),
        opset=next((int(each.version) for each in model.opset_import if each.domain in ("", "ai.onnx")), None),
        epsilons=tuple(
            (node.name or node.output[0], float(attribute.f))
            for node in nodes
            if node.op_type in _NORMALIZATIONS
            for attribute in node.attribute
            if attribute.name == "epsilon"
        ),
    )


def _weights(model: onnx.ModelProto) -> Iterable[onnx.TensorProto]:
    yield from model.graph.initializer
    for node in nodes_of_model(model):
        if node.op_type == "Constant":
            yield from (attribute.t for attribute in node.attribute if attribute.name == "value")


def _graph_precision(nodes: Iterable[onnx.NodeProto], weights: Iterable[onnx.TensorProto]) -> tuple[Precision, str]:
    """The coarsest precision of a graph, and the operator or type of a weight that tells it."""
    import onnx

    found: Precision = "fp32"
    source = "float32 weights"

    def see(precision: Precision, what: str) -> None:
        nonlocal found, source
        if coarser(found, precision) != found:
            found, source = precision, what

    for node in nodes:
        if node.op_type in _PACKED_OPERATORS:
            bits = next((int(each.i) for each in node.attribute if each.name == "bits"), 4)
            see("int4" if bits <= 4 else "int8", f"{node.op_type} with {bits} bits")
        elif node.op_type in _INT8_OPERATORS:
            see("int8", node.op_type)
    types: Mapping[int, Precision] = {
        onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16",
        onnx.TensorProto.INT8: "int8", onnx.TensorProto.UINT8: "int8",
        onnx.TensorProto.INT4: "int4", onnx.TensorProto.UINT4: "int4",
    }  # fmt: skip
    for tensor in weights:
        if len(tensor.dims) >= 2 and tensor.data_type in types:
            see(types[tensor.data_type], f"{onnx.TensorProto.DataType.Name(tensor.data_type)} weights")
    return found, source


def _form(value: Any) -> TensorForm:
    import onnx

    kind = value.type.tensor_type
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)) if kind.elem_type else "unknown"
    shape = tuple(int(axis.dim_value) if axis.HasField("dim_value") else None for axis in kind.shape.dim)
    return TensorForm(value.name, dtype, shape)
