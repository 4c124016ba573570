"""Triton's `config.pbtxt`: built, checked, written and parsed through its protobuf schema."""

from __future__ import annotations

__all__ = [
    "CONFIG",
    "WARMUP_FOLDER",
    "DataType",
    "DynamicBatching",
    "InstanceGroup",
    "Tensor",
    "Warmup",
    "WarmupInput",
    "check_config_name",
    "interface",
    "parse_config",
    "tensor_model_config",
    "text_model_config",
    "warmup_bytes",
    "write_config",
]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deploykit.artifacts.atomic import disk_errors, write_atomic
from deploykit.artifacts.names import check_model_name
from deploykit.errors import RepositoryError, UsageError

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

CONFIG = "config.pbtxt"
WARMUP_FOLDER = "warmup"
"""The folder in a model's folder where Triton looks for a warm-up's data files."""

DataType = Literal["BOOL", "UINT8", "INT32", "INT64", "FP16", "FP32", "BYTES"]
"""Data types as clients name them; `config.pbtxt` calls BYTES a string."""


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes:
        name: its name.
        dtype: its data type.
        dims: its shape without the batch axis; -1 is any length.
        labels_file: for an output, the file in the model's folder with one label a line, so that Triton's
            classification extension returns labels.
    """

    name: str
    dtype: DataType
    dims: tuple[int, ...]
    labels_file: str | None = None


TEXT_INPUT = Tensor("text", "BYTES", (1,))
"""What a text model takes: one message, UTF-8."""


@dataclass(frozen=True)
class InstanceGroup:
    """How many copies of a model run, and where.

    Attributes:
        kind: on which kind of device.
        count: copies (on each GPU).
        gpus: the GPUs' numbers; all where it is empty.
    """

    kind: Literal["cpu", "gpu"] = "cpu"
    count: int = 1
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class DynamicBatching:
    """How Triton joins requests of equal shape.

    Attributes:
        preferred_batch_sizes: sizes to send on at once.
        queue_us: how long a request may wait for company.
    """

    preferred_batch_sizes: tuple[int, ...] = ()
    queue_us: int = 0


@dataclass(frozen=True)
class WarmupInput:
    """One input of a warm-up request.

    Attributes:
        name: the input's name.
        dtype: its data type.
        dims: its shape without the batch axis, every length known.
        file: the name of its data in the model's `warmup` folder: the raw little-endian array, or `warmup_bytes`.
    """

    name: str
    dtype: DataType
    dims: tuple[int, ...]
    file: str


@dataclass(frozen=True)
class Warmup:
    """A request that an instance answers before it counts as ready.

    Attributes:
        name: what the server's log calls it.
        inputs: all inputs of the model.
        batch_size: how often the sample is repeated to make a batch.
        count: how often the request is sent.
    """

    name: str
    inputs: tuple[WarmupInput, ...]
    batch_size: int = 1
    count: int = 1


def tensor_model_config(
    name: str,
    *,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    max_batch_size: int,
    instances: InstanceGroup = InstanceGroup(),
    batching: DynamicBatching | None = None,
    threads: int = 0,
    versions: int = 1,
    parameters: Mapping[str, str] | None = None,
    warmup: Sequence[Warmup] = (),
) -> ModelConfig:
    """The configuration of an ONNX model: tensors in, tensors out, on Triton's onnxruntime backend.

    Args:
        name: the model's name, and its folder's.
        inputs: what the graph takes.
        outputs: what it gives.
        max_batch_size: the most rows in one execution, at least 1.
        instances: how many copies, and where.
        batching: None to run every request by itself.
        threads: onnxruntime's intra-op threads of each instance; 0 for its own choice.
        versions: how many of the latest versions are loaded.
        parameters: further parameters of the backend.
        warmup: requests to send before the model is ready.

    Raises:
        UsageError: a name, size, count or thread number that Triton or onnxruntime would refuse.
    """
    if threads < 0:
        raise UsageError(
            f"{name}: {threads} intra-op threads", "use 0 for onnxruntime's own choice, or a positive number"
        )
    return _config(
        name,
        backend="onnxruntime",
        inputs=inputs,
        outputs=outputs,
        max_batch_size=max_batch_size,
        instances=instances,
        batching=batching,
        parameters={"intra_op_thread_count": str(threads), **(parameters or {})},
        warmup=warmup,
        versions=versions,
    )


def text_model_config(
    name: str,
    *,
    outputs: Sequence[Tensor],
    max_batch_size: int,
    message: Tensor = TEXT_INPUT,
    instances: InstanceGroup = InstanceGroup(),
    batching: DynamicBatching | None = None,
    parameters: Mapping[str, str] | None = None,
    warmup: Sequence[Warmup] = (),
) -> ModelConfig:
    """The configuration of a served entry: one message in, the answer out, on the Python backend.

    Args:
        name: the model's name, and its folder's.
        outputs: what it answers.
        message: what it takes.
        max_batch_size: the most messages in one execution, at least 1.
        instances: how many copies, and where.
        batching: None to run every request by itself.
        parameters: what the model's code reads from its configuration.
        warmup: requests to send before the model is ready.

    Raises:
        UsageError: a name, size or count that Triton would refuse.
    """
    return _config(
        name,
        backend="python",
        inputs=[message],
        outputs=outputs,
        max_batch_size=max_batch_size,
        instances=instances,
        batching=batching,
        parameters=parameters or {},
        warmup=warmup,
    )


def warmup_bytes(text: str) -> bytes:
    """A message as the data file of a BYTES warm-up input with one element: length (uint32, little-endian), then UTF-8.

    Raises:
        UsageError: the message can't be written as UTF-8.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{text[:40]!r} is not valid Unicode, so it can't warm a model up") from error
    return len(data).to_bytes(4, "little") + data


