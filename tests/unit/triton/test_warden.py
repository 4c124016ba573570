"""The warden with a stand-in for the server: whatever ends, nothing is left."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploykit.triton import warden

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the embedded server runs on Linux only")

# Writes the numbers of its own process and of a child, as the server and a Python stub, and then waits.
SERVER = """
import os, pathlib, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
pathlib.Path({region!r}).write_bytes(b"shared")
{ignore}
pathlib.Path({told!r}).write_text(f"{{os.getpid()}} {{child.pid}}")
time.sleep(300)
"""


class Wardens:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scratch = folder / "scratch"
        self.told = folder / "told"
        self.prefix = f"deploykit_test_{secrets.token_hex(6)}_"
        self.region = warden.SHARED_MEMORY / f"{self.prefix}1"

    def spec(self, parent: int, ignore: str = "") -> dict[str, Any]:
        self.scratch.mkdir()
        log = self.folder / "log"
        log.touch()
        code = SERVER.format(region=str(self.region), told=str(self.told), ignore=ignore)
        return {
            "parent": parent,
            "command": [sys.executable, "-c", code],
            "scratch": str(self.scratch),
            "log": str(log),
            "keep_log": False,
            "shm_prefix": self.prefix,
            "grace_s": 0.3,
            "prepend": {"PATH": [str(self.folder)]},
            "environment": {"HF_HUB_OFFLINE": "1"},
        }

    def command(self, spec: dict[str, Any]) -> list[str]:
        return [sys.executable, "-I", "-S", str(warden.__file__), json.dumps(spec)]

    def server_and_stub(self) -> list[psutil.Process]:
        await_true(lambda: self.told.exists() and len(self.told.read_text().split()) == 2)
        return [psutil.Process(int(number)) for number in self.told.read_text().split()]


@pytest.fixture
def wardens(tmp_path: Path) -> Iterator[Wardens]:
    made = Wardens(tmp_path)
    yield made
    made.region.unlink(missing_ok=True)


def await_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("ignore", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
def test_a_stop_ends_the_server_and_its_stubs_and_sweeps(wardens: Wardens, ignore: str) -> None:
    process = subprocess.Popen(wardens.command(wardens.spec(os.getpid(), ignore)))
    try:
        family = wardens.server_and_stub()
        process.terminate()
        process.wait(20)
        assert all(gone(each) for each in family)
        assert not wardens.region.exists()
        assert not wardens.scratch.exists()
    finally:
        process.kill()
        process.wait()


def test_the_server_ends_when_its_parent_is_killed(wardens: Wardens) -> None:
    spec = wardens.spec(0)
    code = (
        "import json, os, subprocess, sys; spec = json.loads(sys.argv[2]); spec['parent'] = os.getpid(); "
        "subprocess.Popen([sys.executable, '-I', '-S', sys.argv[1], json.dumps(spec)]).wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(warden.__file__), json.dumps(spec)])
    try:
        family = wardens.server_and_stub()
        parent.kill()
        parent.wait()
        await_true(lambda: all(gone(each) for each in family) and not (wardens.folder / "log").exists())
        assert not wardens.region.exists()
        assert not wardens.scratch.exists()
    finally:
        parent.kill()


def test_the_server_ends_when_the_warden_is_killed(wardens: Wardens) -> None:
    process = subprocess.Popen(wardens.command(wardens.spec(os.getpid())))
    family = wardens.server_and_stub()
    process.kill()
    process.wait()
    try:
        await_true(lambda: gone(family[0]))
    finally:
        family[1].kill()


def test_ctrl_c_does_not_reach_the_server(wardens: Wardens) -> None:
    process = subprocess.Popen(wardens.command(wardens.spec(os.getpid())), start_new_session=True)
    try:
        family = wardens.server_and_stub()
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.2)
        assert process.poll() is None
        assert not gone(family[0])
    finally:
        process.terminate()
        process.wait(20)


def test_an_early_end_of_the_server_is_passed_on(wardens: Wardens) -> None:
    spec = wardens.spec(os.getpid()) | {"command": [sys.executable, "-c", "raise SystemExit(3)"]}
    assert subprocess.run(wardens.command(spec), check=False, timeout=20).returncode == 3
    assert not wardens.scratch.exists()


def test_regions_of_others_stay() -> None:
    ours, theirs = (f"deploykit_test_{secrets.token_hex(6)}_" for _ in range(2))
    for prefix in (ours, theirs):
        (warden.SHARED_MEMORY / f"{prefix}1").write_bytes(b"shared")
    try:
        warden.remove_regions(ours)
        assert not (warden.SHARED_MEMORY / f"{ours}1").exists()
        assert (warden.SHARED_MEMORY / f"{theirs}1").exists()
    finally:
        warden.remove_regions(theirs)


def test_a_dead_child_is_seen_and_a_living_one_is_not() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert str(child.pid) not in warden._dead_stubs(os.getpid())
        child.kill()
        await_true(lambda: str(child.pid) in warden._dead_stubs(os.getpid()))
    finally:
        child.communicate()
    assert str(child.pid) not in warden._dead_stubs(os.getpid())


def test_threads_and_processes_that_end_meanwhile_disturb_nothing() -> None:
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            threading.Thread(target=int).start()

    busy = threading.Thread(target=come_and_go)
    busy.start()
    try:
        for _ in range(300):
            assert warden._dead_stubs(os.getpid()) == set()
    finally:
        stop.set()
        busy.join()
    assert warden._dead_stubs(2**22 + 1) == set()


def test_only_the_servers_own_empty_environment_folder_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warden, "ENVIRONMENTS", tmp_path)
    started = 1_000_000.0
    for name, made in {"own": 1.0, "before": -1.0, "after": 31.0, "used": 1.0}.items():
        folder = tmp_path / f"python_env_{name}"
        folder.mkdir()
        if name == "used":
            (folder / "0").mkdir()
        os.utime(folder, (started + made, started + made))
    other = tmp_path / "python_other"
    other.mkdir()
    os.utime(other, (started + 1, started + 1))
    warden.remove_environments(started)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"python_env_before", "python_env_after", "python_env_used", "python_other"}
