"""What a recipe asks of the machine."""

from __future__ import annotations

import pytest

from deploykit.errors import RecipeError
from deploykit.recipe import Data, Machine, Package, Recipe, check_machine, this_machine


def recipe(package: Package) -> Recipe:
    return Recipe(task="text-classification", model="some/model", data=Data(train="train.csv"), package=package)


def test_row_46_gpu_on_a_machine_without_one_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"package\.device is gpu, but this machine has no NVIDIA GPU"):
        check_machine(recipe(Package(device="gpu")), Machine(cores=8, gpu=False))
    assert check_machine(recipe(Package(device="gpu")), Machine(cores=8, gpu=True)) == ()
    assert check_machine(recipe(Package(device="auto")), Machine(cores=8, gpu=False)) == ()


def test_row_47_more_threads_than_cores_are_warned_of() -> None:
    machine = Machine(cores=4, gpu=False)
    assert check_machine(recipe(Package(threads=4)), machine) == ()
    (warning,) = check_machine(recipe(Package(threads=5)), machine)
    assert "package.threads 5 is more than the 4 cores" in warning
    (warning,) = check_machine(recipe(Package(threads=3, instances=2)), machine)
    assert "package.threads 3 x package.instances 2 is more than the 4 cores" in warning


def test_this_machine_has_a_core() -> None:
    assert this_machine().cores >= 1
