"""The choice of a server: the Docker command, a container's life (Docker played by a script), a running server."""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploykit.errors import ServerError, UsageError
from deploykit.events import Event, Note
from deploykit.triton.embedded import EmbeddedServer, Installation
from deploykit.triton.engines import DockerServer, docker_command, open_server

# `docker run` answers every GET on the published HTTP port with 200 until `docker stop` ends it.
DOCKER = """#!{python}
import http.server, os, pathlib, signal, sys
here = pathlib.Path(__file__).parent
(here / "calls").open("a").write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[1] == "version":
    if (here / "broken").exists():
        sys.exit("Cannot connect to the Docker daemon")
elif sys.argv[1] == "stop":
    os.kill(int((here / "pid").read_text()), signal.SIGKILL)
elif (here / "failing").exists():
    sys.exit("no such image")
else:
    class Ready(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
    port = next(a for a in sys.argv if a.startswith("--publish=")).split(":")[1]
    (here / "pid").write_text(str(os.getpid()))
    print("container output", flush=True)
    http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Ready).serve_forever()
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a stand-in for `docker`, first on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "docker").write_text(DOCKER.format(python=sys.executable))
    (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def free_ports() -> tuple[int, int, int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        first, second, third = (each.getsockname()[1] for each in sockets)
    return first, second, third


def test_the_docker_command_serves_read_only_on_loopback(tmp_path: Path) -> None:
    command = docker_command(tmp_path, "25.08", models=["intents", "intents_onnx"])
    assert command == [
        *("docker", "run", "--rm", "--name", "deploykit-triton", "--shm-size=1g"),
        *("--publish=127.0.0.1:8000:8000", "--publish=127.0.0.1:8001:8001", "--publish=127.0.0.1:8002:8002"),
        f"--volume={tmp_path}:/models:ro",
        "nvcr.io/nvidia/tritonserver:25.08-py3",
        *("tritonserver", "--model-repository=/models", "--model-control-mode=explicit"),
        *("--load-model=intents", "--load-model=intents_onnx"),
    ]


def test_the_docker_command_loads_all_and_takes_gpus(tmp_path: Path) -> None:
    command = docker_command(tmp_path, gpus="all")
    assert "--gpus=all" in command
    assert "--load-model=*" in command


@pytest.mark.parametrize("release", ["2.51", "25.8", "latest", "25.08-py3", ""])
def test_what_is_no_release_is_refused(tmp_path: Path, release: str) -> None:
    with pytest.raises(UsageError, match="is not a Triton release"):
        docker_command(tmp_path, release)


def test_a_path_that_docker_cant_mount_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="colon"):
        docker_command(tmp_path / "a:b")


def test_a_container_lives_while_the_context_lasts(docker: Path, tmp_path: Path) -> None:
    ports = free_ports()
    heard: list[Event] = []
    log = tmp_path / "log"
    opened = open_server(
        "docker",
        tmp_path,
        http_port=ports[0],
        grpc_port=ports[1],
        metrics_port=ports[2],
        log=log,
        listener=heard.append,
    )
    with opened as server:
        assert server.urls.http == f"http://127.0.0.1:{ports[0]}"
        assert server.urls.grpc == f"grpc://127.0.0.1:{ports[1]}"
        assert server.running
        assert isinstance(heard[0], Note)
        assert heard[0].message.startswith("docker run --rm")
    calls = (docker / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["version", "run", "stop"]
    assert calls[2].split()[-1] in calls[1]
    assert "container output" in log.read_text()
    with pytest.raises(ProcessLookupError):
        os.kill(int((docker / "pid").read_text()), 0)


def test_a_container_that_ends_by_itself_is_noticed(docker: Path, tmp_path: Path) -> None:
    with DockerServer(tmp_path, release="25.08", gpus=None, ports=free_ports()) as server:
        server.raise_if_ended()
        os.kill(int((docker / "pid").read_text()), signal.SIGKILL)
        while server.running:
            time.sleep(0.01)
        with pytest.raises(ServerError, match="the container ended"):
            server.raise_if_ended()


def test_a_container_that_ends_is_an_error_with_the_command(docker: Path, tmp_path: Path) -> None:
    (docker / "failing").touch()
    server = DockerServer(tmp_path, release="25.08", gpus=None, ports=free_ports())
    with pytest.raises(ServerError, match="the container ended") as caught, server:
        pass
    assert caught.value.hint is not None
    assert "docker run" in caught.value.hint


def test_docker_that_does_not_work_is_an_error_with_its_words(docker: Path, tmp_path: Path) -> None:
    (docker / "broken").touch()
    with pytest.raises(ServerError, match="Cannot connect to the Docker daemon"), open_server("docker", tmp_path):
        pass
    assert (docker / "calls").read_text().splitlines() == ["version"]


def test_docker_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError, match="Docker is not installed"), open_server("docker", tmp_path):
        pass


@contextlib.contextmanager
def a_server(ready: set[str]) -> Iterator[str]:
    """The URL of a server on which these paths below /v2 are ready."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path.removeprefix("/v2/") in ready else 400)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_running_server_is_only_asked(tmp_path: Path) -> None:
    with a_server({"health/ready", "models/intents/ready"}) as url, open_server(url, tmp_path, ["intents"]) as server:
        assert server.urls.http == url
        assert server.urls.grpc is None
        assert server.running


@pytest.mark.parametrize(
    ("ready", "words"), [(set(), "is not ready"), ({"health/ready"}, "has no model 'intents' that is ready")]
)
def test_a_running_server_that_is_not_ready_is_named(tmp_path: Path, ready: set[str], words: str) -> None:
    with a_server(ready) as url, pytest.raises(ServerError, match=words), open_server(url, tmp_path, ["intents"]):
        pass


def test_row_50_a_running_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    url = f"grpc://127.0.0.1:{free_ports()[0]}"
    with pytest.raises(ServerError, match="no server listens"), open_server(url, tmp_path):
        pass


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no engine 'podman'"):
        open_server("podman", tmp_path)


def test_row_50_a_taken_port_is_named_before_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = EmbeddedServer(tmp_path, ["intents"], grpc_port=port, installation=Installation(tmp_path))
        with pytest.raises(ServerError, match=f"port {port} on 127.0.0.1"):
            server.start()
    server.stop()


def test_a_repository_that_is_no_folder_is_named(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "absent", installation=Installation(tmp_path))
    with pytest.raises(ServerError, match="absent is not a folder"):
        server.start()


def test_a_repository_without_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").touch()
    server = EmbeddedServer(tmp_path, installation=Installation(tmp_path))
    with pytest.raises(ServerError, match="holds no model"):
        server.start()
