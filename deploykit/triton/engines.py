"""Which server answers: the embedded one, NVIDIA's image in Docker, or one that runs already."""

from __future__ import annotations

__all__ = ["DockerServer", "Server", "docker_command", "open_server"]

import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from deploykit.errors import ServerError, UsageError
from deploykit.events import Listener, Note, Warn, ignore
from deploykit.export.compatibility import security_warning
from deploykit.runners.triton_client import TritonClient
from deploykit.runners.triton_wire import parse_url
from deploykit.triton.embedded import EmbeddedServer, ServerUrls
from deploykit.triton.installation import ensure_installed
from deploykit.triton.layout import with_called_models

ENGINES = ("embedded", "docker")
"""The engines with a name; any other is the URL of a server."""

_RELEASE = re.compile(r"\d\d\.\d\d")
_IMAGE = "nvcr.io/nvidia/tritonserver"
_LOOPBACK = "127.0.0.1"


class Server(Protocol):
    """A server that answers."""

    @property
    def urls(self) -> ServerUrls:
        """Where it listens."""
        ...

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        ...

    def raise_if_ended(self) -> None:
        """Raises ServerError, with what is known of the cause, where it has ended by itself."""
        ...


def open_server(
    engine: str,
    repository: Path,
    models: Sequence[str] | None = None,
    *,
    release: str = "25.08",
    gpus: str | None = None,
    log: Path | None = None,
    http_port: int = 0,
    grpc_port: int = 0,
    metrics_port: int = 0,
    listener: Listener = ignore,
) -> AbstractContextManager[Server]:
    """A server for a model repository, as a context manager: entered, its models are ready; left, it is stopped.

    Args:
        engine: `embedded`, `docker`, or the URL of a server that runs already, which is only asked whether it is ready.
        repository: the model repository; a server that runs already has its own.
        models: the models that must be ready, those that they call are added; None for all of the repository.
        release: the Triton release of the Docker image.
        gpus: what `docker run --gpus` is given; None for none.
        log: where the server's output goes; None to drop it when it stops.
        http_port, grpc_port, metrics_port: 0 for a free one (embedded), or Triton's 8000, 8001 and 8002 (Docker).
        listener: told what is fetched or run.

    Raises:
        UsageError: there is no such engine or release.
        ServerError: on entering: it can't be started or is not ready.
    """
    if models is not None and "://" not in engine:
        models = with_called_models(repository, models)
    if engine == "embedded":
        return EmbeddedServer(
            repository,
            models,
            log=log,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            installation=ensure_installed(listener=listener),
        )
    if engine == "docker":
        warning = security_warning(release)
        if warning:
            listener(Warn(warning))
        ports = (http_port or 8000, grpc_port or 8001, metrics_port or 8002)
        return DockerServer(repository, models, release=release, gpus=gpus, log=log, ports=ports, listener=listener)
    if "://" not in engine:
        raise UsageError(f"there is no engine {engine!r}", hint=f"use {', '.join(ENGINES)}, or the URL of a server")
    return _RunningServer(engine, models)


def docker_command(
    repository: Path,
    release: str = "25.08",
    gpus: str | None = None,
    *,
    models: Sequence[str] | None = None,
    ports: tuple[int, int, int] = (8000, 8001, 8002),
    name: str = "deploykit-triton",
) -> list[str]:
    """The `docker run` that serves a repository with NVIDIA's image, on loopback only, the repository read-only.

    Args:
        repository: the model repository.
        release: the Triton release, as in `25.08`.
        gpus: what `--gpus` is given: `all`, or device numbers; None to run on the CPU.
        models: the models to load; None for all.
        ports: for HTTP, gRPC and metrics.
        name: the container's name.

    Raises:
        UsageError: the release is none, or the path has a colon, which `docker run --volume` can't take.
    """
    if not _RELEASE.fullmatch(release):
        raise UsageError(f"{release!r} is not a Triton release", hint="write year and month, as in 25.08")
    if ":" in str(repository.absolute()):
        raise UsageError(
            f"Docker can't mount {repository.absolute()}: its path has a colon", hint="move the repository"
        )
    published = [f"{_LOOPBACK}:{port}:{inside}" for port, inside in zip(ports, (8000, 8001, 8002), strict=True)]
    return [
        *("docker", "run", "--rm", "--name", name, "--shm-size=1g"),
        *([f"--gpus={gpus}"] if gpus else []),
        *(f"--publish={pair}" for pair in published),
        f"--volume={repository.absolute()}:/models:ro",
        f"{_IMAGE}:{release}-py3",
        *("tritonserver", "--model-repository=/models", "--model-control-mode=explicit"),
        *(f"--load-model={model}" for model in (models if models is not None else ("*",))),
    ]


