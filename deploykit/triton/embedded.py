"""A real Triton server without Docker: started on loopback for as long as a context lasts, and surely stopped."""

from __future__ import annotations

__all__ = [
    "TRITON_VERSION",
    "EmbeddedServer",
    "Installation",
    "ServerUrls",
    "default_cache",
    "ensure_installed",
    "unsupported_reason",
]

import http.client
import json
import math
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from deploykit.errors import MissingDependencyError, ServerError
from deploykit.triton.installation import (
    TRITON_VERSION,
    Installation,
    default_cache,
    ensure_installed,
    libpython_folder,
    unsupported_reason,
)
from deploykit.triton.warden import remove_regions

_LOOPBACK = "127.0.0.1"
_ATTEMPTS = 3
_GRACE_S = 10.0


@dataclass(frozen=True)
class ServerUrls:
    """Where a server listens; None where that protocol's address is not known.

    Attributes:
        http: `http://host:port`.
        grpc: `grpc://host:port`.
        metrics: `http://host:port/metrics`.
    """

    http: str | None = None
    grpc: str | None = None
    metrics: str | None = None

    @classmethod
    def of_this_machine(cls, http: int, grpc: int, metrics: int) -> Self:
        """Those of a server on the loopback address that listens on these ports."""
        host = _LOOPBACK
        return cls(f"http://{host}:{http}", f"grpc://{host}:{grpc}", f"http://{host}:{metrics}/metrics")


@dataclass(frozen=True)
class _Traces:
    """What a start leaves outside the server's process, to be removed when it stops."""

    scratch: Path
    log: Path
    shm_prefix: str

    def remove(self, *, keep_log: bool) -> None:
        remove_regions(self.shm_prefix)
        shutil.rmtree(self.scratch, ignore_errors=True)
        if not keep_log:
            self.log.unlink(missing_ok=True)


