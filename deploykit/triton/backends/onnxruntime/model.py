"""Triton backend `onnxruntime` of the embedded server: runs an ONNX file as NVIDIA's native backend runs it.

Triton loads this file where it finds no `libtriton_onnxruntime.so`, and runs it in a stub process for each instance. It
honours the parameters that the native backend documents, and refuses at load what the native backend refuses.
"""

from __future__ import annotations

__all__ = ["TritonPythonModel"]

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail, Fail, InvalidArgument, NotImplemented, RuntimeException

_RUN_FAILURES = (EPFail, Fail, InvalidArgument, NotImplemented, RuntimeException, RuntimeError, ValueError)
_GRAPH_LEVELS = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_ALGORITHMS = ("EXHAUSTIVE", "HEURISTIC", "DEFAULT")
_ARENA_STRATEGIES = ("kNextPowerOfTwo", "kSameAsRequested")
_ELEMENT_TYPES = {
    "TYPE_BOOL": "tensor(bool)",
    "TYPE_UINT8": "tensor(uint8)",
    "TYPE_UINT16": "tensor(uint16)",
    "TYPE_UINT32": "tensor(uint32)",
    "TYPE_UINT64": "tensor(uint64)",
    "TYPE_INT8": "tensor(int8)",
    "TYPE_INT16": "tensor(int16)",
    "TYPE_INT32": "tensor(int32)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_FP16": "tensor(float16)",
    "TYPE_FP32": "tensor(float)",
    "TYPE_FP64": "tensor(double)",
    "TYPE_STRING": "tensor(string)",
}

Feeds = dict[str, NDArray[Any]]


class TritonPythonModel:
    """One instance of a model: an onnxruntime session."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the model; raises what Triton reports as the reason that the load failed."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self._batches = config["max_batch_size"] > 0
        self._run_options = onnxruntime.RunOptions()
        shrinkage = parameters.get("memory.enable_memory_arena_shrinkage")
        if shrinkage:
            self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", shrinkage)
        providers = _providers(args["model_instance_kind"], args["model_instance_device_id"], config, parameters)
        self._session = onnxruntime.InferenceSession(
            _model_path(args, config), _session_options(config, parameters), providers=providers
        )
        if self._session.get_providers()[0] != providers[0][0]:
            raise RuntimeError(f"onnxruntime could not use {providers[0][0]}, which this instance group asks for")
        _check_tensors(config, self._session)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request; those of equal shapes run as one batch, and one that fails fails alone."""
        feeds = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        names = [request.requested_output_names() for request in requests]
        if len(requests) == 1:
            return [self._respond(names[0], feeds[0])]
        responses: list[Any] = [None] * len(requests)
        for members in _alike(feeds) if self._batches else [[i] for i in range(len(requests))]:
            answered = self._respond_together([names[i] for i in members], [feeds[i] for i in members])
            for i, response in zip(members, answered, strict=True):
                responses[i] = response
        return responses

    def _respond(self, names: list[str], feeds: Feeds) -> Any:
        try:
            outputs = self._run(names, feeds)
        except _RUN_FAILURES as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"onnx runtime error: {error}"))
        return pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in zip(names, outputs, strict=True)])

    def _respond_together(self, names: list[list[str]], feeds: list[Feeds]) -> list[Any]:
        if len(feeds) == 1:
            return [self._respond(names[0], feeds[0])]
        wanted = sorted(set().union(*names))
        batch = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
        try:
            outputs = dict(zip(wanted, self._run(wanted, batch), strict=True))
        except _RUN_FAILURES:
            return [self._respond(*pair) for pair in zip(names, feeds, strict=True)]
        responses, start = [], 0
        for its_names, feed in zip(names, feeds, strict=True):
            stop = start + len(next(iter(feed.values())))
            responses.append(
                pb_utils.InferenceResponse([pb_utils.Tensor(name, outputs[name][start:stop]) for name in its_names])
            )
            start = stop
        return responses

    def _run(self, names: list[str], feeds: Feeds) -> list[NDArray[Any]]:
        texts = {name: _as_text(array) for name, array in feeds.items() if array.dtype == np.object_}
        outputs: list[NDArray[Any]] = self._session.run(names, feeds | texts if texts else feeds, self._run_options)
        return outputs


