"""Requests encoded beforehand, and the light HTTP client that sends them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from deploykit.errors import UsageError
from deploykit.latency import load_worker
from deploykit.latency.http_client import HttpPool
from deploykit.latency.load_requests import Wanted, grpc_request, http_request, tensors_of, wanted_of
from deploykit.runners.triton_wire import Address, ModelMetadata, TensorMetadata, parse_url

ADDRESS = Address("http", False, "127.0.0.1", 8000)
REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def metadata(inputs: list[str], outputs: list[str]) -> ModelMetadata:
    sides = [tuple(TensorMetadata(name, "BYTES", (-1,)) for name in names) for names in (inputs, outputs)]
    return ModelMetadata("m", ("1",), "python", sides[0], sides[1])


def test_a_text_entry_is_asked_for_its_answer_a_tensor_entry_for_all() -> None:
    assert wanted_of(metadata(["text"], ["label", "score", "logits"])) == Wanted(("text",), ("label", "score"))
    tokens = ["input_ids", "attention_mask"]
    assert wanted_of(metadata(tokens, ["logits"])) == Wanted(tuple(tokens), ("logits",))


@pytest.mark.parametrize("inputs", [[], ["sound"], ["text", "language"], ["input_ids", "pixels"]])
def test_a_model_that_takes_something_else_is_refused(inputs: list[str]) -> None:
    with pytest.raises(UsageError, match="neither a text nor tokens"):
        wanted_of(metadata(inputs, ["y"]))


def test_tokens_need_a_tokenizer() -> None:
    with pytest.raises(UsageError) as caught:
        tensors_of(Wanted(("input_ids",), ("logits",)), ["hello"], None)
    assert "--tokenizer" in str(caught.value.hint)


def test_a_whole_http_request_says_its_lengths() -> None:
    (tensors,) = tensors_of(Wanted(("text",), ("label",)), ["größe"], None)
    head, _, body = http_request(ADDRESS, "m", tensors, ["label"]).partition(b"\r\n\r\n")
    fields = dict(line.split(b": ") for line in head.split(b"\r\n")[1:])
    assert head.startswith(b"POST /v2/models/m/infer HTTP/1.1")
    assert int(fields[b"Content-Length"]) == len(body)
    length = int(fields[b"Inference-Header-Content-Length"])
    header = json.loads(body[:length])
    assert header["inputs"][0]["parameters"]["binary_data_size"] == len(body) - length
    assert body[length:] == len("größe".encode()).to_bytes(4, "little") + "größe".encode()


def test_a_grpc_request_has_the_tensors_bytes() -> None:
    from tritonclient.grpc import service_pb2

    ids = np.array([[2, 4, 3]], dtype=np.int64)
    found = service_pb2.ModelInferRequest.FromString(grpc_request("m", {"input_ids": ids}, ["logits"]))
    assert (found.model_name, list(found.inputs[0].shape), found.inputs[0].datatype) == ("m", [1, 3], "INT64")
    assert np.frombuffer(found.raw_input_contents[0], dtype=np.int64).tolist() == [2, 4, 3]
    assert [output.name for output in found.outputs] == ["logits"]


def test_a_lone_surrogate_is_sent_as_something() -> None:
    (tensors,) = tensors_of(Wanted(("text",), ("label",)), ["\udcff"], None)
    assert tensors["text"].tolist() == [[b"?"]]


# The light client


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def with_server(handler: Handler, work: Callable[[HttpPool], Awaitable[object]], timeout_s: float = 5.0) -> object:
    """What `work` returns, with a server on loopback that treats each connection so."""

    async def run() -> object:
        async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await handler(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        async with await asyncio.start_server(served, "127.0.0.1", 0) as server:
            address, _ = parse_url(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            pool = HttpPool(address, timeout_s)
            try:
                return await work(pool)
            finally:
                pool.close()

    return asyncio.run(run())


def saying(*parts: bytes, once: bool = False) -> Handler:
    """Answers every request of 4 bytes with these parts; `once`: then ends the connection."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readexactly(4):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.005)
            if once:
                return

    return handler


@pytest.mark.parametrize("cut", [1, 17, 30, len(REPLY) - 1])
def test_a_reply_in_pieces_is_one_reply(cut: int) -> None:
    async def work(pool: HttpPool) -> list[tuple[int, bytes]]:
        return [(reply.status, reply.body) for _ in range(3) for reply in [await pool.send(b"ask\n")]]

    assert with_server(saying(REPLY[:cut], REPLY[cut:]), work) == [(200, b"hello")] * 3


def test_requests_at_once_have_connections_of_their_own_and_they_are_used_again() -> None:
    connections = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await saying(REPLY)(reader, writer)

    async def work(pool: HttpPool) -> None:
        for _ in range(3):
            await asyncio.gather(*(pool.send(b"ask\n") for _ in range(4)))

    with_server(handler, work)
    assert len(connections) == 4


def test_a_connection_that_the_server_ended_is_replaced() -> None:
    async def work(pool: HttpPool) -> int:
        await pool.send(b"ask\n")
        await asyncio.sleep(0.05)
        return (await pool.send(b"ask\n")).status

    assert with_server(saying(REPLY, once=True), work) == 200


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", "can't be read: SSH"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "no Content-Length"),
        (b"HTTP/1.1 twenty\r\nContent-Length: 0\r\n\r\n", "can't be read"),
        (REPLY[:20], "ended the connection"),
    ],
)
def test_row_55_what_is_no_reply_is_a_lost_connection(said: bytes, words: str) -> None:
    async def work(pool: HttpPool) -> None:
        with pytest.raises(ConnectionError, match=words):
            await pool.send(b"ask\n")

    with_server(saying(said, once=True), work)


def test_row_51_a_server_that_hangs_is_given_up() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)

    async def work(pool: HttpPool) -> None:
        with pytest.raises(TimeoutError):
            await pool.send(b"ask\n")

    with_server(silent, work, timeout_s=0.05)


@contextmanager
def running(loop: asyncio.AbstractEventLoop) -> Iterator[asyncio.AbstractEventLoop]:
    try:
        yield loop
    finally:
        loop.close()


def test_the_load_clients_loop_runs_what_asyncios_does() -> None:
    async def work() -> str:
        await asyncio.sleep(0.001)
        return await asyncio.wait_for(asyncio.to_thread(lambda: "done"), 5)

    with running(load_worker._fine_loop()) as loop:
        assert loop.run_until_complete(work()) == "done"
