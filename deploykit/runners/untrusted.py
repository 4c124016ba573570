"""Checks on model files from outside, made before anything loads them."""

from __future__ import annotations

__all__ = ["check_checkpoint", "check_onnx", "nodes_of_model"]

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, TypeGuard

from deploykit.errors import ModelError
from deploykit.tasks.untrained import asks_for_new_weights

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

_HEADER_LIMIT = 100_000_000
"""The longest header that the safetensors format allows, in bytes (README of huggingface/safetensors, "Format")."""

_JSON_LIMIT = 64 * 2**20
_PROTOBUF_LIMIT = 2**31 - 1
_MOST_AXES = 64  # PyTorch's limit; without one, a long list of large sizes is a way to burn time

_SAFETENSORS_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
_NOT_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state(_\d+)?)\.\w+")
"""What the Trainer leaves beside the weights; nothing here loads it from outside."""

_STOCK_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operator domains that onnxruntime's stock CPU build implements and that an export here may use."""

_PACKED_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
"""ONNX types that share bytes in a file; numpy gives each value its own."""

_SAVE_AGAIN = "get the model again, or save it again with model.save_pretrained(FOLDER)"


def check_checkpoint(
    folder: Path, *, trust_pickle: bool = False, beside: Collection[str] = ("tokenizer.json",)
) -> None:
    """Refuses a Hugging Face checkpoint folder that is unsafe, damaged or incomplete; reads headers, not weights.

    Args:
        folder: holds `config.json` and `model.safetensors` (or its shards and their index); or a configuration that
            asks for new weights, and no weights.
        trust_pickle: accept weights in pickle files, which run any code that is in them when they are loaded.
        beside: what messages become a model's inputs by; it has to be there too.

    Raises:
        ModelError: names the file and what is wrong with it.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder", "name a folder with config.json and model.safetensors")
    _check_config(folder)
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    # transformers takes the first of these that exists, and pickle only where neither does.
    if single.is_file():
        _tensor_names_from_safetensors(single)
    elif index.is_file():
        _check_shards(index)
    elif not asks_for_new_weights(folder) and (not trust_pickle or not _pickle_weights(folder)):
        _refuse_weights(folder)
    adapter = folder / "adapter_model.safetensors"
    if adapter.is_file():
        _tensor_names_from_safetensors(adapter)
    elif (folder / "adapter_model.bin").exists() and not trust_pickle:
        _refuse_pickle(folder / "adapter_model.bin")
    for name in beside:
        if (folder / name).is_file():
            continue
        if name == "tokenizer.json":
            raise ModelError(
                f"{folder} has no tokenizer.json, the fast tokenizer that serving needs",
                "save it there: AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)",
            )
        raise ModelError(f"{folder} has no {name}, which the model's messages need", "copy it from the model's source")


def check_onnx(path: Path, *, allow_domains: Collection[str] = ()) -> None:
    """Refuses an ONNX file that is damaged, reaches outside its folder, or needs operators that are not known.

    Args:
        path: the file; external data is looked for in its folder, as the format says.
        allow_domains: custom operator domains that are accepted beside ONNX's and onnxruntime's own.

    Raises:
        ModelError: names the file and what is wrong with it.
    """
    model = _load_onnx(path)
    domains = _STOCK_DOMAINS | set(allow_domains)
    functions = {(function.domain, function.name) for function in model.functions}
    for nodes, tensors in _parts_of_model(model):
        for node in nodes:
            if node.domain not in domains and (node.domain, node.op_type) not in functions:
                raise ModelError(
                    f"{path} uses {node.op_type!r:.80} of {node.domain!r:.80}, a custom domain unknown to onnxruntime",
                    "export the model without it, or allow the domain by name where its operators are installed",
                )
        for tensor in tensors:
            if tensor.data_location == tensor.EXTERNAL:
                _check_external(path, tensor)


def nodes_of_model(model: ModelProto) -> Iterator[NodeProto]:
    """Every node of a model: of the main graph, of graphs inside nodes, of functions and of training graphs."""
    return (node for nodes, _ in _parts_of_model(model) for node in nodes)


# --- checkpoints ---


def _check_config(folder: Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no config.json, so it is no checkpoint of transformers", _SAVE_AGAIN)
    config = _json_from_file(path)
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds no JSON object", _SAVE_AGAIN)
    named = config.get("transformers_weights")  # transformers would load this file instead of those that are checked
    if named is not None:
        raise ModelError(
            f"{path} names its own weights file: {named!r:.80}", "remove transformers_weights, or don't use this model"
        )


def _pickle_weights(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix in _PICKLE_SUFFIXES and not _NOT_WEIGHTS.fullmatch(path.name)
    )


def _refuse_weights(folder: Path) -> NoReturn:
    """Says why a folder without the safetensors that transformers looks for has no usable weights."""
    pickles = _pickle_weights(folder)
    if pickles:
        _refuse_pickle(pickles[0])
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    found = f" (only {', '.join(others[:3])})" if others else ""
    raise ModelError(f"{folder} has no model.safetensors{found}", _SAVE_AGAIN)


def _refuse_pickle(path: Path) -> NoReturn:
    raise ModelError(
        f"{path} is a pickle file: loading it can run any code",
        "convert it to safetensors, or set trust_pickle if you trust who made it (recipe: -s trust_pickle=true)",
    )


def _check_shards(index: Path) -> None:
    """Every shard is a safetensors file in the folder and holds the tensors that the index says it holds."""
    content = _json_from_file(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} has no weight_map", _SAVE_AGAIN)
    tensors_of: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise ModelError(f"{index} names no file for the tensor {tensor!r:.80}", _SAVE_AGAIN)
        tensors_of.setdefault(shard, set()).add(tensor)
    for shard, tensors in tensors_of.items():
        if not _is_inside(shard) or "/" in shard:
            raise ModelError(f"{index} names a shard outside its folder: {shard!r:.80}", "don't use this model")
        if not shard.endswith(".safetensors"):  # transformers would load it as a pickle
            raise ModelError(f"{index} names a shard that is not safetensors: {shard!r:.80}", "don't use this model")
        path = index.parent / shard
        if not path.is_file():
            raise ModelError(f"{path} is missing, which {index.name} names", _SAVE_AGAIN)
        missing = tensors - _tensor_names_from_safetensors(path)
        if missing:
            raise ModelError(f"{path} lacks the tensor {min(missing)!r:.80}, which {index.name} names", _SAVE_AGAIN)


def _tensor_names_from_safetensors(path: Path) -> set[str]:
    """The names of the tensors, after the whole header was checked against the format and the file's size.

    Nothing beyond the header is read, and the header only once its length is known to be possible.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = _header_from_safetensors(path, file, size)
        data_bytes = size - file.tell()
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelError(f"{path}: __metadata__ is not a map of strings", _SAVE_AGAIN)
    spans = sorted((*_span_of_tensor(path, name, entry), name) for name, entry in header.items())
    position = 0
    for begin, end, name in spans:
        if begin < position:
            raise ModelError(f"{path}: the tensor {name!r:.80} overlaps another, at byte {begin}", _SAVE_AGAIN)
        if begin > position:
            raise ModelError(f"{path}: bytes {position} to {begin} belong to no tensor", _SAVE_AGAIN)
        position = end
    if position != data_bytes:
        state = "truncated" if position > data_bytes else "too long"
        raise ModelError(f"{path} is {state}: it holds {data_bytes} bytes of data, its header {position}", _SAVE_AGAIN)
    return set(header)


