"""What happens inside of a model for some inputs: the output of each module, in PyTorch or ONNX.

Both kinds run in two ways. Freely, every module gets what the one before gave. *Given* another model's values, each
module gets those as its input instead, and what it makes of them shows its own error, apart from what it inherits.
"""

from __future__ import annotations

__all__ = ["Facts", "OnnxTrace", "TorchTrace", "Trace", "Values", "open_trace"]

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from deploykit.errors import ModelError
from deploykit.export.lean import split_skip_normalization
from deploykit.export.modules import module_values
from deploykit.runners import Target
from deploykit.runners.onnx_runner import onnx_file, open_session, session_errors
from deploykit.runners.untrusted import check_checkpoint, check_onnx
from deploykit.tasks import find_task

if TYPE_CHECKING:
    import torch

Values = dict[str, NDArray[Any]]
_WITH_EPSILON = ("LayerNormalization", "EmbedLayerNormalization", "SkipLayerNormalization")


@dataclass(frozen=True)
class Facts:
    """What stands in a model without running it.

    Attributes:
        epsilons: of normalizations, by module.
        parameters: those that still have the name of a PyTorch parameter.
        ranges: what static int8 can hold of the value at a point: least and greatest.
        heads: attention heads; None where it is not known.
    """

    epsilons: Mapping[str, float] = field(default_factory=dict)
    parameters: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    heads: int | None = None


class Trace(Protocol):
    """A model whose inner values can be read and replaced; the points are in the order in which they are computed.

    Attributes:
        precision: `fp32`, `fp16`, `bf16` or `int8`.
        facts: what stands in it.
    """

    precision: str
    facts: Facts

    def run(
        self,
        feed: Mapping[str, NDArray[np.int64]],
        given: Mapping[str, NDArray[Any]] | None = None,
        added: Mapping[str, NDArray[Any]] | None = None,
    ) -> Values:
        """The value at each point, the model's output last.

        Args:
            feed: token ids, mask and token types, each int64 [messages, length].
            given: values by point that all who read the point get instead of what was computed there.
            added: errors by point that all who read the point get on top of what was computed there.

        Raises:
            ModelError: the model can't run on it.
        """
        ...