class EmbeddedServer:
    """A Triton server on loopback that serves a model repository while the context lasts.

    The repository is only read. A warden process owns the server: it ends it when this process ends in any way, and
    removes its shared memory; Ctrl-C in the terminal reaches neither.

    Args:
        repository: the model repository.
        models: the models to load; None for all.
        http_port, grpc_port, metrics_port: 0 for a free one.
        log: the file that the server writes to, anew at every start; None to drop its words when it stops.
        installation: the unpacked server; fetched when None.
        start_timeout_s: how long the models may take to load.
    """

    def __init__(
        self,
        repository: Path,
        models: Sequence[str] | None = None,
        *,
        log: Path | None = None,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        installation: Installation | None = None,
        start_timeout_s: float = 120.0,
    ) -> None:
        self._repository = repository.absolute()
        self._models = None if models is None else tuple(models)
        self._asked_ports = (http_port, grpc_port, metrics_port)
        self._kept_log = None if log is None else log.absolute()
        self._installation = installation
        self._start_timeout_s = start_timeout_s
        self._warden: subprocess.Popen[bytes] | None = None
        self._traces: _Traces | None = None
        self._ports = self._asked_ports

    @property
    def urls(self) -> ServerUrls:
        """Where it listens."""
        return ServerUrls.of_this_machine(*self._ports)

    @property
    def running(self) -> bool:
        """Whether the server process still lives."""
        return self._warden is not None and self._warden.poll() is None

    def raise_if_ended(self) -> None:
        """Raises ServerError, in the server's own words, where the started server has ended by itself.

        It ends too when a stub, the process of a Python model, dies: Triton would go on to call itself ready.
        """
        if self._traces is not None and not self.running:
            raise self._why_it_ended(self._traces)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the server and returns when every model is ready.

        Raises:
            ServerError: a port is taken, a model fails to load (in the server's own words), or the time is up.
        """
        if self.running:
            raise ServerError("this server is already started")
        if not self._repository.is_dir():
            raise ServerError(f"{self._repository} is not a folder", hint="name a Triton model repository")
        if self._models is None and not any(path.is_dir() for path in self._repository.iterdir()):
            raise ServerError(
                f"{self._repository} holds no model", hint="write one: deploykit package MODEL -o REPOSITORY"
            )
        if self._installation is None:
            self._installation = ensure_installed()
        for attempt in range(1, _ATTEMPTS + 1):
            self._ports = _free_ports(*self._asked_ports)
            try:
                self._traces = self._leave_traces()
                self._launch(self._installation, self._traces)
                self._await_ready(self._traces)
                return
            except _PassingError as error:
                self.stop()
                if attempt == _ATTEMPTS:
                    raise ServerError(error.message, hint=error.hint) from error
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Stops the server, by SIGKILL where SIGTERM is not enough; nothing of it stays. May be called twice."""
        warden, self._warden = self._warden, None
        if warden is not None:
            if warden.poll() is None:
                warden.terminate()
            try:
                warden.wait(_GRACE_S + 10.0)
            except subprocess.TimeoutExpired:
                warden.kill()  # the server's death signal follows
                warden.wait()
        traces, self._traces = self._traces, None
        if traces is not None:
            traces.remove(keep_log=self._kept_log is not None)

    def _leave_traces(self) -> _Traces:
        scratch = Path(tempfile.mkdtemp(prefix="deploykit-triton-"))
        log = self._kept_log or scratch.with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        return _Traces(scratch, log, f"deploykit_{secrets.token_hex(8)}_")

    def _launch(self, installation: Installation, traces: _Traces) -> None:
        _lay_out(traces.scratch, installation, self._repository)
        spec = {
            "parent": os.getpid(),
            "command": self._command(installation, traces),
            "scratch": str(traces.scratch),
            "log": str(traces.log),
            "keep_log": self._kept_log is not None,
            "shm_prefix": traces.shm_prefix,
            "grace_s": _GRACE_S,
            "prepend": {
                "PATH": [str(traces.scratch / "bin")],
                "LD_LIBRARY_PATH": [str(installation.libraries), str(libpython_folder())],
            },
            "environment": _SERVER_ENVIRONMENT,
        }
        warden = Path(__file__).with_name("warden.py")
        with traces.log.open("ab") as log:
            self._warden = subprocess.Popen(
                [sys.executable, "-I", "-S", str(warden), json.dumps(spec)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _command(self, installation: Installation, traces: _Traces) -> list[str]:
        http_port, grpc_port, metrics_port = self._ports
        return [
            str(installation.binary),
            f"--model-repository={traces.scratch / 'repository'}",
            f"--backend-directory={traces.scratch / 'backends'}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in (self._models if self._models is not None else ("*",))),
            "--disable-auto-complete-config",
            f"--backend-config=python,shm-region-prefix-name={traces.shm_prefix}",
            f"--backend-config=python,stub-timeout-seconds={math.ceil(self._start_timeout_s)}",
            f"--http-address={_LOOPBACK}",
            f"--http-port={http_port}",
            f"--grpc-address={_LOOPBACK}",
            f"--grpc-port={grpc_port}",
            f"--metrics-address={_LOOPBACK}",
            f"--metrics-port={metrics_port}",
            "--allow-gpu-metrics=false",
            "--exit-timeout-secs=3",
        ]

    def _await_ready(self, traces: _Traces) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while time.monotonic() < deadline:
            if not self.running:
                raise self._why_it_ended(traces)
            if self._answers_ready(traces):
                return
            time.sleep(0.02)
        raise ServerError(f"the Triton server was not ready after {self._start_timeout_s:.0f} s", hint=self._hint())

    def _answers_ready(self, traces: _Traces) -> bool:
        # Only after the server said that it listens: before, another process might answer on that port.
        if b"Started Metrics Service at" not in traces.log.read_bytes():  # the last of the three
            return False
        http_port, _, metrics_port = self._ports
        return _answers(http_port, "/v2/health/ready") and _answers(metrics_port, "/metrics")

    def _why_it_ended(self, traces: _Traces) -> ServerError:
        text = traces.log.read_text(encoding="utf-8", errors="replace")
        text = text.replace(str(traces.scratch / "repository"), str(self._repository))
        said = [_first_line(line) for line in _ERRORS.findall(text) if not any(known in line for known in _NOISE)]
        said = said or [_first_line(text.strip().rpartition("\n")[2])]
        message = f"the Triton server ended: {'; '.join(dict.fromkeys(said))}"
        if "already in use" in message:
            # Someone took a free port between our look and the server's bind; a port that was named stays taken.
            kind = _PassingError if 0 in self._asked_ports else ServerError
            return kind(message, hint="choose another port, or 0 for a free one")
        # A race between stubs that start at the same time, seen on an overloaded machine; Triton's issue 8882 is alike.
        return (_PassingError if "lock_exception" in text else ServerError)(message, hint=self._hint())

    def _hint(self) -> str:
        return (
            f"the server's log has more: {self._kept_log}" if self._kept_log else "name a log file to see all it said"
        )


class _PassingError(ServerError):
    """The server could not start for a reason that another attempt may not meet."""


_ERRORS = re.compile(r"^(?:E\d{4} [^\]]*\]|\[libprotobuf ERROR [^\]]*\]|error:) (.*)$", re.MULTILINE)
# Said on every machine without a GPU, said twice, or said of the whole after its parts.
_NOISE = ("CudaDriverHelper", "Failed to create instance", "creating server", "created_time")
_SERVER_ENVIRONMENT = {
    # Thread pools of numpy and of the tokenizers would only get in the way of onnxruntime's.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(_LOOPBACK, port, timeout=1.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _first_line(message: str) -> str:
    """The first line of a message, whose line ends Triton may have escaped."""
    return message.partition("\\n")[0].strip().strip('"').strip()


def _free_ports(http_port: int, grpc_port: int, metrics_port: int) -> tuple[int, int, int]:
    """These ports, each 0 replaced by one that is free now; ServerError where one that was named is taken."""
    with _held(http_port) as http_holder, _held(grpc_port) as grpc_holder, _held(metrics_port) as metrics_holder:
        return http_holder.getsockname()[1], grpc_holder.getsockname()[1], metrics_holder.getsockname()[1]


def _held(port: int) -> socket.socket:
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # As the server does it: a port with connections in TIME_WAIT is not taken.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind((_LOOPBACK, port))
    except OSError as error:
        holder.close()
        raise ServerError(
            f"port {port} on {_LOOPBACK} can't be used: {error.strerror}",
            hint="choose another port, or 0 for a free one",
        ) from error
    return holder


def _lay_out(scratch: Path, installation: Installation, repository: Path) -> None:
    """Fills the server's working folder: a link to the repository, the backends, and a Python environment.

    A link, because the server starts its stubs through a shell with unquoted paths, and this folder has no blank in its
    name. The environment, because the stub's interpreter ignores PYTHONPATH and PYTHONDONTWRITEBYTECODE, but takes
    `python3` on the PATH and the `pyvenv.cfg` above it: without that it would write bytecode into the repository.
    """
    (scratch / "repository").symlink_to(repository, target_is_directory=True)
    ours = Path(__file__).parent / "backends" / "onnxruntime" / "model.py"
    for backend, files in (
        ("python", (*installation.python_backend.glob("*.*"), installation.stub)),
        ("onnxruntime", (ours,)),
    ):
        folder = scratch / "backends" / backend
        folder.mkdir(parents=True)
        for file in files:
            shutil.copy(file, folder / file.name)  # Triton refuses a backend file that is a link to elsewhere

    interpreter = Path(os.path.realpath(sys.executable))
    (scratch / "bin").mkdir()
    (scratch / "bin" / "python3").symlink_to(interpreter)
    (scratch / "pyvenv.cfg").write_text(
        f"home = {interpreter.parent}\ninclude-system-site-packages = false\n", encoding="utf-8"
    )
    packages = scratch / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "deploykit.pth").write_text(
        f"import sys; sys.dont_write_bytecode = True\n{installation.packages}\n{_onnxruntime_folder()}\n",
        encoding="utf-8",
    )


def _onnxruntime_folder() -> Path:
    spec = find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            "the embedded Triton runs models with onnxruntime", hint="pip install 'deploykit[cpu]'"
        )
    return Path(spec.origin).parent.parent