class DockerServer:
    """NVIDIA's image, run by Docker while the context lasts.

    Args:
        repository, models, release, gpus, ports: see `docker_command`.
        log: where the container's output goes; None to drop it.
        listener: told the command that is run.
        start_timeout_s: how long the image may take to be fetched and the models to load.
    """

    def __init__(
        self,
        repository: Path,
        models: Sequence[str] | None = None,
        *,
        release: str,
        gpus: str | None,
        ports: tuple[int, int, int],
        log: Path | None = None,
        listener: Listener = ignore,
        start_timeout_s: float = 900.0,
    ) -> None:
        self._container = f"deploykit-triton-{secrets.token_hex(4)}"
        self._command = docker_command(repository, release, gpus, models=models, ports=ports, name=self._container)
        self._ports = ports
        self._log = log
        self._listener = listener
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def urls(self) -> ServerUrls:
        """Where it listens."""
        return ServerUrls.of_this_machine(*self._ports)

    @property
    def running(self) -> bool:
        """Whether the container still runs."""
        return self._process is not None and self._process.poll() is None

    def raise_if_ended(self) -> None:
        """Raises ServerError where the container has ended by itself."""
        if self._process is not None and not self.running:
            raise ServerError("the container ended", hint=self._hint())

    def __enter__(self) -> Self:
        _require_docker(self._command)
        self._listener(Note(" ".join(self._command)))
        output = self._log.open("wb") if self._log else None
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output or subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            if output:
                output.close()
        try:
            self._await_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stops the container; `--rm` removes it."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            subprocess.run(["docker", "stop", "--time=10", self._container], capture_output=True, check=False)
            process.terminate()
            process.wait()

    def _await_ready(self) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        with TritonClient(str(self.urls.http), timeout_s=2.0, retries=False) as client:
            while time.monotonic() < deadline:
                self.raise_if_ended()
                try:
                    if client.ready():
                        return
                except ServerError:
                    pass  # not yet
                time.sleep(0.2)
        raise ServerError(f"the container was not ready after {self._start_timeout_s:.0f} s", hint=self._hint())

    def _hint(self) -> str:
        return f"see its log: {self._log}" if self._log else f"run it by hand: {' '.join(self._command)}"


def _require_docker(command: Sequence[str]) -> None:
    by_hand = f"run this where Docker works: {' '.join(command)}"
    if shutil.which("docker") is None:
        raise ServerError("Docker is not installed", hint=by_hand)
    asked = subprocess.run(["docker", "version"], capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        last = (asked.stderr.strip() or "docker version failed").splitlines()[-1]
        raise ServerError(f"Docker does not work here: {last}", hint=by_hand)


class _RunningServer:
    """A server that someone else runs: it is asked whether it is ready, and left as it is."""

    def __init__(self, url: str, models: Sequence[str] | None) -> None:
        self._address, _ = parse_url(url)
        self._models = models or ()

    @property
    def urls(self) -> ServerUrls:
        """The one URL that is known."""
        url = str(self._address)
        return ServerUrls(grpc=url) if self._address.protocol == "grpc" else ServerUrls(http=url)

    @property
    def running(self) -> bool:
        """Whether it answers that it is ready."""
        try:
            self.raise_if_ended()
        except ServerError:
            return False
        return True

    def raise_if_ended(self) -> None:
        """Raises ServerError where it is not there, or it or a model of it is not ready."""
        with TritonClient(str(self._address)) as client:
            for model in (None, *self._models):
                if not client.ready(model):
                    what = "is not ready" if model is None else f"has no model {model!r} that is ready"
                    raise ServerError(f"the server at {self._address} {what}", hint="look at its log")

    def __enter__(self) -> Self:
        self.raise_if_ended()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to end."""
