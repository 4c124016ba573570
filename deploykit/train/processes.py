"""Which processes train together, and on what."""

from __future__ import annotations

__all__ = ["is_main_process", "on_cpu", "processes"]

from typing import Any


def processes() -> Any:
    """The processes that train together: accelerate's view, which counts those on CPUs only where it is told to."""
    from accelerate import PartialState

    return PartialState(cpu=on_cpu())


def is_main_process() -> bool:
    """Whether this process is the one that writes; under `torchrun` several train together."""
    return bool(processes().is_main_process)


def on_cpu() -> bool:
    """Whether there is nothing else to compute on."""
    import torch

    return not torch.accelerator.is_available()
