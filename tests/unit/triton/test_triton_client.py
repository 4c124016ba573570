"""The client against small fake servers of both protocols: what comes back, and every way to fail."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from deploykit.errors import RequestError, ServerError, UsageError
from deploykit.runners.base import Target
from deploykit.runners.triton_client import Rejected, TritonClient
from deploykit.runners.triton_runner import TritonRunner
from deploykit.runners.triton_wire import Address, TensorMetadata, parse_url
from deploykit.tasks.text_classification import Classified

PROTOCOLS = ("grpc", "http")
GRPC_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
}


class Fault(Exception):
    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


def framed(values: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


class FakeModel:
    """Answers as a text entry does, with the text as its label; `script` holds what to do first, request by request."""

    def __init__(self) -> None:
        self.script: list[Callable[[], object]] = []
        self.requests = 0
        self.top_k: Any = None
        self.outputs: list[tuple[str, str, list[int], bytes]] | None = None

    def infer(self, raw: bytes, top_k: Any, wanted: Sequence[str]) -> list[tuple[str, str, list[int], bytes]]:
        self.requests += 1
        self.top_k = top_k
        if self.script:
            self.script.pop(0)()
        if self.outputs is not None:
            return self.outputs
        texts, offset = [], 0
        while offset < len(raw):
            (length,) = struct.unpack_from("<I", raw, offset)
            texts.append(raw[offset + 4 : offset + 4 + length])
            offset += 4 + length
        n, k = len(texts), int(top_k or 1)
        labels = [text if rank == 0 else f"other {rank}".encode() for text in texts for rank in range(k)]
        scores = np.tile(np.array([0.5 / (rank + 1) for rank in range(k)], dtype=np.float32), n)
        found = {
            "label": ("label", "BYTES", [n, k], framed(labels)),
            "score": ("score", "FP32", [n, k], scores.tobytes()),
            "logits": ("logits", "FP32", [n, 3], np.arange(3 * n, dtype=np.float32).tobytes()),
        }
        return [found[name] for name in wanted or found]


class FakeGrpc(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, model: FakeModel) -> None:
        self.model = model

    def ServerReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=True)

    def ModelReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=request.name == "intents")

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        if request.name != "intents":
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        reply = service_pb2.ModelMetadataResponse(name="intents", versions=["1"], platform="python")
        reply.inputs.add(name="text", datatype="BYTES", shape=[-1, 1])
        reply.outputs.add(name="label", datatype="BYTES", shape=[-1, -1])
        return reply

    def RepositoryIndex(self, request: Any, context: Any) -> Any:
        reply = service_pb2.RepositoryIndexResponse()
        reply.models.add(name="intents", version="1", state="READY")
        return reply

    def ModelInfer(self, request: Any, context: Any) -> Any:
        if request.model_name != "intents":
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.model_name}' is not found")
        top_k = request.parameters["top_k"].int64_param if "top_k" in request.parameters else None
        try:
            raw = b"".join(request.raw_input_contents)
            outputs = self.model.infer(raw, top_k, [wanted.name for wanted in request.outputs])
        except Fault as fault:
            context.abort(GRPC_CODES[fault.status], fault.words)
        reply = service_pb2.ModelInferResponse(model_name="intents")
        for name, datatype, shape, raw in outputs:
            reply.outputs.add(name=name, datatype=datatype, shape=shape)
            reply.raw_output_contents.append(raw)
        return reply


class FakeHttp(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model: FakeModel

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def reply(self, status: int, body: bytes, header_length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if header_length is not None:
            self.send_header("Inference-Header-Content-Length", str(header_length))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/v2/health/ready":
            self.reply(200, b"")
        elif self.path.endswith("/ready"):
            self.reply(200 if "/intents/" in self.path else 400, b"")
        elif self.path == "/v2/models/intents":
            said = {
                "name": "intents",
                "versions": ["1"],
                "platform": "python",
                "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}],
                "outputs": [
                    {"name": name, "datatype": datatype, "shape": [-1, -1]}
                    for name, datatype in (("label", "BYTES"), ("score", "FP32"), ("logits", "FP32"))
                ],
            }
            self.reply(200, json.dumps(said).encode())
        else:
            self.reply(404, b'{"error":"Request for unknown model: it is not found"}')

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v2/repository/index":
            self.reply(200, b'[{"name":"intents","version":"1","state":"READY"},{"name":"unloaded"}]')
            return
        if "/intents/" not in self.path:
            self.reply(404, b'{"error":"Request for unknown model: it is not found"}')
            return
        length = int(self.headers["Inference-Header-Content-Length"])
        asked = json.loads(body[:length])
        wanted = [output["name"] for output in asked.get("outputs", [])]
        try:
            outputs = self.model.infer(body[length:], asked.get("parameters", {}).get("top_k"), wanted)
        except Fault as fault:
            self.reply(fault.status, json.dumps({"error": fault.words}).encode())
            return
        said = [
            {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
            for name, datatype, shape, raw in outputs
        ]
        head = json.dumps({"model_name": "intents", "outputs": said}).encode()
        self.reply(200, head + b"".join(raw for *_, raw in outputs), len(head))


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that ended the connection is no news."""


