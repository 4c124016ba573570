"""How a recipe's package is to be served on this machine."""

from __future__ import annotations

__all__ = ["package_settings"]

from typing import Any

from deploykit.recipe import Package
from deploykit.recipe.machine import this_machine


def package_settings(section: Package) -> Any:
    """The recipe's `package` section with `auto` resolved for this machine."""
    from deploykit.triton.package import PackageSettings

    device = section.device if section.device != "auto" else ("gpu" if this_machine().gpu else "cpu")
    return PackageSettings(
        max_batch_size=section.max_batch_size,
        instances=section.instances,
        device=device,
        threads=section.threads,
        queue_delay_us=section.queue_delay_us,
        preferred_batch_size=section.preferred_batch_size,
        layout=section.layout,
    )