def write_config(folder: Path, config: ModelConfig) -> Path:
    """Writes `config.pbtxt` into the model's folder, and says where.

    Raises:
        RepositoryError: the folder has another name than the configuration.
        ArtifactError: the folder can't be written.
    """
    from google.protobuf import text_format  # type: ignore[import-untyped, unused-ignore]

    path = folder / CONFIG
    check_config_name(config, path)
    write_atomic(path, text_format.MessageToString(config, as_utf8=True).encode())
    return path


def parse_config(path: Path) -> ModelConfig:
    """The configuration in a `config.pbtxt`.

    Raises:
        RepositoryError: the file is not what Triton's schema allows; the message has the line.
        ArtifactError: the file is missing or can't be read.
    """
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    with disk_errors(path):
        data = path.read_bytes()
    try:
        return text_format.Parse(data.decode(), ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{path} is not a Triton configuration: {error}") from error


def check_config_name(config: ModelConfig, path: Path) -> None:
    """Refuses a configuration whose name is not that of the folder it lies in.

    Raises:
        RepositoryError: they differ; Triton would not load the model.
    """
    if config.name != path.parent.name:
        raise RepositoryError(
            f"{path} names the model {config.name!r}, its folder {path.parent.name!r}", "rename one of the two"
        )


def interface(config: ModelConfig) -> dict[str, str]:
    """What clients depend on: each input's and output's data type, by `input NAME` and `output NAME`."""
    from tritonclient.grpc.model_config_pb2 import DataType as Codes

    return {
        f"{side} {tensor.name}": Codes.Name(tensor.data_type)
        for side, tensors in (("input", config.input), ("output", config.output))
        for tensor in tensors
    }


def _config(
    name: str,
    *,
    backend: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    max_batch_size: int,
    instances: InstanceGroup,
    batching: DynamicBatching | None,
    parameters: Mapping[str, str],
    warmup: Sequence[Warmup],
    versions: int = 1,
) -> ModelConfig:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    check_model_name(name)
    _check_sizes(name, max_batch_size, instances, batching)
    _check_tensors(name, inputs, outputs)
    config = ModelConfig(name=name, backend=backend, max_batch_size=max_batch_size)
    config.version_policy.latest.num_versions = versions
    for tensor in inputs:
        config.input.add(name=tensor.name, data_type=_code(tensor.dtype), dims=tensor.dims)
    for tensor in outputs:
        config.output.add(
            name=tensor.name, data_type=_code(tensor.dtype), dims=tensor.dims, label_filename=tensor.labels_file or ""
        )
    kind = config.instance_group.add(count=instances.count, gpus=instances.gpus)
    kind.kind = {"cpu": kind.KIND_CPU, "gpu": kind.KIND_GPU}[instances.kind]
    if batching is not None:
        config.dynamic_batching.preferred_batch_size.extend(batching.preferred_batch_sizes)
        config.dynamic_batching.max_queue_delay_microseconds = batching.queue_us
        config.dynamic_batching.SetInParent()  # an empty one still switches batching on
    for key, value in sorted(parameters.items()):
        config.parameters[key].string_value = value
    for request in warmup:
        _check_warmup(name, request, inputs, max_batch_size)
        _add_warmup(config, request)
    return config


def _add_warmup(config: ModelConfig, request: Warmup) -> None:
    added = config.model_warmup.add(name=request.name, batch_size=request.batch_size, count=request.count)
    for sample in request.inputs:
        entry = added.inputs[sample.name]
        entry.data_type = _code(sample.dtype)
        entry.dims.extend(sample.dims)
        entry.input_data_file = sample.file


def _code(dtype: DataType) -> int:
    from tritonclient.grpc.model_config_pb2 import DataType as Codes

    code: int = Codes.Value("TYPE_STRING" if dtype == "BYTES" else f"TYPE_{dtype}")
    return code


def _check_sizes(name: str, max_batch_size: int, instances: InstanceGroup, batching: DynamicBatching | None) -> None:
    if max_batch_size < 1:
        raise UsageError(f"{name}: max_batch_size is {max_batch_size}", "use at least 1")
    if instances.count < 1:
        raise UsageError(f"{name}: {instances.count} instances", "use at least 1")
    if instances.gpus and instances.kind != "gpu":
        raise UsageError(f"{name}: GPUs are named for an instance group on the CPU", "leave them out, or use kind gpu")
    if any(gpu < 0 for gpu in instances.gpus):
        raise UsageError(f"{name}: GPU numbers {list(instances.gpus)}", "GPUs are counted from 0")
    if batching is None:
        return
    if batching.queue_us < 0:
        raise UsageError(f"{name}: a queue delay of {batching.queue_us} us", "use 0 or more")
    for size in batching.preferred_batch_sizes:
        if not 1 <= size <= max_batch_size:
            raise UsageError(
                f"{name}: preferred_batch_size {size} is not between 1 and max_batch_size, which is {max_batch_size}",
                "lower it, or raise max_batch_size",
            )


def _check_tensors(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    for side, tensors in (("input", inputs), ("output", outputs)):
        names = [tensor.name for tensor in tensors]
        if not names or "" in names or len(set(names)) < len(names):
            raise UsageError(f"{name}: {side} names {names}", "a model needs at least one, each with a name of its own")
        for tensor in tensors:
            if not all(length == -1 or length > 0 for length in tensor.dims):
                raise UsageError(f"{name}: {side} {tensor.name} has dims {list(tensor.dims)}", "use -1 for any length")


def _check_warmup(name: str, request: Warmup, inputs: Sequence[Tensor], max_batch_size: int) -> None:
    where = f"{name}: warm-up {request.name!r}"
    if not 1 <= request.batch_size <= max_batch_size or request.count < 1:
        raise UsageError(
            f"{where} sends {request.count} times a batch of {request.batch_size}; max_batch_size is {max_batch_size}"
        )
    wanted = {tensor.name: tensor.dtype for tensor in inputs}
    if {sample.name: sample.dtype for sample in request.inputs} != wanted:
        raise UsageError(f"{where} does not have the model's inputs, which are {wanted}")
    for sample in request.inputs:
        if any(length < 1 for length in sample.dims):
            raise UsageError(f"{where}: input {sample.name} has dims {list(sample.dims)}", "name every length")
        if sample.file in ("", ".", "..") or "/" in sample.file or "\\" in sample.file:
            raise UsageError(f"{where}: {sample.file!r} is not a file in the model's {WARMUP_FOLDER} folder")
