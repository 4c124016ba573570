"""The figures of a run in words, a row for each form of the model: for the page, and as Markdown."""

from __future__ import annotations

__all__ = ["DASH", "FigureRow", "figure_rows", "in_percent", "in_points", "markdown_table"]

import dataclasses
import re
from dataclasses import dataclass

from deploykit.report.result import Figures, RunResult

DASH = "–"
"""Stands where nothing was measured."""

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&!$])")


@dataclass(frozen=True)
class FigureRow:
    """One form of the model; every cell is ready to show, a dash where nothing was measured.

    Attributes:
        name: of the form.
        note: how it was made or reached, or empty.
        metric: in percent.
        drop: of the metric against PyTorch, in points; `drop_upper` its one-sided upper bound.
        p50: milliseconds; `p50_range` the least and greatest median of a block, or empty.
        p99: milliseconds.
        size: megabytes.
        speedup: PyTorch's p50 over this one's.
        ships: whether it is what ships, in process or served.
    """

    name: str
    note: str
    metric: str
    drop: str
    drop_upper: str
    p50: str
    p50_range: str
    p99: str
    size: str
    speedup: str
    ships: bool


def figure_rows(result: RunResult) -> tuple[FigureRow, ...]:
    """PyTorch, ONNX in float32, what ships, and the same through the server.

    Where a server ran, the answers that the metric counts are the served ones, so both last rows show it.
    """
    reference, onnx, shipped = result.reference, result.onnx_fp32, result.shipped
    served = shipped.served_p50_ms is not None
    changed = None if reference.value is None or onnx.value is None else reference.value - onnx.value
    return (
        _row(reference, speedup=_ratio(reference.p50_ms, reference.p50_ms)),
        _row(onnx, drop=changed, speedup=_ratio(reference.p50_ms, onnx.p50_ms)),
        dataclasses.replace(
            _row(shipped, drop=shipped.drop, drop_upper=shipped.drop_upper, speedup=shipped.speedup),
            name="What ships",
            note=result.scheme,
            ships=True,
        ),
        FigureRow(
            name="Served",
            note="Triton, text over gRPC" if served else "no server ran",
            metric=in_percent(shipped.value) if served else DASH,
            drop=in_points(shipped.drop) if served else DASH,
            drop_upper=in_points(shipped.drop_upper) if served else DASH,
            p50=_fixed(shipped.served_p50_ms, 2),
            p50_range="",
            p99=_fixed(shipped.served_p99_ms, 2),
            size=_fixed(shipped.size_mb, 1) if served else DASH,
            speedup=_times(shipped.served_speedup),
            ships=True,
        ),
    )


def markdown_table(result: RunResult) -> str:
    """The figures and the verdict as GitHub Markdown, for a pull request or a model card. It ends with a newline."""
    heading = (f"{result.metric} %", "drop, points", "at most", "p50 ms (blocks)", "p99 ms", "size MB", "speed-up")
    lines = [
        f"**{_escaped(result.name)}**: {_escaped(result.statement)}, {result.n:,} test messages",
        "",
        "| | " + " | ".join(_escaped(name) for name in heading) + " |",
        "|:--|" + "--:|" * len(heading),
    ]
    for row in figure_rows(result):
        note = f" ({row.note})" if row.note else ""
        p50 = f"{row.p50} ({row.p50_range})" if row.p50_range else row.p50
        cells = (row.name + note, row.metric, row.drop, row.drop_upper, p50, row.p99, row.size, row.speedup)
        lines.append("| " + " | ".join(_escaped(cell) for cell in cells) + " |")
    lines.append("")
    for goal in result.goal:
        reached = f"{goal.wanted_in_words}; reached {goal.reached_in_words}"
        lines.append(f"- goal `{goal.limit}` {reached}: {goal.outcome}")
    if result.goal:
        lines.append("")
    lines.append(
        f"{result.messages:,} messages per form, one at a time, on {_escaped(result.machine)}; "
        f"{in_percent(result.stolen)} % of the CPU time stolen meanwhile."
    )
    return "\n".join(lines) + "\n"


def in_percent(fraction: float | None) -> str:
    """A fraction as a percentage without its sign: 0.9273 is "92.73"."""
    return DASH if fraction is None else f"{100 * fraction:.2f}"


def in_points(fraction: float | None) -> str:
    """A difference of fractions in points, with a true minus: -0.0016 is "−0.16"."""
    if fraction is None:
        return DASH
    points = f"{100 * fraction:.2f}"
    return "0.00" if points == "-0.00" else points.replace("-", "−")


def _row(
    figures: Figures, *, speedup: float | None, drop: float | None = None, drop_upper: float | None = None
) -> FigureRow:
    least_greatest = figures.p50_range_ms
    return FigureRow(
        name=figures.name,
        note="",
        metric=in_percent(figures.value),
        drop=in_points(drop),
        drop_upper=in_points(drop_upper),
        p50=_fixed(figures.p50_ms, 2),
        p50_range="" if least_greatest is None else f"{least_greatest[0]:.2f} to {least_greatest[1]:.2f}",
        p99=_fixed(figures.p99_ms, 2),
        size=_fixed(figures.size_mb, 1),
        speedup=_times(speedup),
        ships=False,
    )


def _fixed(value: float | None, digits: int) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def _times(value: float | None) -> str:
    return DASH if value is None else f"{value:.1f}x"


def _ratio(base: float | None, value: float | None) -> float | None:
    return base / value if base and value else None


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))