def _header_from_safetensors(path: Path, file: BinaryIO, size: int) -> dict[str, Any]:
    prefix = file.read(8)
    if len(prefix) < 8:
        raise ModelError(f"{path} is {'truncated' if prefix else 'empty'}: no safetensors header", _SAVE_AGAIN)
    length = int.from_bytes(prefix, "little")
    if length > _HEADER_LIMIT:
        raise ModelError(
            f"{path} declares a header of {length} bytes, more than safetensors' {_HEADER_LIMIT}", _SAVE_AGAIN
        )
    if length > size - 8:
        raise ModelError(f"{path} is truncated: a header of {length} bytes in a file of {size}", _SAVE_AGAIN)
    try:
        header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: the safetensors header is not valid JSON ({error})", _SAVE_AGAIN) from None
    if not isinstance(header, dict):
        raise ModelError(f"{path}: the safetensors header is not a JSON object", _SAVE_AGAIN)
    return header


def _span_of_tensor(path: Path, name: str, entry: object) -> tuple[int, int]:
    """The tensor's first byte and the one behind its last, counted from the end of the header."""
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    bits = _SAFETENSORS_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise ModelError(f"{path}: the tensor {name!r:.80} has the unknown dtype {dtype!r:.40}", _SAVE_AGAIN)
    if not _are_sizes(shape) or len(shape) > _MOST_AXES:
        raise ModelError(f"{path}: the tensor {name!r:.80} has no valid shape", _SAVE_AGAIN)
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ModelError(f"{path}: the tensor {name!r:.80} has no valid data_offsets", _SAVE_AGAIN)
    begin, end = offsets
    if (end - begin) * 8 != math.prod(shape) * bits:
        raise ModelError(
            f"{path}: the tensor {name!r:.80} has {end - begin} bytes, which {dtype} {shape!s:.80} does not",
            _SAVE_AGAIN,
        )
    return begin, end


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice")
    return result


def _json_from_file(path: Path) -> Any:
    if path.stat().st_size > _JSON_LIMIT:
        raise ModelError(f"{path} is larger than {_JSON_LIMIT >> 20} MiB", _SAVE_AGAIN)
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON ({error})", _SAVE_AGAIN) from None


# --- ONNX ---


