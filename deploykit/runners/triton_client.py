"""Asks a Triton server: with a deadline, bounded retries, and an error of its own for every way to fail."""

from __future__ import annotations

__all__ = ["Rejected", "TritonClient"]

import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import RequestError, ServerError
from deploykit.runners.medium import medium_of
from deploykit.runners.texts import TEXTS
from deploykit.runners.triton_wire import (
    Address,
    GrpcWire,
    HttpWire,
    Malformed,
    ModelMetadata,
    Parameters,
    Refused,
    Unanswered,
    Wire,
    parse_url,
)
from deploykit.tasks import Answer, Task, task_of_outputs

_LIMITS_BYTES = {"http": 64 << 20, "grpc": (1 << 31) - 1}
"""The largest request that Triton takes by default: its HTTP limit, and protobuf's."""
_PAUSES_S = (0.1, 0.3)
_PROBE_S = 2.0
_QUEUE_WORDS = ("exceeds maximum queue size", "request timeout expired")
_LOST_WORDS = ("socket closed", "connection reset", "connection dropped", "broken pipe", "failed to connect", "goaway")

Result = TypeVar("Result")


class Rejected(RequestError):
    """The server's queue was full, or the request had waited there too long."""


class TritonClient:
    """A connection to one server, for one thread over HTTP, for several over gRPC.

    A request is tried again, twice at most and within the deadline, where the server can't be reached or says that it
    is unavailable (503); never where it refuses.

    Args:
        url: `grpc://host:port` or `http://host:port`; `grpcs://` and `https://` with TLS.
        timeout_s: the longest that a call may take, retries included.
        retries: False to fail at the first attempt, as a measurement wants it.

    Raises:
        UsageError: the URL is not one of a Triton server.
    """

    def __init__(self, url: str, *, timeout_s: float = 30.0, retries: bool = True) -> None:
        self._address, _ = parse_url(url)
        self._timeout_s = timeout_s
        self._pauses_s = _PAUSES_S if retries else ()
        self._wire: Wire = GrpcWire(self._address) if self._address.protocol == "grpc" else HttpWire(self._address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._wire.close()

    def ready(self, model: str | None = None) -> bool:
        """Whether the server, or this model of it, takes requests; False also for a model that it does not have.

        Raises:
            ServerError: there is no server, or it does not answer.
        """
        try:
            return self._call(lambda left_s: self._wire.ready(model, left_s), model)
        except RequestError:
            return False

    def metadata(self, model: str) -> ModelMetadata:
        """The model's versions, inputs and outputs.

        Raises:
            RequestError: there is no such model, or the reply can't be read.
            ServerError: there is no server, or it does not answer.
        """
        return self._call(lambda left_s: self._wire.metadata(model, left_s), model)

    def ask(self, model: str, texts: Sequence[str], top_k: int | None = None, task: Task | None = None) -> list[Answer]:
        """What a served entry answers to these messages, sent as one batch.

        Args:
            model: the entry's name.
            texts: the messages.
            top_k: how many labels for each message, the alternatives included, where the task ranks them; as many as
                the task is judged by unless given.
            task: what the model does. Where messages are texts its outputs tell; for other ones it has to be named.

        Raises:
            RequestError: a message can't be encoded, or the server refuses or fails the request.
            ServerError: there is no server, or it does not answer.
        """
        return self.infer_texts(model, texts, task, None if task is None else (), top_k=top_k)[0]

    def infer_texts(
        self,
        model: str,
        texts: Sequence[str],
        task: Task | None,
        outputs: Sequence[str] | None = None,
        top_k: int | None = None,
    ) -> tuple[list[Answer], dict[str, NDArray[Any]]]:
        """One inference of a served entry: the answers, and further outputs; all of them where `outputs` is None.

        Raises:
            As `ask`.
        """
        known = [] if task is None else [output.name for output in task.served]
        wanted = () if outputs is None else (*known, *outputs)
        medium = TEXTS if task is None else medium_of(task)
        sent = np.array(medium.sent(texts), dtype=np.object_).reshape(len(texts), 1)
        found = self.infer(model, {medium.name: sent}, wanted, {} if top_k is None else {"top_k": top_k})
        task = task or task_of_outputs(found)
        if task is None:
            raise self._malformed(f"outputs {', '.join(found) or 'none'}, which no text model has")
        for name, values in found.items():
            rows = len(values) if values.ndim else 0
            if rows != len(texts):
                raise self._malformed(f"output {name} has {rows} rows for {len(texts)} messages")
        try:
            return task.served_answers(found), found
        except ValueError as error:
            raise self._malformed(str(error)) from error

    def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str] = (),
        parameters: Parameters | None = None,
    ) -> dict[str, NDArray[Any]]:
        """One inference: named arrays in, named arrays out.

        Args:
            model: the model's name.
            inputs: its inputs with the batch axis; BYTES as object arrays of bytes.
            outputs: the outputs wanted; all where none is named.
            parameters: the request's own parameters.

        Raises:
            RequestError: the request is too large, or the server refuses or fails it, or its reply can't be read.
            Rejected: its queue is full.
            ServerError: there is no server, or it does not answer.
        """
        size, limit = sum(_size_bytes(array) for array in inputs.values()), _LIMITS_BYTES[self._address.protocol]
        if size > limit:
            raise RequestError(
                f"the inputs are {size} bytes, and Triton takes {limit} in one {self._address.protocol} request",
                hint="send smaller batches" + (", or use gRPC" if self._address.protocol == "http" else ""),
                status=413,
            )
        found = self._call(
            lambda left_s: self._wire.infer(model, dict(inputs), outputs, parameters or {}, left_s), model
        )
        missing = [name for name in outputs if name not in found]
        if missing:
            raise self._malformed(f"no output {', '.join(missing)}")
        return found

    def _call(self, attempt: Callable[[float], Result], model: str | None) -> Result:
        """Runs the attempt, again where that can help, until the deadline."""
        deadline = time.monotonic() + self._timeout_s
        pauses_s = list(self._pauses_s)
        while True:
            try:
                return attempt(max(deadline - time.monotonic(), 0.001))
            except Malformed as error:
                raise self._malformed(str(error)) from error
            except (Refused, Unanswered) as error:
                passing = error.status == 503 if isinstance(error, Refused) else not error.late
                if not passing or not pauses_s or time.monotonic() + pauses_s[0] >= deadline:
                    raise self._explained(error, model, deadline) from error
            time.sleep(pauses_s.pop(0))

    def _explained(self, error: Refused | Unanswered, model: str | None, deadline: float) -> ServerError | RequestError:
        if isinstance(error, Unanswered):
            if error.late:
                return ServerError(
                    f"{self._address} did not answer within {self._timeout_s:g} s", "look at its log and load"
                )
            return diagnose(self._address) or self._lost(str(error))
        words = error.message.lower()
        if error.status == 503 and any(known in words for known in _QUEUE_WORDS):
            return Rejected(f"{self._address} rejected the request: {error.message}", "send less at once", status=503)
        if error.status == 503 and self._address.protocol == "grpc":
            # gRPC says "unavailable" too where no server spoke at all.
            found = diagnose(self._address)
            if found is not None or any(known in words for known in _LOST_WORDS):
                return found or self._lost(error.message)
        if error.status == 404 or "unknown model" in words:
            return RequestError(f"{self._address} has no model {model!r}", self._what_it_has(deadline), status=404)
        return RequestError(f"{self._address} refused the request: {error.message}", status=error.status)

    def _lost(self, reason: str) -> ServerError:
        return ServerError(f"{self._address} ended the connection: {reason}", "look at the server's log")

    def _what_it_has(self, deadline: float) -> str | None:
        try:
            names = self._wire.models(min(_PROBE_S, max(0.1, deadline - time.monotonic())))
        except (Refused, Unanswered, Malformed):
            return None
        return f"it serves: {', '.join(names)}" if names else "it serves no model"

    def _malformed(self, what: str) -> RequestError:
        return RequestError(f"{self._address} sent a malformed reply: {what}", hint="is it a Triton server?")


