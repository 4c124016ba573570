"""Runs under load as one self-contained page: latency and answers a second against the load."""

from __future__ import annotations

__all__ = ["Curve", "curve_page", "load_page", "picture"]

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from deploykit.latency.scenarios import Tried

_WIDTH, _HEIGHT, _EDGE = 860, 300, 56
_COLOURS = ("#1f6fb4", "#b4511f", "#3a8a3a", "#777777")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 920px; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
td:last-child, th:last-child { text-align: left; }
"""


@dataclass(frozen=True)
class Curve:
    """One line of a picture: its name, and its points from left to right."""

    name: str
    points: tuple[tuple[float, float], ...]


def load_page(target: str, tried: Sequence[Tried], p99_limit_ms: float | None) -> str:
    """The runs of one target; HTML that loads nothing. Latency against clients, or against the rate."""
    closed = all(each.result.clients for each in tried)
    places = [float(each.result.clients) if closed else each.rate_per_s for each in tried]
    answered = [
        (place, each.result.latencies_ms)
        for place, each in zip(places, tried, strict=True)
        if each.result.latencies_ms.size
    ]
    pictures = [
        picture(
            [
                Curve(f"p{100 * q:g}", tuple((place, float(np.quantile(values, q))) for place, values in answered))
                for q in (0.5, 0.99)
            ],
            across="clients" if closed else "messages a second",
            up="ms",
            limit=p99_limit_ms,
        )
    ]
    if closed:
        rates = tuple((place, each.result.answered_per_s) for place, each in zip(places, tried, strict=True))
        pictures.insert(0, picture([Curve("answers a second", rates)], across="clients", up="a second", limit=None))
    head = ("clients" if closed else "offered/s", "answered/s", "p50 ms", "p99 ms", "verdict", "of a mean request, ms")
    rows = []
    for place, each in zip(places, tried, strict=True):
        values = each.result.latencies_ms
        quantiles = [f"{np.quantile(values, q):.2f}" if len(values) else "-" for q in (0.5, 0.99)]
        split = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in each.result.split_ms.items())
        outcome = each.verdict.outcome
        rows.append((f"{place:.0f}", f"{each.result.answered_per_s:.0f}", *quantiles, outcome, split))
    return curve_page(f"{target} under load", "", pictures, head, rows)


def curve_page(
    title: str, words: str, pictures: Sequence[str], head: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    """A page of pictures and one table.

    Args:
        title: of the page, plain text.
        words: a paragraph, plain text.
        pictures: SVG.
        head: of the table, plain text.
        rows: likewise.
    """
    table = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1>{f'<p>{escape(words)}</p>' if words else ''}"
        f"{''.join(pictures)}<table><tr>{heads}</tr>{table}</table></html>\n"
    )


def picture(curves: Sequence[Curve], *, across: str, up: str, limit: float | None) -> str:
    """Curves over one axis from 0, the limit as a dashed line; points far above the limit are cut off."""
    points = [point for curve in curves for point in curve.points]
    if not points:
        return ""
    right = max(x for x, _ in points) * 1.05
    top = max(y for _, y in points) * 1.05
    if limit is not None:
        top = min(top, 4 * limit)

    def at(x: float, y: float) -> tuple[float, float]:
        left = _EDGE + x / right * (_WIDTH - 2 * _EDGE)
        return left, _HEIGHT - _EDGE - min(y, top) / top * (_HEIGHT - 2 * _EDGE)

    marks = []
    for curve, colour in zip(curves, _COLOURS, strict=False):
        places = [at(*point) for point in curve.points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        marks.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        marks += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        x, y = places[-1]
        marks.append(
            f'<text x="{x - 4:.1f}" y="{y - 8:.1f}" text-anchor="end" fill="{colour}">{escape(curve.name)}</text>'
        )
    if limit is not None:
        (x1, y), (x2, _) = at(0, limit), at(right, limit)
        marks.append(f'<line x1="{x1}" x2="{x2}" y1="{y:.1f}" y2="{y:.1f}" stroke="#999" stroke-dasharray="4"/>')
    for value in (0.0, top / 2, top):
        marks.append(
            f'<text x="4" y="{at(0, value)[1]:.1f}" font-size="12" fill="#555">{value:.3g} {escape(up)}</text>'
        )
    for value in sorted({x for x, _ in points}):
        marks.append(
            f'<text x="{at(value, 0)[0]:.1f}" y="{_HEIGHT - _EDGE + 18}" font-size="12" text-anchor="middle"'
            f' fill="#555">{value:.0f}</text>'
        )
    marks.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 12}" text-anchor="middle" fill="#555">{escape(across)}</text>')
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(across)}">{"".join(marks)}</svg>'