def _load_onnx(path: Path) -> ModelProto:
    """The parsed file without its external data."""
    import onnx
    from google.protobuf.message import DecodeError

    again = "export the model again, or copy the file again"
    if not path.is_file():
        checkpoint = (path.parent / "config.json").is_file() and any(path.parent.glob("*.safetensors"))
        do = (
            f"make one of this checkpoint: deploykit export {path.parent} -o ONNX"
            if checkpoint
            else "name an .onnx file"
        )
        raise ModelError(f"{path} does not exist", do)
    size = path.stat().st_size
    if size == 0:
        raise ModelError(f"{path} is empty", again)
    if size > _PROTOBUF_LIMIT:
        raise ModelError(
            f"{path} has {size} bytes; protobuf can hold {_PROTOBUF_LIMIT}",
            "store the weights as external data: onnx.save(model, PATH, save_as_external_data=True)",
        )
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError:
        raise ModelError(f"{path} is truncated or no ONNX file", again) from None
    # A file that was cut between two fields still parses; what a model must have is then missing.
    if model.ir_version <= 0 or not model.opset_import or not model.graph.node or not model.graph.output:
        raise ModelError(f"{path} is truncated or no ONNX file: no IR version, opset, node or output", again)
    return model


def _parts_of_model(model: ModelProto) -> Iterator[tuple[list[NodeProto], list[TensorProto]]]:
    """The nodes and tensors of every graph: the main one, those inside nodes, in functions and for training."""
    graphs: list[GraphProto] = [model.graph]
    for training in model.training_info:
        graphs += [training.initialization, training.algorithm]
    for function in model.functions:
        nodes = list(function.node)
        tensors, inner = _parts_of_attributes([*function.attribute_proto, *_attributes_of(nodes)])
        graphs += inner
        yield nodes, tensors
    while graphs:
        graph = graphs.pop()
        nodes = list(graph.node)
        tensors, inner = _parts_of_attributes(_attributes_of(nodes))
        graphs += inner
        yield nodes, [*graph.initializer, *_dense_parts(graph.sparse_initializer), *tensors]


def _attributes_of(nodes: list[NodeProto]) -> list[AttributeProto]:
    return [attribute for node in nodes for attribute in node.attribute]


def _parts_of_attributes(attributes: list[AttributeProto]) -> tuple[list[TensorProto], list[GraphProto]]:
    tensors: list[TensorProto] = []
    graphs: list[GraphProto] = []
    for attribute in attributes:
        tensors += [attribute.t] if attribute.HasField("t") else []
        tensors += attribute.tensors
        tensors += _dense_parts([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else [])
        tensors += _dense_parts(attribute.sparse_tensors)
        graphs += [attribute.g] if attribute.HasField("g") else []
        graphs += attribute.graphs
    return tensors, graphs


def _dense_parts(sparse: Iterable[SparseTensorProto]) -> list[TensorProto]:
    return [part for tensor in sparse for part in (tensor.values, tensor.indices)]


def _check_external(path: Path, tensor: TensorProto) -> None:
    """The tensor's bytes lie in a regular file in the model's folder, and are as many as its shape needs."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    where = f"{path}: the external data of {tensor.name!r:.80}"
    if len(entries) != len(tensor.external_data):  # which of them counts is up to the loader
        raise ModelError(f"{where} is described twice", "don't use this model")
    location = entries.get("location", "")
    if not _is_inside(location):
        raise ModelError(f"{where} lies outside the model's folder: {location!r:.80}", "don't use this model")
    file = path.parent
    for part in PurePosixPath(location).parts:
        file = file / part
        if file.is_symlink():
            raise ModelError(f"{where} is reached through a link: {str(file)!r}", "replace the link by the file itself")
    if not file.is_file():
        raise ModelError(f"{where} is missing: {str(file)!r}", "copy it into the folder of the model")
    size = file.stat().st_size
    offset = _count_from_entry(where, "offset", entries.get("offset", "0"))
    needed = _bytes_of_tensor(where, tensor)
    length = _count_from_entry(where, "length", entries.get("length", str(needed)))
    if length != needed:
        raise ModelError(f"{where} has length {length}, but its shape needs {needed} bytes", "export the model again")
    if offset + length > size:
        raise ModelError(
            f"{where} ends at byte {offset + length} of {file.name}, which has {size}", "copy both files again"
        )


def _count_from_entry(where: str, key: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", value):
        raise ModelError(f"{where} has the {key} {value!r:.40}, which is no valid number", "don't use this model")
    return int(value)


def _bytes_of_tensor(where: str, tensor: TensorProto) -> int:
    from onnx import TensorProto, helper

    if any(size < 0 for size in tensor.dims) or len(tensor.dims) > _MOST_AXES:
        raise ModelError(f"{where} has no valid shape", "export the model again")
    try:
        dtype = TensorProto.DataType.Name(tensor.data_type)
        bits = _PACKED_BITS.get(dtype) or 8 * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, ValueError):
        raise ModelError(f"{where} has the unknown type {tensor.data_type}", "export the model again") from None
    return (math.prod(map(int, tensor.dims)) * bits + 7) // 8


def _is_inside(name: str) -> bool:
    """Whether a relative file name stays in its folder, on Linux and on Windows."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and not re.search(r"[\\\0]|^[A-Za-z]:", name)
