"""A light client of a Triton server in a process of its own: `python -m deploykit.latency.load_worker`.

One JSON order on stdin, one JSON reply on stdout. Requests are encoded beforehand and replies are not decoded.
"""

from __future__ import annotations

__all__ = ["main"]

import asyncio
import contextlib
import dataclasses
import json
import select
import selectors
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from deploykit.errors import DeploykitError
from deploykit.latency.generator import Refusal, Send, closed_loop, open_loop
from deploykit.latency.http_client import HttpPool
from deploykit.latency.load_requests import grpc_request, http_request, tensors_of, wanted_of
from deploykit.runners.triton_client import TritonClient
from deploykit.runners.triton_wire import Address, parse_url

_QUEUE_WORDS = ("exceeds maximum queue size", "request timeout expired")
_WARMUP = 50


def main() -> int:
    """Serve one order.

    It has `url`, `texts`, `timeout_s`, `tokenizer` (a folder, or null), and `due` (seconds; open loop) or `clients`
    (closed loop: all texts once, or again and again for so many `seconds`).
    """
    order = json.loads(sys.stdin.readline())
    try:
        reply = _serve(order)
    except DeploykitError as error:
        print(json.dumps({"error": error.message, "hint": error.hint}))  # noqa: T201 - this is the reply
        return int(error.exit_code)
    print(json.dumps(reply))  # noqa: T201
    return 0


def _serve(order: dict[str, Any]) -> dict[str, Any]:
    address, model = parse_url(order["url"])
    with TritonClient(str(address), timeout_s=order["timeout_s"]) as client:
        wanted = wanted_of(client.metadata(model))
    tensors = tensors_of(wanted, order["texts"], order.get("tokenizer"))
    if address.protocol == "grpc":
        opened = _over_grpc(address, [grpc_request(model, each, wanted.outputs) for each in tensors], order)
    else:
        opened = _over_http(address, [http_request(address, model, each, wanted.outputs) for each in tensors], order)
    with asyncio.Runner(loop_factory=_fine_loop) as runner:
        return runner.run(_drive(opened, order))


def _fine_loop() -> asyncio.AbstractEventLoop:
    """An event loop that wakes when a request is due: asyncio's own waits whole milliseconds where it has epoll."""
    if not hasattr(selectors, "EpollSelector"):
        return asyncio.new_event_loop()

    class Fine(selectors.EpollSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0:
                select.select([self.fileno()], [], [], timeout)
                timeout = 0.0
            return super().select(timeout)

    return asyncio.SelectorEventLoop(Fine())


async def _drive(opened: contextlib.AbstractAsyncContextManager[Send], order: dict[str, Any]) -> dict[str, Any]:
    async with opened as send:
        await closed_loop(send, _WARMUP, 4)
        busy_s = time.process_time()
        if "due" in order:
            found = await open_loop(send, order["due"])
        else:
            found = await closed_loop(send, len(order["texts"]), order["clients"], seconds=order.get("seconds"))
        busy_s = time.process_time() - busy_s
    return {"sent": [dataclasses.astuple(each) for each in found], "client_cpu_s": busy_s}


@contextlib.asynccontextmanager
async def _over_grpc(address: Address, requests: Sequence[bytes], order: dict[str, Any]) -> AsyncIterator[Send]:
    import grpc  # type: ignore[import-untyped]

    channel = (
        grpc.aio.secure_channel(address.netloc, grpc.ssl_channel_credentials())
        if address.tls
        else grpc.aio.insecure_channel(address.netloc)
    )
    async with channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

        async def send(number: int) -> None:
            try:
                await call(requests[number % len(requests)], timeout=order["timeout_s"])
            except grpc.aio.AioRpcError as error:
                raise _refusal(f"{error.code().name}: {error.details()}") from error

        yield send


@contextlib.asynccontextmanager
async def _over_http(address: Address, requests: Sequence[bytes], order: dict[str, Any]) -> AsyncIterator[Send]:
    pool = HttpPool(address, order["timeout_s"])

    async def send(number: int) -> None:
        try:
            reply = await pool.send(requests[number % len(requests)])
        except OSError as error:  # TimeoutError is one
            raise _refusal(f"{type(error).__name__}: {error}") from error
        if reply.status != 200:
            raise _refusal(f"{reply.status}: {reply.body.decode(errors='replace')}")

    try:
        yield send
    finally:
        pool.close()


def _refusal(said: str) -> Refusal:
    return Refusal(said, rejected=any(words in said.lower() for words in _QUEUE_WORDS))


if __name__ == "__main__":
    sys.exit(main())