class TorchTrace:
    """A PyTorch model, watched through hooks on its modules.

    Points are the paths of modules whose output is a tensor (or a tuple that begins with one) that no module inside of
    them gave already, and `PATH:in` for what enters a normalization.

    Args:
        model: in the mode that it is to run in.
        output: the name of its output.
    """

    precision = "fp32"

    def __init__(self, model: torch.nn.Module, output: str) -> None:
        import torch

        self._model, self._output = model, output
        kinds = {parameter.dtype for parameter in model.parameters()}
        self.precision = {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(next(iter(kinds), torch.float32), "fp32")
        self._inputs = _argument_names(model)
        epsilons = {
            path: float(epsilon)
            for path, module in model.named_modules()
            for epsilon in (getattr(module, "eps", None), getattr(module, "variance_epsilon", None))
            if isinstance(epsilon, float)
        }
        parameters = {name: value.detach().float().cpu().numpy() for name, value in model.named_parameters()}
        heads = getattr(getattr(model, "config", None), "num_attention_heads", None)
        self.facts = Facts(epsilons, parameters, {}, heads)

    def run(
        self,
        feed: Mapping[str, NDArray[np.int64]],
        given: Mapping[str, NDArray[Any]] | None = None,
        added: Mapping[str, NDArray[Any]] | None = None,
    ) -> Values:
        import torch

        recorder = _Recorder(given or {}, added or {})
        handles = []
        for path, module in self._model.named_modules():
            if not path:
                continue
            if "norm" in type(module).__name__.lower():
                handles.append(module.register_forward_pre_hook(recorder.before(path)))
            handles.append(module.register_forward_hook(recorder.after(path, isinstance(module, torch.nn.Dropout))))
        device = next(self._model.parameters()).device
        try:
            with torch.inference_mode():
                inputs = {name: torch.tensor(feed[name], device=device) for name in self._inputs if name in feed}
                result = self._model(**inputs)[self._output]
        finally:
            for handle in handles:
                handle.remove()
        values = {point: tensor.float().cpu().numpy() for point, tensor in recorder.values.items()}
        return {**values, self._output: result.float().cpu().numpy()}


class _Recorder:
    """Keeps what modules give, once each, and puts other values in its place or errors on top."""

    def __init__(self, given: Mapping[str, NDArray[Any]], added: Mapping[str, NDArray[Any]]) -> None:
        self._given, self._added = given, added
        self.values: dict[str, torch.Tensor] = {}
        self._seen: list[torch.Tensor] = []

    def before(self, path: str) -> Callable[..., Any]:
        def hook(_module: Any, arguments: tuple[Any, ...]) -> Any:
            replaced = self._at(f"{path}:in", arguments[0]) if arguments else None
            return None if replaced is None else (replaced, *arguments[1:])

        return hook

    def after(self, path: str, drops: bool) -> Callable[..., Any]:
        def hook(_module: Any, _arguments: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) and output else output
            replaced = self._at(path, first, anew=drops)
            if replaced is None:
                return None
            return (replaced, *output[1:]) if isinstance(output, tuple) else replaced

        return hook

    def _at(self, point: str, tensor: Any, *, anew: bool = False) -> Any:
        """Keep a tensor; the one to use in its place, or None."""
        import torch

        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or point in self.values:
            return None
        if not anew and any(tensor.data_ptr() == seen.data_ptr() and tensor.shape == seen.shape for seen in self._seen):
            return None
        self.values[point] = tensor
        self._seen.append(tensor)
        if point not in self._given and point not in self._added:
            return None
        replaced = tensor
        if point in self._given:
            replaced = torch.from_numpy(np.ascontiguousarray(self._given[point])).to(tensor)
        if point in self._added:
            replaced = replaced + torch.from_numpy(np.ascontiguousarray(self._added[point])).to(tensor)
        self._seen.append(replaced)
        return replaced


class OnnxTrace:
    """An ONNX graph, whose inner values become outputs, and inputs where values are given.

    Points are those of the PyTorch modules that the graph was exported from, as far as it still computes them.

    Args:
        model: the graph; not changed.
        output: the name of its output.
    """

    def __init__(self, model: onnx.ModelProto, output: str) -> None:
        self._model = split_skip_normalization(model)
        del self._model.graph.value_info[:]
        self._output = output
        self.precision = _precision(model)
        self._values = self._points(module_values(model))
        self.facts = self._facts()
        self._types: dict[str, int] = {}
        self._sessions: dict[tuple[tuple[str, ...], bool], Any] = {}

    def run(
        self,
        feed: Mapping[str, NDArray[np.int64]],
        given: Mapping[str, NDArray[Any]] | None = None,
        added: Mapping[str, NDArray[Any]] | None = None,
    ) -> Values:
        given = {point: value for point, value in (given or {}).items() if point in self._values}
        if (given or added) and not self._types:
            self.run(feed)
        session = self._session(tuple(given), shifted=bool(added))
        extra = {_given(self._values[point]): value for point, value in given.items()}
        if added:  # every point takes an error, so that one session serves all sets of them
            extra |= {_added(value): np.zeros((1,), np.float32) for value in self._shifted()}
            extra |= {_added(self._values[point]): value for point, value in added.items() if point in self._values}
        wanted = {value.name for value in session.get_inputs()}
        missing = wanted - set(feed) - set(extra)
        if missing:
            raise ModelError(f"the graph wants {', '.join(sorted(missing))}, which no tokenizer gives")
        inputs = {name: value for name, value in feed.items() if name in wanted}
        for name, value in extra.items():
            kind = helper.tensor_dtype_to_np_dtype(self._types[name.rpartition("__")[0]])
            inputs[name] = np.ascontiguousarray(value).astype(kind)
        names = [*self._values.values(), self._output]
        try:
            found = session.run(names, inputs)
        except session_errors() as error:
            raise ModelError(f"onnxruntime can't run the graph: {error}", "export the model again") from None
        self._types = {
            name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in zip(names, found, strict=True)
        }
        values = {
            point: value.astype(np.float32, copy=False)
            for point, value in zip((*self._values, self._output), found, strict=True)
        }
        return values

    def _points(self, paths: Mapping[str, str]) -> dict[str, str]:
        """The values to read by point, in the order of the graph."""
        found: dict[str, str] = {}
        for node in self._model.graph.node:
            for value in node.output:
                path = paths.get(value)
                if path is None or value == self._output:
                    continue
                if node.op_type == "LayerNormalization":
                    found[f"{path}:in"] = node.input[0]
                found[path] = value
        return found

    def _facts(self) -> Facts:
        constants = {tensor.name: tensor for tensor in self._model.graph.initializer}
        points = {value: point for point, value in self._values.items()}
        epsilons, ranges, heads = {}, {}, None
        for node in self._model.graph.node:
            settings = {each.name: helper.get_attribute_value(each) for each in node.attribute}
            if node.op_type in _WITH_EPSILON and node.output[0] in points:
                epsilons[points[node.output[0]]] = float(settings.get("epsilon", 1e-5))
            if node.op_type == "QuantizeLinear" and node.input[0] in points:
                found = [constants.get(name) for name in node.input[1:3]]
                if all(found) and len(found) == 2:
                    scale, zero = (numpy_helper.to_array(tensor) for tensor in found if tensor is not None)
                    if scale.size == 1:
                        kind = np.iinfo(zero.dtype)
                        low, high = (float(scale.item() * (end - int(zero.item()))) for end in (kind.min, kind.max))
                        ranges[points[node.input[0]]] = low, high
            heads = settings.get("num_heads", heads)
        parameters = {
            name: numpy_helper.to_array(tensor)
            for name, tensor in constants.items()
            if name.endswith((".weight", ".bias")) and tensor.data_type in (1, 10)
        }
        return Facts(epsilons, parameters, ranges, heads)

    def _shifted(self) -> tuple[str, ...]:
        """The values that errors can be added to."""
        return tuple(dict.fromkeys(self._values.values()))

    def _session(self, given: tuple[str, ...], *, shifted: bool = False) -> Any:
        key = given, shifted
        if key not in self._sessions:
            model = onnx.ModelProto()
            model.CopyFrom(self._model)
            graph = model.graph
            replaced = {self._values[point]: _given(self._values[point]) for point in given}
            for node in graph.node:
                for position, name in enumerate(node.input):
                    if name in replaced:
                        node.input[position] = replaced[name]
            for value, name in replaced.items():
                graph.input.append(helper.make_tensor_value_info(name, self._types[value], None))
            if shifted:
                self._add_shifts(graph)
            names = dict.fromkeys((*self._values.values(), self._output))
            there = {value.name for value in graph.output}
            graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in there)
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / "traced.onnx"
                onnx.save(model, path)
                self._sessions[key] = open_session(path, device="cpu")
        return self._sessions[key]

    def _add_shifts(self, graph: onnx.GraphProto) -> None:
        """Let all who read a point read it with an error on top, which is an input."""
        values = set(self._shifted())
        nodes = []
        for node in graph.node:
            for position, name in enumerate(node.input):
                if name in values:
                    node.input[position] = f"{name}__shifted"
        for node in graph.node:
            nodes.append(node)
            nodes += [
                helper.make_node("Add", [value, _added(value)], [f"{value}__shifted"])
                for value in node.output
                if value in values
            ]
        shifted = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(shifted)
        for value in self._shifted():
            graph.input.append(helper.make_tensor_value_info(_added(value), self._types[value], None))


