"""Requests encoded before a run under load: the bytes that a client sends, for served and for tensor entries."""

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
from deploykit.runners.medium import medium_of_input, medium_of_tensors
from deploykit.runners.triton_wire import Address, ModelMetadata

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Wanted:
    """What a model takes and is asked for.

    Attributes:
        inputs: `text` alone for a text entry, `image` for one of images; names of tensors for a tensor entry.
        outputs: what is asked of it.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def tensors(self) -> bool:
        """Whether it takes what messages become: tokens, pixels."""
        return len(self.inputs) != 1 or medium_of_input(self.inputs[0]) is None


def wanted_of(metadata: ModelMetadata) -> Wanted:
    """What to send to a model that a server describes, and what to ask of it.

    A served entry's logits are not asked for: clients want answers.

    Raises:
        UsageError: it takes neither a message nor what messages become.
    """
    inputs = tuple(each.name for each in metadata.inputs)
    outputs = tuple(each.name for each in metadata.outputs)
    wanted = Wanted(inputs, outputs)
    if not wanted.tensors:
        return Wanted(inputs, tuple(name for name in outputs if name != "logits") or outputs)
    if medium_of_tensors(inputs) is None:
        raise UsageError(
            f"{metadata.name} takes {', '.join(inputs) or 'nothing'}: neither a text nor tokens",
            "name a model that takes text, or input_ids, attention_mask, token_type_ids; or image, or pixels",
        )
    return wanted


def tensors_of(wanted: Wanted, texts: Sequence[str], tokenizer: str | None) -> list[Arrays]:
    """The inputs of each message, one message to a request.

    Args:
        wanted: what the model takes.
        texts: the messages.
        tokenizer: the folder of the tokenizer, for a tensor entry.

    Raises:
        UsageError: a tensor entry of texts without a tokenizer.
        ModelError: the tokenizer can't be read.
        RequestError: a message can't be sent.
    """
    (name, *_), medium = wanted.inputs, medium_of_input(wanted.inputs[0])
    if not wanted.tensors and medium is not None:
        if medium.textual:
            texts = [text.encode("utf-8", errors="replace").decode("utf-8") for text in texts]
        return [{name: np.array([[value]], dtype=np.object_)} for value in medium.sent(texts)]
    medium = medium_of_tensors(wanted.inputs)
    if medium is None or (tokenizer is None and medium.textual):
        raise UsageError(
            f"this model takes {', '.join(wanted.inputs)}, and nothing says how texts become tokens",
            "--tokenizer FOLDER: that of the model, or NAME/1 of its package",
        )
    encoder = medium.encoder(Path(tokenizer or ""))
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
    return "BYTES" if values.dtype == np.object_ else "UINT8" if values.dtype == np.uint8 else "INT64"


def _raw(values: NDArray[Any]) -> bytes:
    if values.dtype != np.object_:
        return values.astype("<i8" if values.dtype == np.int64 else values.dtype, copy=False).tobytes()
    return b"".join(struct.pack("<I", len(value)) + value for value in values.ravel())
