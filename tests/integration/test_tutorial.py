"""Every command of the tutorial, typed in its order into one shell, on fewer messages and with less training."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit.triton.embedded import unsupported_reason

pytestmark = [
    pytest.mark.triton,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(unsupported_reason() is not None, reason=str(unsupported_reason())),
]

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
SHORTER = (
    " -s finetune.epochs=0.3 -s goal.max_drop=0.05 -s quantize.fusions=all -s latency.messages=60 -s latency.blocks=2"
)
"""What the tutorial's runs get besides: what so few messages and so little training can't show is not asked for."""
FEWER = "sed -i '1601,$d' data/train.csv && sed -i '301,$d' data/test.csv"
PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
"""What the tutorial has, by the option of `serve`; the test takes free ones."""


def tutorial_commands() -> list[str]:
    consoles = re.findall(r"^```console\n(.*?)^```", TUTORIAL.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [line.removeprefix("$ ") for body in consoles for line in body.splitlines() if line.startswith("$ ")]


def free_ports() -> dict[str, int]:
    holders = {name: socket.create_server(("127.0.0.1", 0)) for name in PORTS}
    ports = {name: holder.getsockname()[1] for name, holder in holders.items()}
    for holder in holders.values():
        holder.close()
    return ports


def as_typed(command: str, ports: dict[str, int]) -> list[str]:
    """The lines of the script for one command; a server in the background is waited for, as the tutorial asks."""
    for name, port in PORTS.items():
        command = command.replace(f"127.0.0.1:{port}", f"127.0.0.1:{ports[name]}")
    command = command.replace("--max-drop 0.01", "--max-drop 0.05")
    if command.startswith("deploykit run "):
        command += SHORTER
    if command == "cd support":
        return [command, FEWER]
    if not command.endswith(" &"):
        return [command]
    options = " ".join(f"--{name}-port {port}" for name, port in ports.items())
    reached = f"(exec 3<>/dev/tcp/127.0.0.1/{ports['http']}) 2> /dev/null"
    return [
        f"{command.removesuffix(' &')} {options} &",
        f"for _ in {{1..300}}; do {reached} && break; sleep 0.2; done",
    ]


def test_every_command_of_the_tutorial_runs(tmp_path: Path) -> None:
    commands = tutorial_commands()
    verbs = [command.split()[1] for command in commands if command.startswith("deploykit ")]
    assert verbs == ["init", "check", "run", "serve", "ask", "ask", "parity", "run"]
    ports = free_ports()
    lines = [line for command in commands for line in as_typed(command, ports)]
    script = "\n".join(["set -eu", "trap 'kill $(jobs -p) 2> /dev/null || true' EXIT", "set -v", *lines]) + "\n"
    file, log = tmp_path / "script.sh", tmp_path / "log.txt"
    file.write_text(script, encoding="utf-8")
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            ["bash", str(file)],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    said = log.read_text(encoding="utf-8", errors="replace")
    assert done.returncode == 0, said
    first, _, second = said.rpartition("deploykit run recipe.yaml")
    assert first.count("verdict: pass") == 2  # of the run, and of the proof by hand
    assert re.search(r'"name": ?"label"', first), "the answer over HTTP has a label"
    for stage in ("data", "finetune", "export", "quantize", "package", "parity"):
        assert re.search(rf"^{stage} .*\(cached\)$", second, re.MULTILINE), said
    assert "there already, unchanged" in second
    published = tmp_path / "support" / "model_repository"
    assert [path.name for path in (published / "support").iterdir() if path.name.isdigit()] == ["1"]
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", ports["http"]), 1.0).close()
