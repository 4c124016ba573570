"""How far each module of two models agrees, as bars of a page."""

from __future__ import annotations

__all__ = ["LayerBar", "layer_bars"]

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploykit.parity.report import ParityReport

_BAR_DB = 160.0
"""A bar is full where a module's own output agrees to float32 rounding."""


@dataclass(frozen=True)
class LayerBar:
    """A module's agreement with the reference, as a bar: percent of the full width."""

    name: str
    own_db: str
    through_db: str
    own: float
    through: float
    found: bool


def layer_bars(parity: ParityReport) -> list[LayerBar]:
    """A bar for each module that was walked through; none where nothing was located."""
    if parity.localized is None:
        return []
    found = {finding.module for finding in parity.localized.findings}
    return [
        LayerBar(
            name=layer.name,
            own_db=f"{layer.own_sqnr_db:.0f}",
            through_db=f"{layer.sqnr_db:.0f}",
            own=_share(layer.own_sqnr_db),
            through=_share(layer.sqnr_db),
            found=layer.module in found,
        )
        for layer in parity.localized.layers
    ]


def _share(decibels: float) -> float:
    return 100 * min(1.0, max(0.0, decibels / _BAR_DB))
