"""Requests encoded before a run under load: the bytes that a client sends, for text and for tensor entries."""

from __future__ import annotations

__all__ = ["Wanted", "grpc_request", "http_request", "tensors_of", "wanted_of"]

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import UsageError
from deploykit.runners.tokenize import Encoder
from deploykit.runners.triton_wire import Address, ModelMetadata

Arrays = dict[str, NDArray[Any]]
_TEXT = "text"
_TOKENS = frozenset(Encoder.outputs)


@dataclass(frozen=True)
class Wanted:
    """What a model takes and is asked for.

    Attributes:
        inputs: `text` alone for a text entry, names of token tensors for a tensor entry.
        outputs: what is asked of it.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def tensors(self) -> bool:
        """Whether it takes tokens."""
        return self.inputs != (_TEXT,)


def wanted_of(metadata: ModelMetadata) -> Wanted:
    """What to send to a model that a server describes, and what to ask of it.

    A text entry's logits are not asked for: clients want answers.

    Raises:
        UsageError: it takes neither a text nor tokens.
    """
    inputs = tuple(each.name for each in metadata.inputs)
    outputs = tuple(each.name for each in metadata.outputs)
    if inputs == (_TEXT,):
        return Wanted(inputs, tuple(name for name in outputs if name != "logits") or outputs)
    if not inputs or not _TOKENS.issuperset(inputs):
        raise UsageError(
            f"{metadata.name} takes {', '.join(inputs) or 'nothing'}: neither a text nor tokens",
            f"name a model that takes {_TEXT}, or {', '.join(Encoder.outputs)}",
        )
    return Wanted(inputs, outputs)


def tensors_of(wanted: Wanted, texts: Sequence[str], tokenizer: str | None) -> list[Arrays]:
    """The inputs of each message, one message to a request.

    Args:
        wanted: what the model takes.
        texts: the messages.
        tokenizer: the folder of the tokenizer, for a tensor entry.

    Raises:
        UsageError: a tensor entry without a tokenizer.
        ModelError: the tokenizer can't be read.
    """
    if not wanted.tensors:
        encoded = [text.encode("utf-8", errors="replace") for text in texts]
        return [{_TEXT: np.array([[value]], dtype=np.object_)} for value in encoded]
    if tokenizer is None:
        raise UsageError(
            f"this model takes {', '.join(wanted.inputs)}, and nothing says how texts become tokens",
            "--tokenizer FOLDER: that of the model, or NAME/1 of its package",
        )
    encoder = Encoder(Path(tokenizer))
    known: dict[str, Arrays] = {}
    for text in texts:
        if text not in known:
            tensors = encoder.encode([text])
            known[text] = {name: tensors[name] for name in wanted.inputs}
    return [known[text] for text in texts]


def http_request(address: Address, model: str, tensors: Arrays, outputs: Sequence[str]) -> bytes:
    """A whole HTTP request: head, JSON header and binary tensors."""
    raw = [_raw(values) for values in tensors.values()]
    inputs = [
        {
            "name": name,
            "shape": list(values.shape),
            "datatype": _datatype(values),
            "parameters": {"binary_data_size": len(data)},
        }
        for (name, values), data in zip(tensors.items(), raw, strict=True)
    ]
    asked = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    header = json.dumps({"inputs": inputs, "outputs": asked}).encode()
    body = b"".join([header, *raw])
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(header)}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def grpc_request(model: str, tensors: Arrays, outputs: Sequence[str]) -> bytes:
    """A serialized `ModelInferRequest`."""
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model)
    for name, values in tensors.items():
        request.inputs.add(name=name, datatype=_datatype(values), shape=values.shape)
        request.raw_input_contents.append(_raw(values))
    for name in outputs:
        request.outputs.add(name=name)
    return bytes(request.SerializeToString())


def _datatype(values: NDArray[Any]) -> str:
    return "BYTES" if values.dtype == np.object_ else "INT64"


def _raw(values: NDArray[Any]) -> bytes:
    if values.dtype != np.object_:
        return values.astype("<i8", copy=False).tobytes()
    return b"".join(struct.pack("<I", len(value)) + value for value in values.ravel())
