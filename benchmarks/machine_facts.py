"""The head of every benchmark's output: the machine, the versions, and the command that reproduces it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from deploykit.machine import fingerprint, instruction_set


def facts() -> dict[str, Any]:
    """Machine, versions and command, JSON values."""
    # Where the files lay is of no use elsewhere: their names say which they were.
    arguments = [
        argument.rstrip("/").rpartition("/")[2] if argument.startswith("/") else argument for argument in sys.argv
    ]
    command = " ".join(["python", *map(shlex.quote, arguments)])
    return {"command": command, "instruction_set": instruction_set(), **fingerprint()}


def finish(name: str, figures: dict[str, Any], *, as_json: bool, save: bool) -> None:
    """Print the figures, a line each or as JSON, and keep them in `benchmarks/results/NAME.json` where asked."""
    found = {"benchmark": name, **facts(), "figures": figures}
    text = json.dumps(found, indent=1, ensure_ascii=False, default=float)
    if save:
        folder = Path(__file__).parent / "results"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    if as_json:
        print(text)
        return
    for key, value in facts().items():
        print(f"# {key}: {value}")
    for key, value in figures.items():
        print(f"{key}: {json.dumps(value, ensure_ascii=False, default=float)}")