def open_trace(target: Target) -> Trace:
    """The trace of a target in process.

    Raises:
        ModelError: it runs in a server, or can't be loaded.
    """
    output = find_task(target.task).output
    if target.kind == "triton":
        raise ModelError(f"nothing inside of {target.location} can be seen", "compare the model's folder instead")
    if target.kind == "onnxruntime":
        path = onnx_file(target.location)
        check_onnx(path)
        return OnnxTrace(onnx.load(path), output)
    import torch

    folder = Path(target.location)
    check_checkpoint(folder)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[target.precision]
    return TorchTrace(find_task(target.task).load_model(folder, dtype=dtype).eval(), output)


def _argument_names(model: torch.nn.Module) -> list[str]:
    import inspect

    known = ("input_ids", "attention_mask", "token_type_ids")
    return [name for name in known if name in inspect.signature(model.forward).parameters]


def _given(value: str) -> str:
    return f"{value}__given"


def _added(value: str) -> str:
    return f"{value}__added"


def _precision(model: onnx.ModelProto) -> str:
    kinds = {node.op_type for node in model.graph.node}
    if "MatMulNBits" in kinds:  # whatever its weights have, it computes in int8
        return "int8"
    if kinds & {"MatMulInteger", "QAttention", "QLinearMatMul", "QGemm", "QuantizeLinear", "DynamicQuantizeLinear"}:
        return "int8"
    weights = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 2}
    if onnx.TensorProto.FLOAT16 in weights:
        return "fp16"
    return "bf16" if onnx.TensorProto.BFLOAT16 in weights else "fp32"
