"""Whether this machine can do what a recipe asks of it, before anything is loaded."""

from __future__ import annotations

__all__ = ["Machine", "check_machine", "this_machine"]

from dataclasses import dataclass

from deploykit.errors import RecipeError
from deploykit.recipe.schema import Recipe


@dataclass(frozen=True)
class Machine:
    """What a recipe can count on: the cores that this process may keep busy, and whether there is an NVIDIA GPU."""

    cores: int
    gpu: bool


def this_machine() -> Machine:
    """This machine, seen without importing torch."""
    from deploykit.machine import has_nvidia_gpu, usable_cores  # psutil, which reading a recipe does without

    return Machine(cores=usable_cores(), gpu=has_nvidia_gpu())


def check_machine(recipe: Recipe, machine: Machine | None = None) -> tuple[str, ...]:
    """Warnings about what the recipe asks of this machine.

    Raises:
        RecipeError: the recipe asks for a GPU and the machine has none.
    """
    machine = machine or this_machine()
    settings = recipe.package
    if settings.device == "gpu" and not machine.gpu:
        raise RecipeError(
            "package.device is gpu, but this machine has no NVIDIA GPU (or no driver for it)",
            "take -s package.device=cpu, or run where nvidia-smi lists a GPU; `deploykit doctor` says what is here",
        )
    asked = settings.threads * settings.instances
    if settings.device == "gpu" or asked <= machine.cores:
        return ()
    times = f" x package.instances {settings.instances}" if settings.instances > 1 else ""
    return (
        f"package.threads {settings.threads}{times} is more than the {machine.cores} cores of this machine:"
        " the threads will wait for each other",
    )
