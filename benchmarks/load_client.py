"""A light closed-loop client: requests are encoded beforehand, raw bytes go out, replies are barely parsed.

One process, one thread for HTTP (epoll over keep-alive sockets); for gRPC serialized messages over plain channels.
`python benchmarks/load_client.py` reads one JSON order on stdin and answers with latencies on stdout.
"""

from __future__ import annotations

import json
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any


def main() -> None:
    order = json.loads(sys.stdin.read())
    run = {"http": over_http, "grpc": over_grpc}[order["protocol"]]
    arguments = (order["address"], order["model"], order["texts"], order["outputs"], order["clients"])
    run(*arguments, min(0.5, order["seconds"]))  # warm-up
    latencies_ms, elapsed_s = run(*arguments, order["seconds"])
    print(json.dumps({"latencies_ms": latencies_ms, "elapsed_s": elapsed_s}))


def over_http(
    address: str, model: str, texts: Sequence[str], outputs: Sequence[str], clients: int, seconds: float
) -> tuple[list[float], float]:
    """Each of `clients` connections has one request under way at a time."""
    requests = [_http_request(model, text, outputs) for text in texts]
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


def over_grpc(
    address: str, model: str, texts: Sequence[str], outputs: Sequence[str], clients: int, seconds: float
) -> tuple[list[float], float]:
    """Each client is a thread with a channel of its own."""
    import grpc
    from tritonclient.grpc import service_pb2

    requests = []
    for text in texts:
        request = service_pb2.ModelInferRequest(model_name=model)
        tensor = request.inputs.add()
        tensor.name, tensor.datatype = "text", "BYTES"
        tensor.shape.extend([1, 1])
        request.raw_input_contents.append(_bytes_element(text))
        for name in outputs:
            request.outputs.add().name = name
        requests.append(request.SerializeToString())
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


def _http_request(model: str, text: str, outputs: Sequence[str]) -> bytes:
    element = _bytes_element(text)
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": "text",
                    "shape": [1, 1],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": len(element)},
                }
            ],
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
        }
    ).encode()
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\n"
        f"Inference-Header-Content-Length: {len(header)}\r\nContent-Length: {len(header) + len(element)}\r\n\r\n"
    )
    return head.encode() + header + element


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
