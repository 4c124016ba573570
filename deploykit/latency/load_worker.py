"""A light client of a Triton server in a process of its own: `python -m deploykit.latency.load_worker`.

One JSON order on stdin, one JSON reply on stdout. Requests are encoded beforehand and replies are not decoded.
"""

from __future__ import annotations

__all__ = ["main"]

import asyncio
import contextlib
import dataclasses
import json
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np

from deploykit.errors import DeploykitError
from deploykit.latency.generator import Refusal, Send, Sent, closed_loop, open_loop
from deploykit.runners.triton_wire import Address, parse_url

_QUEUE_WORDS = ("exceeds maximum queue size", "request timeout expired")
_WARMUP = 50


def main() -> int:
    """Serve one order: `url`, `texts`, `due` (seconds; open loop) or `clients` (closed loop), `timeout_s`."""
    order = json.loads(sys.stdin.readline())
    try:
        reply = asyncio.run(_serve(order))
    except DeploykitError as error:
        print(json.dumps({"error": error.message, "hint": error.hint}))  # noqa: T201 - this is the reply
        return int(error.exit_code)
    print(json.dumps(reply))  # noqa: T201
    return 0


async def _serve(order: dict[str, Any]) -> dict[str, Any]:
    address, model = parse_url(order["url"])
    opened = _over_grpc if address.protocol == "grpc" else _over_http
    async with opened(address, model, order["texts"], order["timeout_s"]) as send:
        await closed_loop(send, _WARMUP, 4)
        if "due" in order:
            found = await open_loop(send, order["due"])
        else:
            found = await closed_loop(send, len(order["texts"]), order["clients"])
    return {"sent": [dataclasses.astuple(each) for each in found]}


@contextlib.asynccontextmanager
async def _over_grpc(address: Address, model: str, texts: Sequence[str], timeout_s: float) -> AsyncIterator[Send]:
    import grpc  # type: ignore[import-untyped]
    from tritonclient.grpc import service_pb2

    requests = []
    for text in texts:
        request = service_pb2.ModelInferRequest(model_name=model)
        request.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
        request.raw_input_contents.append(_element(text))
        for name in ("label", "score"):
            request.outputs.add(name=name)
        requests.append(request.SerializeToString())
    channel = (
        grpc.aio.secure_channel(address.netloc, grpc.ssl_channel_credentials())
        if address.tls
        else grpc.aio.insecure_channel(address.netloc)
    )
    async with channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

        async def send(number: int) -> None:
            try:
                await call(requests[number % len(requests)], timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                raise _refusal(f"{error.code().name}: {error.details()}") from error

        yield send


@contextlib.asynccontextmanager
async def _over_http(address: Address, model: str, texts: Sequence[str], timeout_s: float) -> AsyncIterator[Send]:
    import aiohttp

    bodies = []
    for text in texts:
        element = _element(text)
        tensor = {
            "name": "text",
            "shape": [1, 1],
            "datatype": "BYTES",
            "parameters": {"binary_data_size": len(element)},
        }
        outputs = [{"name": name, "parameters": {"binary_data": True}} for name in ("label", "score")]
        header = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
        bodies.append((header + element, {"Inference-Header-Content-Length": str(len(header))}))
    url = f"{address}/v2/models/{model}/infer"
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def send(number: int) -> None:
            body, headers = bodies[number % len(bodies)]
            try:
                async with session.post(url, data=body, headers=headers) as reply:
                    said = await reply.read()
                    if reply.status != 200:
                        raise _refusal(f"{reply.status}: {said[:200].decode(errors='replace')}")
            except (aiohttp.ClientError, TimeoutError) as error:
                raise _refusal(f"{type(error).__name__}: {error}") from error

        yield send


def _element(text: str) -> bytes:
    data = text.encode("utf-8", errors="replace")
    return bytes(np.uint32(len(data)).tobytes()) + data


def _refusal(said: str) -> Refusal:
    return Refusal(said, rejected=any(words in said.lower() for words in _QUEUE_WORDS))


def sent_from(reply: dict[str, Any]) -> list[Sent]:
    """The requests of a reply."""
    return [Sent(*each) for each in reply["sent"]]


if __name__ == "__main__":
    sys.exit(main())
