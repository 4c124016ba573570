"""How requests travel to a Triton server and back: a class for each protocol, one vocabulary for what goes wrong."""

from __future__ import annotations

__all__ = [
    "Address",
    "GrpcWire",
    "HttpWire",
    "Malformed",
    "ModelMetadata",
    "Refused",
    "TensorMetadata",
    "Unanswered",
    "Wire",
    "parse_url",
]

import contextlib
import ssl
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import UsageError

Arrays = dict[str, NDArray[Any]]
Parameters = Mapping[str, bool | int | float | str]

_GRPC_STATUS = {
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
}
_UNREADABLE = (ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error)


@dataclass(frozen=True)
class Address:
    """Where a server listens, and how it is spoken to."""

    protocol: Literal["grpc", "http"]
    tls: bool
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """`host:port`, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.protocol}{'s' if self.tls else ''}://{self.netloc}"


def parse_url(url: str) -> tuple[Address, str]:
    """The address in `grpc://host:port` (`grpcs://`, `http://`, `https://`), and the path after it: a model or nothing.

    Raises:
        UsageError: it is no such URL.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or port is None or parts.scheme not in ("grpc", "grpcs", "http", "https"):
        raise UsageError(f"{url!r} is not the address of a Triton server", "write grpc://HOST:PORT or http://HOST:PORT")
    return Address(_protocol(parts.scheme), parts.scheme.endswith("s"), host, port), parts.path.strip("/")


def _protocol(scheme: str) -> Literal["grpc", "http"]:
    return "grpc" if scheme.startswith("grpc") else "http"


@dataclass(frozen=True)
class TensorMetadata:
    """An input or output as the server describes it; -1 in `shape` for what varies, the batch axis included."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """A model as the server describes it."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


class Refused(Exception):
    """The server answered with an error: an HTTP status (gRPC's translated) and its words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Unanswered(Exception):
    """No answer came; `late` where the time was up."""

    def __init__(self, reason: str, *, late: bool = False) -> None:
        super().__init__(reason)
        self.late = late


class Malformed(Exception):
    """An answer came that is none of Triton's."""


class Wire(Protocol):
    """One protocol. Every method raises Refused, Unanswered or Malformed."""

    def ready(self, model: str | None, timeout_s: float) -> bool:
        """Whether the server, or this model, takes requests."""
        ...

    def metadata(self, model: str, timeout_s: float) -> ModelMetadata:
        """What the server says of a model."""
        ...

    def models(self, timeout_s: float) -> list[str]:
        """The names of the models that are ready."""
        ...

    def infer(
        self, model: str, inputs: Arrays, outputs: Sequence[str], parameters: Parameters, timeout_s: float
    ) -> Arrays:
        """One inference; all outputs where none is named. BYTES are object arrays of bytes."""
        ...

    def close(self) -> None:
        """Ends the connection."""
        ...


class GrpcWire:
    """Triton's gRPC protocol; may be used by several threads at once."""

    def __init__(self, address: Address) -> None:
        import grpc  # type: ignore[import-untyped]
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        if address.tls:
            self._channel = grpc.secure_channel(address.netloc, grpc.ssl_channel_credentials(), unlimited)
        else:
            self._channel = grpc.insecure_channel(address.netloc, unlimited)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._messages = service_pb2
        self._failure = grpc.RpcError

    def ready(self, model: str | None, timeout_s: float) -> bool:
        """See `Wire`."""
        with self._translated():
            if model is None:
                return bool(self._stub.ServerReady(self._messages.ServerReadyRequest(), timeout=timeout_s).ready)
            request = self._messages.ModelReadyRequest(name=model)
            return bool(self._stub.ModelReady(request, timeout=timeout_s).ready)

    def metadata(self, model: str, timeout_s: float) -> ModelMetadata:
        """See `Wire`."""
        with self._translated():
            said = self._stub.ModelMetadata(self._messages.ModelMetadataRequest(name=model), timeout=timeout_s)
            tensors = [
                tuple(TensorMetadata(each.name, each.datatype, tuple(each.shape)) for each in side)
                for side in (said.inputs, said.outputs)
            ]
            return ModelMetadata(said.name, tuple(said.versions), said.platform, tensors[0], tensors[1])

    def models(self, timeout_s: float) -> list[str]:
        """See `Wire`."""
        with self._translated():
            index = self._stub.RepositoryIndex(self._messages.RepositoryIndexRequest(ready=True), timeout=timeout_s)
            return sorted({model.name for model in index.models})

    def infer(
        self, model: str, inputs: Arrays, outputs: Sequence[str], parameters: Parameters, timeout_s: float
    ) -> Arrays:
        """See `Wire`."""
        request = self._messages.ModelInferRequest(model_name=model)
        for name, array in inputs.items():
            request.inputs.add(name=name, datatype=_datatype(array), shape=array.shape)
            request.raw_input_contents.append(_raw(array))
        for name in outputs:
            request.outputs.add(name=name)
        for key, value in parameters.items():
            setattr(request.parameters[key], _PARAMETER_FIELDS[type(value)], value)
        with self._translated():
            reply = self._stub.ModelInfer(request, timeout=timeout_s)
            if len(reply.outputs) != len(reply.raw_output_contents):
                raise Malformed(f"{len(reply.outputs)} outputs with {len(reply.raw_output_contents)} contents")
            return {
                tensor.name: _array(tensor.datatype, tensor.shape, raw)
                for tensor, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
            }

    def close(self) -> None:
        """See `Wire`."""
        self._channel.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._failure as error:
            status, details = error.code().name, error.details() or ""
            if status == "DEADLINE_EXCEEDED":
                raise Unanswered("the time was up", late=True) from error
            if status == "INTERNAL" and "deserializing" in details:
                raise Malformed(details) from error
            raise Refused(_GRPC_STATUS.get(status, 500), details) from error
        except _UNREADABLE as error:
            raise Malformed(str(error)) from error