def _alike(feeds: list[Feeds]) -> list[list[int]]:
    """The numbers of the requests that can be one batch: the same inputs, equal in all axes but the first."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, feed in enumerate(feeds):
        groups.setdefault(tuple((name, array.shape[1:]) for name, array in sorted(feed.items())), []).append(i)
    return list(groups.values())


def _as_text(array: NDArray[Any]) -> NDArray[Any]:
    return np.array([value.decode("utf-8") for value in array.ravel()], dtype=np.object_).reshape(array.shape)


def _model_path(args: dict[str, str], config: dict[str, Any]) -> str:
    path = Path(args["model_repository"]) / args["model_version"] / (config["default_model_filename"] or "model.onnx")
    return str(path / "model.onnx" if path.is_dir() else path)


def _session_options(config: dict[str, Any], parameters: dict[str, str]) -> Any:
    options = onnxruntime.SessionOptions()
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = _GRAPH_LEVELS.get(level, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    mode = int(parameters.get("execution_mode", "0"))
    if mode not in (0, 1):
        raise ValueError(f"the parameter execution_mode must be 0 or 1, and is {mode}")
    options.execution_mode = (
        onnxruntime.ExecutionMode.ORT_PARALLEL if mode else onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    )
    options.intra_op_num_threads = max(0, int(parameters.get("intra_op_thread_count", "0")))
    options.inter_op_num_threads = max(0, int(parameters.get("inter_op_thread_count", "0")))
    options.enable_cpu_mem_arena = _boolean(parameters.get("enable_mem_arena", "1"))
    options.enable_mem_pattern = _boolean(parameters.get("enable_mem_pattern", "1"))
    # Threads that spin after a run would take the core on which its answer travels back: 0.2 ms of p50 on two cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    device_allocator = parameters.get("session.use_device_allocator_for_initializers")
    if device_allocator is not None:
        options.add_session_config_entry("session.use_device_allocator_for_initializers", device_allocator)
    return options


def _boolean(value: str) -> bool:
    if value.lower() not in ("1", "true", "0", "false"):
        raise ValueError(f"failed to convert {value!r} to a boolean")
    return value.lower() in ("1", "true")


def _providers(
    kind: str, device: str, config: dict[str, Any], parameters: dict[str, str]
) -> list[tuple[str, dict[str, str]]]:
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    on_gpu = accelerators.get("gpu_execution_accelerator", [])
    unknown = [ea["name"] for ea in accelerators.get("cpu_execution_accelerator", [])]
    unknown += [ea["name"] for ea in on_gpu if ea["name"] != "cuda"]
    if unknown:
        raise ValueError(
            f"unknown Execution Accelerator {unknown[0]!r} is requested; the embedded server knows only cuda"
        )
    if kind != "GPU":
        return [("CPUExecutionProvider", {})]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise RuntimeError("KIND_GPU needs the package onnxruntime-gpu, and only onnxruntime is installed")
    onnxruntime.preload_dlls()  # CUDA's libraries from the packages that PyTorch brings
    options = {"device_id": device, "do_copy_in_default_stream": parameters.get("do_copy_in_default_stream", "1")}
    options["cudnn_conv_algo_search"] = _ALGORITHMS[int(parameters.get("cudnn_conv_algo_search", "0"))]
    options["arena_extend_strategy"] = _ARENA_STRATEGIES[int(parameters.get("arena_extend_strategy", "0"))]
    if "gpu_mem_limit" in parameters:
        options["gpu_mem_limit"] = parameters["gpu_mem_limit"]
    for accelerator in on_gpu:
        options |= accelerator.get("parameters", {})
    return [("CUDAExecutionProvider", options), ("CPUExecutionProvider", {})]


def _check_tensors(config: dict[str, Any], session: Any) -> None:
    """Holds the configuration against the model, by the native backend's rules: what loads here loads there."""
    inputs = {node.name: node for node in session.get_inputs()}
    overridable = {node.name: node for node in session.get_overridable_initializers()}
    outputs = {node.name: node for node in session.get_outputs()}
    if len(config["input"]) != len(inputs):
        raise ValueError(f"configuration expects {len(config['input'])} inputs, model provides {len(inputs)}")
    for tensor in config["input"]:
        _check_tensor("input", tensor, inputs | overridable, config["max_batch_size"], exact=False)
    for tensor in config["output"]:
        _check_tensor("output", tensor, outputs, config["max_batch_size"], exact=True)


def _check_tensor(
    role: str, tensor: dict[str, Any], nodes: dict[str, Any], max_batch_size: int, *, exact: bool
) -> None:
    name = tensor["name"]
    if name not in nodes:
        raise ValueError(f"unexpected {role} {name!r} in the configuration, the model has: {', '.join(nodes)}")
    node = nodes[name]
    if _ELEMENT_TYPES.get(tensor["data_type"]) != node.type:
        raise ValueError(
            f"configuration expects datatype {tensor['data_type']} for {role} {name!r}, model provides {node.type}"
        )
    if not node.shape:
        return
    asked = [int(size) for size in tensor.get("reshape", {}).get("shape", tensor["dims"])]
    model = [size if isinstance(size, int) else -1 for size in node.shape]
    if max_batch_size > 0:
        asked = [-1, *asked]
        if model[0] != -1:
            raise ValueError(
                f"{role} {name!r}: to batch, the model's first dimension must be free, and its shape is {model}"
            )
    fits = len(asked) == len(model) and all(a == m for a, m in zip(asked, model, strict=True) if exact or m != -1)
    if not fits:
        raise ValueError(f"{role} {name!r}: the model's shape is {model}, the configuration's (with the batch) {asked}")
