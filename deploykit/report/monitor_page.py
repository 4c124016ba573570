"""The page of a stream: the share of negatives by window, what is usual, the evidence, and the alerts."""

from __future__ import annotations

__all__ = ["write_monitor_page"]

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import __version__
from deploykit.artifacts.atomic import disk_errors, write_atomic
from deploykit.report.monitor_report import alert_words, monitor_lines
from deploykit.report.page import template

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.monitor import Alert, WindowPoint
    from deploykit.report.monitor_report import Monitored

_SHOWN = 400
"""Windows on the page, the newest."""
_WIDTH, _HEIGHT, _LEFT, _EDGE = 960, 260, 48, 18
_TITLES = {"pass": "No surge", "fail": "A surge of negatives", "inconclusive": "Still learning"}


@dataclass(frozen=True)
class _Chart:
    """A chart in units of its view box."""

    width: int
    height: int
    left: int
    band: str
    usual: str
    share: tuple[str, ...]
    evidence: str
    limit_y: float
    alerts: tuple[tuple[float, float, str], ...]
    marks: tuple[tuple[float, str], ...]
    days: tuple[tuple[float, str], ...]


def write_monitor_page(found: Monitored, title: str, path: Path) -> Path:
    """Write the page of a stream; it loads nothing from anywhere, and has no messages on it.

    Args:
        found: what the monitor found.
        title: of the page.
        path: the file to write or replace; missing folders above it are made.

    Raises:
        ArtifactError: the file can't be written.
    """
    points = found.judgement.points[-_SHOWN:]
    *lines, summary = monitor_lines(found)
    page = template("monitor_page.html.j2").render(
        title=title,
        outcome=found.judgement.verdict,
        heading=_TITLES[found.judgement.verdict],
        summary=summary,
        lines=lines[: len(lines) - len(found.judgement.alerts)],
        alerts=[(alert, alert_words(alert)) for alert in reversed(found.judgement.alerts)],
        chart=_chart(points, found.judgement.alerts, found.rule.limit) if points else None,
        windows=list(zip(reversed(points), reversed(found.windows[-_SHOWN:]), strict=True)),
        limit=found.rule.limit,
        negative=found.rule.negative,
        deploykit_version=__version__,
    )
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page.encode("utf-8", errors="replace"))
    return path


def _chart(points: Sequence[WindowPoint], alerts: Sequence[Alert], limit: float) -> _Chart:
    shares = [point.share or 0.0 for point in points]
    tops = [
        point.usual + point.half_width for point in points if point.usual is not None and point.half_width is not None
    ]
    top = max([*shares, *tops, 0.01]) * 1.1
    across = _WIDTH - _LEFT - _EDGE

    def x(number: float) -> float:
        return _LEFT + across * (number + 0.5) / len(points)

    def y(share: float) -> float:
        return _HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * min(max(share, 0.0), top) / top

    judged = [(number, point.usual, point.half_width or 0.0) for number, point in enumerate(points)
              if point.usual is not None]  # fmt: skip
    upper = [f"{x(number):.1f},{y(usual + half):.1f}" for number, usual, half in judged]
    lower = [f"{x(number):.1f},{y(usual - half):.1f}" for number, usual, half in reversed(judged)]
    runs: list[list[str]] = [[]]
    for number, point in enumerate(points):
        if point.share is None:
            runs.append([])  # a window without messages is a gap in the line
        else:
            runs[-1].append(f"{x(number):.1f},{y(point.share):.1f}")
    places = {point.start: number for number, point in enumerate(points)}
    marked = []
    for alert in alerts:
        if alert.began in places:
            begin = x(places[alert.began] - 0.5)
            marked.append((begin, across * alert.windows / len(points), alert_words(alert)))
    step = max(1, math.ceil(len(points) / 10))

    def evidence_y(value: float) -> float:
        """On a scale of logarithms, from 1 to ten times the limit."""
        return _HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * min(1.0, math.log(max(value, 1.0)) / math.log(10 * limit))

    return _Chart(
        _WIDTH,
        _HEIGHT,
        _LEFT,
        band=" ".join([*upper, *lower]),
        usual=" ".join(f"{x(number):.1f},{y(usual):.1f}" for number, usual, _ in judged),
        share=tuple(" ".join(run) for run in runs if run),
        evidence=" ".join(f"{x(number):.1f},{evidence_y(points[number].evidence):.1f}" for number, _, _ in judged),
        limit_y=evidence_y(limit),
        alerts=tuple(marked),
        marks=tuple((y(value), f"{value:.0%}") for value in (0.0, top / 2, top)),
        days=tuple((x(number), f"{points[number].start:%b %d}") for number in range(0, len(points), step)),
    )