def diagnose(address: Address) -> ServerError | None:
    """Why nothing can be had from an address: nobody there, or TLS on one side only. None where it looks right."""
    try:
        with socket.create_connection((address.host, address.port), _PROBE_S) as connection:
            speaks_tls = _speaks_tls(connection)
    except ConnectionRefusedError:
        return ServerError(f"no server listens at {address}", hint="start one: deploykit serve")
    except socket.gaierror:
        return ServerError(f"the host of {address} is not known", hint="check the name")
    except OSError as error:
        return ServerError(f"{address} can't be reached: {error}", hint="check the address and the network")
    if speaks_tls and not address.tls:
        return ServerError(f"{address} speaks TLS", hint=f"write {address.protocol}s://{address.netloc}")
    if address.tls and not speaks_tls:
        return ServerError(f"{address} does not speak TLS", hint=f"write {address.protocol}://{address.netloc}")
    if address.tls:
        return ServerError(f"no TLS connection to {address} came about", hint="is its certificate trusted here?")
    return None


def _speaks_tls(connection: socket.socket) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with context.wrap_socket(connection):
            return True
    except OSError:
        return False


def _size_bytes(array: NDArray[Any]) -> int:
    return sum(4 + len(value) for value in array.ravel()) if array.dtype == np.object_ else array.nbytes