_PARAMETER_FIELDS = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}


class HttpWire:
    """Triton's HTTP protocol with binary tensors; for one thread."""

    def __init__(self, address: Address) -> None:
        import gevent  # type: ignore[import-untyped]
        from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError
        from tritonclient import http
        from tritonclient.utils import InferenceServerException

        # Its own time limits are for each read: a server that drips would outlast them, so a Timeout holds the call.
        self._client = http.InferenceServerClient(
            address.netloc, ssl=address.tls, ssl_context_factory=ssl.create_default_context if address.tls else None
        )
        self._http = http
        self._timeout = gevent.Timeout
        self._failures = (OSError, HTTPConnectionClosed)
        self._unreadable = (HTTPParseError, *_UNREADABLE)
        self._error = InferenceServerException

    def ready(self, model: str | None, timeout_s: float) -> bool:
        """See `Wire`."""
        with self._translated(timeout_s):
            return bool(self._client.is_server_ready() if model is None else self._client.is_model_ready(model))

    def metadata(self, model: str, timeout_s: float) -> ModelMetadata:
        """See `Wire`."""
        with self._translated(timeout_s):
            said = self._client.get_model_metadata(model)
            tensors = [
                tuple(TensorMetadata(each["name"], each["datatype"], tuple(each["shape"])) for each in said[side])
                for side in ("inputs", "outputs")
            ]
            versions = tuple(said.get("versions", ()))
            return ModelMetadata(said["name"], versions, said["platform"], tensors[0], tensors[1])

    def models(self, timeout_s: float) -> list[str]:
        """See `Wire`."""
        with self._translated(timeout_s):
            return sorted({model["name"] for model in self._client.get_model_repository_index() if "state" in model})

    def infer(
        self, model: str, inputs: Arrays, outputs: Sequence[str], parameters: Parameters, timeout_s: float
    ) -> Arrays:
        """See `Wire`."""
        tensors = []
        for name, array in inputs.items():
            tensor = self._http.InferInput(name, list(array.shape), _datatype(array))
            tensors.append(tensor.set_data_from_numpy(array))
        wanted = [self._http.InferRequestedOutput(name) for name in outputs] or None
        with self._translated(timeout_s):
            reply = self._client.infer(model, tensors, outputs=wanted, parameters=dict(parameters) or None)
            return {output["name"]: reply.as_numpy(output["name"]) for output in reply.get_response()["outputs"]}

    def close(self) -> None:
        """See `Wire`."""
        self._client.close()

    @contextlib.contextmanager
    def _translated(self, timeout_s: float) -> Iterator[None]:
        timeout = self._timeout(timeout_s)
        try:
            with timeout:
                yield
        except self._timeout as expired:
            if expired is not timeout:
                raise
            raise Unanswered("the time was up", late=True) from expired
        except self._error as error:
            if error.status() is None:
                raise Malformed(error.message()) from error
            raise Refused(int(error.status()), error.message()) from error
        except self._failures as error:
            raise Unanswered(str(error) or type(error).__name__, late=isinstance(error, TimeoutError)) from error
        except self._unreadable as error:
            raise Malformed(str(error)) from error


def _datatype(array: NDArray[Any]) -> str:
    from tritonclient.utils import np_to_triton_dtype

    datatype = np_to_triton_dtype(array.dtype)
    if datatype is None:
        raise UsageError(f"Triton has no data type for numpy's {array.dtype}")
    return str(datatype)


def _raw(array: NDArray[Any]) -> bytes:
    if array.dtype == np.object_:
        return b"".join(part for value in array.ravel() for part in (struct.pack("<I", len(value)), value))
    return array.tobytes()


def _array(datatype: str, shape: Sequence[int], raw: bytes) -> NDArray[Any]:
    from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

    if datatype == "BYTES":
        values: NDArray[Any] = deserialize_bytes_tensor(raw)
    else:
        values = np.frombuffer(raw, dtype=np.dtype(triton_to_np_dtype(datatype)))
    return values.reshape(tuple(shape))
