"""Where a training's curves go beside the result: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

__all__ = ["Tracking", "mlflow_uri", "tracked"]

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploykit.errors import MissingDependencyError

_OFFLINE = ("WANDB_API_KEY", "WANDB_MODE")
"""What tells that Weights & Biases is set up, or how it is to run; without any of it, it writes to the folder."""


@dataclass(frozen=True)
class Tracking:
    """What hears of a training.

    Attributes:
        tools: `tensorboard`, `wandb`, `mlflow`.
        folder: that they write to, unless their own environment variables name another place.
        name: of the run.
    """

    tools: tuple[str, ...]
    folder: Path
    name: str


@contextlib.contextmanager
def tracked(tracking: Tracking | None) -> Iterator[list[str]]:
    """What the Trainer reports to in the block; environment variables that say where are those of before behind it.

    Raises:
        MissingDependencyError: a tool is not installed.
    """
    tools = () if tracking is None else tracking.tools
    for tool in tools:
        if importlib.util.find_spec(tool) is None:
            raise MissingDependencyError(f"track: {tool} is not installed", f"pip install {tool}")
    if tracking is None:
        yield []
        return
    folder = tracking.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {
        "TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard" / tracking.name),
        "WANDB_DIR": str(folder),
        "WANDB_PROJECT": "deploykit",
        "MLFLOW_TRACKING_URI": mlflow_uri(folder),
        "MLFLOW_EXPERIMENT_NAME": "deploykit",
    }
    if not any(name in os.environ for name in _OFFLINE):
        wanted["WANDB_MODE"] = "offline"
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield list(tools)
    finally:
        _end_runs(tools)
        for name in added:
            os.environ.pop(name, None)


def _end_runs(tools: tuple[str, ...]) -> None:
    """Close the runs: left open, they are written at the end of the process, and the next training joins them."""
    if "wandb" in tools:
        wandb = importlib.import_module("wandb")
        wandb.finish()
        wandb.teardown()  # its service writes the file out as it ends (0.31)
    if "mlflow" in tools:
        importlib.import_module("mlflow").end_run()


def mlflow_uri(folder: Path) -> str:
    """The database in which MLflow keeps its runs in a folder: of version 3.17 on it writes no plain files."""
    return f"sqlite:///{(folder.absolute() / 'mlflow.db').as_posix()}"
