"""Which training checkpoints are complete, so that a killed run goes on from the last one that is."""

from __future__ import annotations

__all__ = ["last_complete", "seal"]

import json
import shutil
from pathlib import Path

from deploykit.artifacts.atomic import write_atomic
from deploykit.events import Listener, Warn

_SEAL = "complete.json"


def seal(checkpoint: Path) -> None:
    """Note that the checkpoint folder is complete: the size of every file in it, written last and durably."""
    sizes = {
        path.relative_to(checkpoint).as_posix(): path.stat().st_size
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != _SEAL  # sealed once already, where a step is saved twice
    }
    write_atomic(checkpoint / _SEAL, json.dumps(sizes, indent=0).encode())


def last_complete(workspace: Path, listener: Listener) -> Path | None:
    """The newest complete checkpoint of a training folder; newer ones that are broken are removed with a warning.

    Left where they are, they would count as the newest when the Trainer makes room, and outlive complete ones.

    Args:
        workspace: the folder with the `checkpoint-STEP` folders.
        listener: hears of every checkpoint that is passed over.
    """
    found = [path for path in workspace.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for checkpoint in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        fault = _fault(checkpoint)
        if fault is None:
            return checkpoint
        listener(Warn(f"training checkpoint {checkpoint.name} is passed over: {fault}"))
        shutil.rmtree(checkpoint, ignore_errors=True)
    return None


def _fault(checkpoint: Path) -> str | None:
    try:
        sizes = json.loads((checkpoint / _SEAL).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "it was not written to its end"
    except (OSError, ValueError):
        sizes = None
    if not isinstance(sizes, dict):
        return f"its {_SEAL} is damaged"
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes and not {size}"
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "its trainer_state.json can't be read"
    return None