@contextlib.contextmanager
def serving(protocol: str, model: FakeModel, certificate: tuple[bytes, bytes] | None = None) -> Iterator[int]:
    """A fake server's port; with a key and a certificate it speaks TLS."""
    if protocol == "grpc":
        server = grpc.server(ThreadPoolExecutor(4))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(FakeGrpc(model), server)
        if certificate:
            port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([certificate]))
        else:
            port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield port
        finally:
            server.stop(None)
    else:
        handler = type("Handler", (FakeHttp,), {"model": model})
        with QuietServer(("127.0.0.1", 0), handler) as http_server:
            threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            try:
                yield http_server.server_port
            finally:
                http_server.shutdown()


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture(params=PROTOCOLS)
def url(request: pytest.FixtureRequest, model: FakeModel) -> Iterator[str]:
    with serving(request.param, model) as port:
        yield f"{request.param}://127.0.0.1:{port}"


@contextlib.contextmanager
def raw_server(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP server's port, each of whose connections is handed to `behave`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=one, args=(connection,), daemon=True).start()

        def one(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                behave(connection)

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def fail(status: int, words: str = "no") -> Callable[[], None]:
    def script() -> None:
        raise Fault(status, words)

    return script


def test_ask_gives_the_best_label_and_the_alternatives(url: str, model: FakeModel) -> None:
    with TritonClient(url) as client:
        answers = client.ask("intents", ["where is my card", "hello"], top_k=2)
    assert answers[0] == Classified("where is my card", 0.5, (("other 1", 0.25),))
    assert answers[1].label == "hello"
    assert model.top_k == 2
    assert model.requests == 1


def test_infer_gives_the_wanted_outputs(url: str) -> None:
    with TritonClient(url) as client:
        found = client.infer("intents", {"text": np.array([[b"a"], [b"b"]], dtype=np.object_)}, ("logits",))
        every = client.infer("intents", {"text": np.array([[b"a"], [b"b"]], dtype=np.object_)})
    assert list(found) == ["logits"]
    np.testing.assert_array_equal(found["logits"], np.arange(6, dtype=np.float32).reshape(2, 3))
    assert set(every) == {"label", "score", "logits"}
    assert every["label"].tolist() == [[b"a"], [b"b"]]


def test_metadata_and_readiness(url: str) -> None:
    with TritonClient(url) as client:
        said = client.metadata("intents")
        assert client.ready()
        assert client.ready("intents")
        assert not client.ready("another")
    assert said.inputs == (TensorMetadata("text", "BYTES", (-1, 1)),)
    assert (said.name, said.versions, said.platform) == ("intents", ("1",), "python")


def test_the_runner_gives_logits_labels_and_scores(url: str) -> None:
    with TritonRunner(Target("triton", f"{url}/intents")) as runner:
        found = runner.infer(["a", "b"])
    assert found["logits"].shape == (2, 3)
    assert [(answer.label, answer.score) for answer in found["answer"]] == [("a", 0.5), ("b", 0.5)]


@pytest.mark.parametrize(
    "location", ["grpc://127.0.0.1:8001", "http://127.0.0.1:8000/a/b", "ftp://a:1/m", "grpc://a/m"]
)
def test_a_location_without_server_and_model_is_refused(location: str) -> None:
    with pytest.raises(UsageError):
        TritonRunner(Target("triton", location))


def test_parse_url_knows_tls_and_ipv6() -> None:
    assert parse_url("grpcs://[::1]:8001/m") == (Address("grpc", True, "::1", 8001), "m")
    assert str(parse_url("https://host:8000")[0]) == "https://host:8000"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_row_50_an_absent_server_is_named(protocol: str) -> None:
    port = free_port()
    with (
        TritonClient(f"{protocol}://127.0.0.1:{port}") as client,
        pytest.raises(ServerError, match="no server listens") as caught,
    ):
        client.ask("intents", ["hello"])
    assert str(port) in caught.value.message


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_row_50_an_unknown_host_is_named(protocol: str) -> None:
    with (
        TritonClient(f"{protocol}://no-such-host.invalid:8001", timeout_s=5.0) as client,
        pytest.raises(ServerError, match=r"host of .* is not known"),
    ):
        client.ready()


def test_row_50_an_unknown_model_is_named_with_those_there(url: str) -> None:
    with TritonClient(url) as client, pytest.raises(RequestError, match="has no model 'intent'") as caught:
        client.ask("intent", ["hello"])
    assert caught.value.status == 404
    assert caught.value.hint == "it serves: intents"


def test_row_50_the_runner_names_an_unknown_model_at_once(url: str) -> None:
    with pytest.raises(RequestError, match="has no model 'intent'"), TritonRunner(Target("triton", f"{url}/intent")):
        pass


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_row_50_tls_asked_of_a_server_without(protocol: str, model: FakeModel) -> None:
    with (
        serving(protocol, model) as port,
        TritonClient(f"{protocol}s://127.0.0.1:{port}") as client,
        pytest.raises(ServerError, match="does not speak TLS") as caught,
    ):
        client.ask("intents", ["hello"])
    assert caught.value.hint == f"write {protocol}://127.0.0.1:{port}"
    assert model.requests == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    if shutil.which("openssl") is None:
        pytest.skip("makes a certificate with openssl")
    folder = tmp_path_factory.mktemp("certificate")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return key.read_bytes(), cert.read_bytes()


def test_row_50_plain_asked_of_a_grpc_server_with_tls(model: FakeModel, certificate: tuple[bytes, bytes]) -> None:
    with (
        serving("grpc", model, certificate) as port,
        TritonClient(f"grpc://127.0.0.1:{port}") as client,
        pytest.raises(ServerError, match="speaks TLS") as caught,
    ):
        client.ask("intents", ["hello"])
    assert caught.value.hint == f"write grpcs://127.0.0.1:{port}"


def test_row_50_plain_asked_of_an_http_server_with_tls(tmp_path: Path, certificate: tuple[bytes, bytes]) -> None:
    for name, data in zip(("key", "cert"), certificate, strict=True):
        (tmp_path / name).write_bytes(data)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")

    def shake(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(1)

    with (
        raw_server(shake) as port,
        TritonClient(f"http://127.0.0.1:{port}") as client,
        pytest.raises(ServerError, match="speaks TLS") as caught,
    ):
        client.ask("intents", ["hello"])
    assert caught.value.hint == f"write https://127.0.0.1:{port}"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_row_50_an_untrusted_certificate_is_named(
    protocol: str, model: FakeModel, certificate: tuple[bytes, bytes], tmp_path: Path
) -> None:
    if protocol == "grpc":
        with (
            serving("grpc", model, certificate) as port,
            TritonClient(f"grpcs://127.0.0.1:{port}") as client,
            pytest.raises(ServerError, match="no TLS connection"),
        ):
            client.ask("intents", ["hello"])
        return
    for name, data in zip(("key", "cert"), certificate, strict=True):
        (tmp_path / name).write_bytes(data)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")

    def shake(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(1)

    with (
        raw_server(shake) as port,
        TritonClient(f"https://127.0.0.1:{port}") as client,
        pytest.raises(ServerError, match="no TLS connection"),
    ):
        client.ask("intents", ["hello"])


def test_row_51_the_deadline_holds_with_a_server_that_hangs(url: str, model: FakeModel) -> None:
    released = threading.Event()
    model.script = [lambda: released.wait(60)]
    try:
        with (
            TritonClient(url, timeout_s=0.3) as client,
            pytest.raises(ServerError, match=r"did not answer within 0.3 s"),
        ):
            client.ask("intents", ["hello"])
        assert model.requests == 1
    finally:
        released.set()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_row_51_the_deadline_holds_with_a_server_that_never_speaks(protocol: str) -> None:
    with (
        raw_server(lambda connection: time.sleep(60)) as port,
        TritonClient(f"{protocol}://127.0.0.1:{port}", timeout_s=0.3) as client,
        pytest.raises(ServerError, match="did not answer within"),
    ):
        client.ask("intents", ["hello"])


def test_row_51_the_deadline_holds_with_a_server_that_drips() -> None:
    def drip(connection: socket.socket) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"." * 600:
            connection.sendall(bytes([byte]))
            time.sleep(0.1)

    with (
        raw_server(drip) as port,
        TritonClient(f"http://127.0.0.1:{port}", timeout_s=0.5) as client,
        pytest.raises(ServerError, match="did not answer within"),
    ):
        client.ask("intents", ["hello"])


@pytest.mark.parametrize("status", [400, 403, 404, 501])
def test_row_52_a_refusal_is_not_tried_again(url: str, model: FakeModel, status: int) -> None:
    model.script = [fail(status)] * 3
    with TritonClient(url) as client, pytest.raises(RequestError) as caught:
        client.ask("intents", ["hello"])
    assert caught.value.status == status
    assert model.requests == 1


def test_row_52_an_unavailable_server_is_tried_again(url: str, model: FakeModel) -> None:
    model.script = [fail(503, "model is reloading")] * 2
    with TritonClient(url) as client:
        assert client.ask("intents", ["hello"])[0].label == "hello"
    assert model.requests == 3


def test_row_52_the_retries_are_bounded(url: str, model: FakeModel) -> None:
    model.script = [fail(503, "model is reloading")] * 9
    with TritonClient(url) as client, pytest.raises(RequestError, match="model is reloading") as caught:
        client.ask("intents", ["hello"])
    assert caught.value.status == 503
    assert model.requests == 3


def test_row_52_a_measuring_client_does_not_retry(url: str, model: FakeModel) -> None:
    model.script = [fail(503, "model is reloading")]
    with TritonClient(url, retries=False) as client, pytest.raises(RequestError):
        client.ask("intents", ["hello"])
    assert model.requests == 1


def test_row_53_too_large_an_input_is_refused_before_it_is_sent(model: FakeModel) -> None:
    with (
        serving("http", model) as port,
        TritonClient(f"http://127.0.0.1:{port}") as client,
        pytest.raises(RequestError, match="67108865 bytes") as caught,
    ):
        client.infer("intents", {"x": np.zeros(64 * 2**20 + 1, dtype=np.int8)})
    assert caught.value.hint is not None
    assert "gRPC" in caught.value.hint
    assert model.requests == 0


def test_row_53_the_lengths_of_texts_count(model: FakeModel) -> None:
    with (
        serving("http", model) as port,
        TritonClient(f"http://127.0.0.1:{port}") as client,
        pytest.raises(RequestError, match="bytes"),
    ):
        client.ask("intents", ["x" * 2**20] * 64)
    assert model.requests == 0


@pytest.mark.parametrize(
    "text",
    ["", "x" * 2**20, "👩‍👩‍👧‍👦 🏳️‍🌈", "a\0b", "אין לי כרטיס", "مرحبا", "e\u0301", "\u202eabc", "\ufeffbom", "\r\n\t"],
)
def test_row_54_every_text_arrives_as_it_is(url: str, text: str) -> None:
    with TritonClient(url) as client:
        assert client.ask("intents", [text])[0].label == text


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff", "\ude00\ud83d"])
def test_row_54_a_lone_surrogate_is_refused(url: str, model: FakeModel, text: str) -> None:
    with TritonClient(url) as client, pytest.raises(RequestError, match=r"message 1 .* lone surrogate"):
        client.ask("intents", ["fine", text])
    assert model.requests == 0


FLOAT = np.float32(0.5).tobytes()


@pytest.mark.parametrize(
    "outputs",
    [
        [],
        [("label", "BYTES", [1, 1], framed([b"a"]))],
        [("label", "BYTES", [1, 1], framed([b"a"])), ("score", "FP32", [2, 1], FLOAT)],
        [("label", "BYTES", [1, 1], framed([b"a"])), ("score", "FP32", [1, 1], FLOAT[:3])],
        [("label", "BYTES", [1, 1], b"\xff\xff\xff\xff"), ("score", "FP32", [1, 1], FLOAT)],
        [("label", "BYTES", [1, 1], b"\x01"), ("score", "FP32", [1, 1], FLOAT)],
        [("label", "BYTES", [2, 1], framed([b"a", b"b"])), ("score", "FP32", [2, 1], FLOAT * 2)],
        [("label", "BYTES", [1, 0], b""), ("score", "FP32", [1, 0], b"")],
        [("label", "BYTES", [1], framed([b"a"])), ("score", "FP32", [1], FLOAT)],
        [("label", "FP32", [1, 1], FLOAT), ("score", "FP32", [1, 1], FLOAT)],
        [("label", "BYTES", [1, 1], framed([b"a"])), ("score", "WHAT", [1, 1], FLOAT)],
        [("label", "BYTES", [1, 1], framed([b"a"])), ("score", "BYTES", [1, 1], framed([b"high"]))],
    ],
)
def test_row_55_a_malformed_reply_is_a_typed_error(
    url: str, model: FakeModel, outputs: list[tuple[str, str, list[int], bytes]]
) -> None:
    model.outputs = outputs
    with TritonClient(url) as client, pytest.raises(RequestError, match="malformed reply"):
        client.ask("intents", ["hello"])


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"outputs":[3]}',
        b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: x\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xfe",
    ],
)
def test_row_55_what_is_no_triton_reply_is_a_typed_error(reply: bytes) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(reply)
        connection.recv(65536)

    with (
        raw_server(answer) as port,
        TritonClient(f"http://127.0.0.1:{port}", timeout_s=5.0) as client,
        pytest.raises(RequestError, match="malformed reply"),
    ):
        client.ask("intents", ["hello"])


def test_row_55_bytes_that_are_no_protobuf_are_a_typed_error() -> None:
    class Garbage(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"\xff\xff\xff")

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Garbage()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with TritonClient(f"grpc://127.0.0.1:{port}") as client, pytest.raises(RequestError, match="malformed reply"):
            client.ask("intents", ["hello"])
    finally:
        server.stop(None)


@pytest.mark.parametrize("words", ["[request id: 1] Exceeds maximum queue size", "Request timeout expired"])
def test_row_57_a_full_queue_is_counted_apart(url: str, model: FakeModel, words: str) -> None:
    model.script = [fail(503, words)]
    with TritonClient(url, retries=False) as client, pytest.raises(Rejected) as caught:
        client.ask("intents", ["hello"])
    assert caught.value.status == 503
    assert model.requests == 1


def test_a_connection_that_ends_is_a_server_error() -> None:
    for protocol in PROTOCOLS:
        with (
            raw_server(lambda connection: connection.recv(1) and None) as port,
            TritonClient(f"{protocol}://127.0.0.1:{port}", timeout_s=5.0) as client,
            pytest.raises(ServerError),
        ):
            client.ask("intents", ["hello"])


def test_row_57_the_runner_passes_a_rejection_on_at_once(url: str, model: FakeModel) -> None:
    model.script = [fail(503, "Exceeds maximum queue size")]
    with TritonRunner(Target("triton", f"{url}/intents")) as runner, pytest.raises(Rejected):
        runner.infer(["hello"])
    assert model.requests == 1


def test_the_runner_tells_a_malformed_reply(url: str, model: FakeModel) -> None:
    model.outputs = [
        ("label", "BYTES", [1, 1], framed([b"a"])),
        ("score", "FP32", [1, 1], FLOAT),
        ("logits", "FP32", [2, 1], FLOAT * 2),
    ]
    with (
        TritonRunner(Target("triton", f"{url}/intents")) as runner,
        pytest.raises(RequestError, match="output logits has 2 rows for 1 messages"),
    ):
        runner.infer(["hello"])
