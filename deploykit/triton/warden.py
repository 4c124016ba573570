"""The process that owns a server: it ends it when its own parent is gone, and sweeps up after it.

It runs as a script (`python -I -S warden.py SPEC`), so it imports nothing but the standard library. A process of its
own, and not PR_SET_PDEATHSIG in the caller, because that signal follows the *thread* that started the child.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["ENVIRONMENTS", "SHARED_MEMORY", "main", "remove_environments", "remove_regions"]

SHARED_MEMORY = Path("/dev/shm")
ENVIRONMENTS = Path("/tmp")
"""Where Triton's Python backend makes a folder for packed environments, whatever TMPDIR says."""
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CHECK_S = 0.5
_LOADING_S = 30.0
_ANSWERED_ALL = b"All models are stopped, unloading models"
_AWAITED = {signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD}


def remove_regions(prefix: str) -> None:
    """Removes the shared-memory regions whose names begin with `prefix`: a killed stub leaves its own behind."""
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def remove_environments(started: float) -> None:
    """Removes the empty folder for packed environments of a server started then: a killed server leaves it behind.

    Its name says nothing of whose it is, its time does; our packages bring no such environment, so it stays empty.

    Args:
        started: seconds since the epoch.
    """
    for folder in ENVIRONMENTS.glob("python_env_*"):
        with contextlib.suppress(OSError):  # it is gone, or is not empty
            found = folder.lstat()
            if found.st_uid == os.getuid() and started <= found.st_mtime <= started + _LOADING_S:
                folder.rmdir()


def _become_server() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)  # a blocked SIGTERM would stay blocked in the server


def _start(spec: dict[str, Any]) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    for name, folders in spec["prepend"].items():
        environment[name] = os.pathsep.join([*folders, *filter(None, [environment.get(name)])])
    environment.update(spec["environment"])
    # The warden has one thread and outlives the server, so a preexec function and the death signal are safe here.
    return subprocess.Popen(
        spec["command"],
        cwd=spec["scratch"],
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_become_server,  # noqa: PLW1509
    )


def _stop(server: subprocess.Popen[bytes], log: Path, grace_s: float) -> None:
    """Ends the server once it has answered what it had accepted; unloading its models would take a second each."""
    try:
        if server.poll() is None:
            server.terminate()
            deadline = time.monotonic() + grace_s
            while server.poll() is None and _ANSWERED_ALL not in log.read_bytes() and time.monotonic() < deadline:
                time.sleep(0.01)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # with it its Python stubs
        server.wait()
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()  # the stubs, which came to this process when the server ended


def _dead_stubs(server: int) -> set[str]:
    """The server's children that have died and that it has not noticed: it would go on to call itself ready."""
    dead: set[str] = set()
    with contextlib.suppress(OSError):  # the server is gone
        for thread in os.listdir(f"/proc/{server}/task"):
            with contextlib.suppress(OSError):  # the thread, or its child, is gone
                for child in Path(f"/proc/{server}/task/{thread}/children").read_text().split():
                    if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                        dead.add(child)
    return dead


def main(argument: str) -> int:
    """Runs the server of this JSON spec until it ends, one of its stubs dies, SIGTERM comes or the parent is gone."""
    spec = json.loads(argument)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    started = time.time()
    server = _start(spec)
    try:
        dead: set[str] = set()
        while server.poll() is None and os.getppid() == spec["parent"]:
            received = signal.sigtimedwait(_AWAITED, _CHECK_S)
            if received is not None:
                if received.si_signo != signal.SIGCHLD:
                    break
                continue
            # Dead at two looks: one that the server ends itself is a zombie for a moment too.
            before, dead = dead, _dead_stubs(server.pid)
            if before & dead:
                sys.stderr.write(
                    f"error: the Python stub {', '.join(sorted(before & dead))} died; stopping the server\n"
                )
                break
    finally:
        _stop(server, Path(spec["log"]), spec["grace_s"])
        remove_regions(spec["shm_prefix"])
        remove_environments(started)
        shutil.rmtree(spec["scratch"], ignore_errors=True)
        if not spec["keep_log"] and os.getppid() != spec["parent"]:
            Path(spec["log"]).unlink(missing_ok=True)  # nobody is left to read it
    return server.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
