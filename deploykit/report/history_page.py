"""Latency over versions as one self-contained page."""

from __future__ import annotations

__all__ = ["history_page"]

from html import escape
from typing import TYPE_CHECKING

from deploykit.latency.ratios import Metric

if TYPE_CHECKING:
    from deploykit.latency.history import History

_WIDTH, _HEIGHT, _EDGE = 860, 300, 46
_LINES: tuple[tuple[Metric, str], ...] = (("p50", "#1f6fb4"), ("p99", "#b4511f"))
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 920px; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; } .change { font-weight: 600; }
"""


def history_page(history: History) -> str:
    """p50 and p99 with their 95 % intervals by version, changes marked; HTML that loads nothing."""
    versions = history.versions
    top = max(each.baseline.metrics[name].high for each in versions for name, _ in _LINES) * 1.05
    step = (_WIDTH - 2 * _EDGE) / max(1, len(versions) - 1)

    def x(number: int) -> float:
        return _EDGE + number * step

    def y(value: float) -> float:
        return _HEIGHT - _EDGE - value / top * (_HEIGHT - 2 * _EDGE)

    marks = [
        f'<line x1="{x(n):.1f}" x2="{x(n):.1f}" y1="{_EDGE}" y2="{_HEIGHT - _EDGE}"'
        ' stroke="#999" stroke-dasharray="4"/>'
        for n, each in enumerate(versions)
        if each.changed is not None
    ]
    for name, colour in _LINES:
        figures = [each.baseline.metrics[name] for each in versions]
        points = " ".join(f"{x(n):.1f},{y(figure.value):.1f}" for n, figure in enumerate(figures))
        marks.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for n, figure in enumerate(figures):
            marks.append(
                f'<line x1="{x(n):.1f}" x2="{x(n):.1f}" y1="{y(figure.low):.1f}" y2="{y(figure.high):.1f}"'
                f' stroke="{colour}"/><circle cx="{x(n):.1f}" cy="{y(figure.value):.1f}" r="3" fill="{colour}"/>'
            )
        marks.append(f'<text x="{_WIDTH - _EDGE + 6}" y="{y(figures[-1].value):.1f}" fill="{colour}">{name}</text>')
    for value in (0.0, top / 2, top):
        marks.append(f'<text x="4" y="{y(value):.1f}" font-size="12" fill="#555">{value:.3g} ms</text>')
    rows = "".join(
        f"<tr{' class=change' if each.changed is not None else ''}><td>{escape(each.label)}</td>"
        f"<td>{each.baseline.metrics['p50'].value:.3g}</td><td>{each.baseline.metrics['p99'].value:.3g}</td>"
        f"<td>{each.baseline.metrics['throughput'].value:.0f}</td>"
        f"<td>{f'{each.changed:.2f}x' if each.changed is not None else ''}</td></tr>"
        for each in versions
    )
    newest = versions[-1].baseline
    left_out = f" {history.elsewhere} made elsewhere or otherwise are left out." if history.elsewhere else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Latency of {escape(newest.name)}</title>'
        f"<style>{_STYLE}</style><h1>Latency of {escape(newest.name)}</h1>"
        f"<p>{len(versions)} versions on {escape(str(newest.machine.get('cpu', 'one machine')))}; bars are 95 %"
        f" intervals within a session, dashed lines changes of p50.{left_out}</p>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="p50 and p99 by version">{"".join(marks)}</svg>'
        "<table><tr><th>version</th><th>p50 ms</th><th>p99 ms</th><th>messages/s</th><th>change of p50</th></tr>"
        f"{rows}</table></html>\n"
    )
