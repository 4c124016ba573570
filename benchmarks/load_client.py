"""A light closed-loop client: requests are encoded beforehand, raw bytes go out, replies are barely parsed.

One process, one thread for HTTP (epoll over keep-alive sockets); for gRPC serialized messages over plain channels.
Over HTTP the tensors travel as `encoding` says: `binary` behind the JSON header (unless told), as `json` in it, or in
`shared memory`, where all texts lie beforehand and one answer has room.
`python benchmarks/load_client.py` reads one JSON order on stdin and answers with latencies on stdout.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

_ANSWER_BYTES = 1 << 10


def main() -> None:
    order = json.loads(sys.stdin.read())
    encoding = order.get("encoding", "binary")
    if order["protocol"] == "http":
        run = over_http
        requests: Sequence[bytes] = [
            _http_request(order["model"], text, order["outputs"], encoding) for text in order["texts"]
        ]
    else:
        run = over_grpc
        requests = [_grpc_request(order["model"], text, order["outputs"]) for text in order["texts"]]
    with contextlib.ExitStack() as stack:
        if encoding == "shared memory":
            requests = stack.enter_context(
                _in_shared_memory(order["address"], order["model"], order["texts"], order["outputs"])
            )
        arguments = (order["address"], requests, order["clients"])
        run(*arguments, min(0.5, order["seconds"]))  # warm-up
        latencies_ms, elapsed_s = run(*arguments, order["seconds"])
    print(json.dumps({"latencies_ms": latencies_ms, "elapsed_s": elapsed_s}))


def over_http(address: str, requests: Sequence[bytes], clients: int, seconds: float) -> tuple[list[float], float]:
    """Each of `clients` connections has one request under way at a time."""
    host, _, port = address.partition(":")
    selector = selectors.DefaultSelector()
    connections = []
    for _ in range(clients):
        connection = socket.create_connection((host, int(port)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        state: dict[str, Any] = {"socket": connection, "reply": b"", "sent": 0.0}
        selector.register(connection, selectors.EVENT_READ, state)
        connections.append(state)
    latencies: list[float] = []
    sent = 0
    start = time.perf_counter()
    end = start + seconds
    for state in connections:
        state["sent"] = time.perf_counter()
        state["socket"].sendall(requests[sent % len(requests)])
        sent += 1
    open_requests = clients
    while open_requests:
        for key, _ in selector.select():
            state = key.data
            state["reply"] += state["socket"].recv(1 << 16)
            if not _complete(state["reply"]):
                continue
            now = time.perf_counter()
            if not state["reply"].startswith(b"HTTP/1.1 200"):
                raise RuntimeError(state["reply"][:500].decode(errors="replace"))
            latencies.append((now - state["sent"]) * 1e3)
            state["reply"] = b""
            if now < end:
                state["sent"] = time.perf_counter()
                state["socket"].sendall(requests[sent % len(requests)])
                sent += 1
            else:
                open_requests -= 1
    elapsed = time.perf_counter() - start
    for state in connections:
        state["socket"].close()
    return latencies, elapsed


def over_grpc(address: str, requests: Sequence[bytes], clients: int, seconds: float) -> tuple[list[float], float]:
    """Each client is a thread with a channel of its own."""
    import grpc

    latencies: list[float] = []
    start = time.perf_counter()
    end = start + seconds

    def work(number: int) -> None:
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            turn = number
            while time.perf_counter() < end:
                began = time.perf_counter()
                call(requests[turn % len(requests)])
                latencies.append((time.perf_counter() - began) * 1e3)
                turn += clients

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies, time.perf_counter() - start


def _grpc_request(model: str, text: str, outputs: Sequence[str]) -> bytes:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model)
    tensor = request.inputs.add()
    tensor.name, tensor.datatype = "text", "BYTES"
    tensor.shape.extend([1, 1])
    request.raw_input_contents.append(_bytes_element(text))
    for name in outputs:
        request.outputs.add().name = name
    serialized: bytes = request.SerializeToString()
    return serialized


def _http_request(model: str, text: str, outputs: Sequence[str], encoding: str) -> bytes:
    tensor: dict[str, Any] = {"name": "text", "shape": [1, 1], "datatype": "BYTES"}
    if encoding == "json":
        return _http_message(
            model, {"inputs": [tensor | {"data": [[text]]}], "outputs": [{"name": name} for name in outputs]}
        )
    element = _bytes_element(text)
    asked = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    return _http_message(
        model, {"inputs": [tensor | {"parameters": {"binary_data_size": len(element)}}], "outputs": asked}, element
    )


def _http_message(model: str, header: dict[str, Any], tensors: bytes = b"") -> bytes:
    encoded = json.dumps(header).encode()
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\n"
        f"Inference-Header-Content-Length: {len(encoded)}\r\nContent-Length: {len(encoded) + len(tensors)}\r\n\r\n"
    )
    return head.encode() + encoded + tensors


@contextlib.contextmanager
def _in_shared_memory(address: str, model: str, texts: Sequence[str], outputs: Sequence[str]) -> Iterator[list[bytes]]:
    """Requests that only name where their text lies, and where the answer goes."""
    import numpy as np
    from tritonclient.http import InferenceServerClient
    from tritonclient.utils import shared_memory

    region = f"texts-{os.getpid()}"
    elements = list(map(_bytes_element, texts))
    starts = np.cumsum([0, *map(len, elements)]).tolist()
    size = starts[-1] + _ANSWER_BYTES * len(outputs)
    with InferenceServerClient(address) as client:
        memory = shared_memory.create_shared_memory_region(region, f"/{region}", size)
        shared_memory.set_shared_memory_region(memory, [np.frombuffer(b"".join(elements), np.uint8)])
        client.register_system_shared_memory(region, f"/{region}", size)

        def place(offset: int, size: int) -> dict[str, Any]:
            named = {"region": region, "byte_size": size, "offset": offset}
            return {"parameters": {f"shared_memory_{name}": value for name, value in named.items()}}

        answers = [
            {"name": name} | place(starts[-1] + number * _ANSWER_BYTES, _ANSWER_BYTES)
            for number, name in enumerate(outputs)
        ]
        tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES"}
        try:
            yield [
                _http_message(model, {"inputs": [tensor | place(start, len(element))], "outputs": answers})
                for start, element in zip(starts, elements, strict=False)
            ]
        finally:
            client.unregister_system_shared_memory(region)
            shared_memory.destroy_shared_memory_region(memory)


def _bytes_element(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data


def _complete(reply: bytes) -> bool:
    end = reply.find(b"\r\n\r\n")
    if end < 0:
        return False
    for line in reply[:end].lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(reply) >= end + 4 + int(line.split(b":")[1])
    return False


if __name__ == "__main__":
    main()
