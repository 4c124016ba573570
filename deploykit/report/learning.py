"""How a model learned, as lines of a page: the loss in training, the metric on validation."""

from __future__ import annotations

__all__ = ["CURVE_HEIGHT", "CURVE_WIDTH", "Curve", "learning_curves"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploykit.report.result import Learned

CURVE_WIDTH, CURVE_HEIGHT = 420, 120
"""Of a chart, in units of its view box."""
_EDGE = 6


@dataclass(frozen=True)
class Curve:
    """A line: its points in units of the view box, and the figures at its ends, in words."""

    name: str
    points: str
    first: str
    last: str
    steps: int


def learning_curves(learned: Learned, metric: str) -> list[Curve]:
    """The lines of a training; none of what was measured fewer than twice."""
    curves = [
        _curve("loss in training", learned.loss, "{:.3f}"),
        _curve(f"{metric} on validation", learned.metric, "{:.2%}"),
    ]
    return [curve for curve in curves if curve is not None]


def _curve(name: str, values: Sequence[tuple[int, float]], form: str) -> Curve | None:
    if len(values) < 2:
        return None
    steps, heights = [step for step, _ in values], [value for _, value in values]
    low, high = min(heights), max(heights)
    across, upwards = (max(steps) - min(steps)) or 1, (high - low) or 1.0
    points = " ".join(
        f"{_EDGE + (CURVE_WIDTH - 2 * _EDGE) * (step - min(steps)) / across:.1f},"
        f"{_EDGE + (CURVE_HEIGHT - 2 * _EDGE) * (high - value) / upwards:.1f}"
        for step, value in values
    )
    return Curve(name, points, form.format(heights[0]), form.format(heights[-1]), max(steps))
