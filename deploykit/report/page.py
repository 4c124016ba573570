"""Tells people what came out of a run: one self-contained page, and the next step in words."""

from __future__ import annotations

__all__ = ["check_cells", "next_step", "template", "write_report"]

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deploykit import __version__
from deploykit.artifacts.atomic import disk_errors, write_atomic
from deploykit.report.bars import layer_bars
from deploykit.report.learning import CURVE_HEIGHT, CURVE_WIDTH, learning_curves
from deploykit.report.table import DASH, figure_rows, in_percent, in_points

if TYPE_CHECKING:
    from deploykit.parity.report import ParityReport
    from deploykit.parity.verdict import Verdict
    from deploykit.report.result import RunResult

_CLASSES = 20
_TEXT = 400
"""Characters of a message that the page shows: a message may be a megabyte long."""

_CHART = 560
"""Width of a chart, in units of its view box."""
_NAMES, _VALUES = 104, 96
"""What is left for the names before the bars, and for the figures behind them."""
_BAR = 34
_MARGIN = 24


@dataclass(frozen=True)
class _Headline:
    """The verdict on parity and goal together."""

    outcome: Literal["pass", "fail", "inconclusive", "missed"]
    title: str
    sentence: str


@dataclass(frozen=True)
class _Bar:
    """A bar of the latency chart; lengths and places in units of the view box, None where nothing was measured."""

    name: str
    value: str
    y: int
    width: float | None
    whisker: tuple[float, float] | None
    value_at: float
    ships: bool


@dataclass(frozen=True)
class _Mark:
    """A figure on an axis, and where its words stand."""

    words: str
    x: float

    @property
    def anchor(self) -> Literal["start", "middle", "end"]:
        """So that the words stay inside of the chart."""
        return "start" if self.x < _CHART / 5 else "end" if self.x > 4 * _CHART / 5 else "middle"


@dataclass(frozen=True)
class _Interval:
    """The drop with its bound against the margin."""

    zero: float
    drop: _Mark
    upper: _Mark
    limit: _Mark | None


def write_report(result: RunResult, parity: ParityReport, path: Path) -> Path:
    """Write the page that shows a run's evidence; it loads nothing from anywhere.

    Messages and labels of the test data are on it: it is as confidential as they are.

    Args:
        result: the figures.
        parity: the checks behind the verdict.
        path: the file to write or replace; missing folders above it are made.

    Returns:
        the path.

    Raises:
        ArtifactError: the file can't be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    # A lone surrogate in a message has no UTF-8: it is shown as a question mark.
    write_atomic(path, _page(result, parity).encode("utf-8", errors="replace"))
    return path


def next_step(result: RunResult, parity: ParityReport) -> str:
    """What to do next: the command to type, what the first check that did not pass asks for, or the limit missed."""
    if result.package is not None:
        return shlex.join(("deploykit", "serve", str(Path(result.package).parents[1])))
    if parity.verdict != "pass":
        check = next(check for check in parity.checks if check.outcome == parity.verdict)
        return f"{check.check}: {check.next_step or f'its details are in {result.report}'}"
    for outcome in ("fail", "inconclusive"):
        for goal in result.goal:
            if goal.outcome == outcome:
                detail = goal.note if outcome == "inconclusive" else f"reached {goal.reached_in_words}"
                return f"goal.{goal.limit} is {goal.wanted_in_words}: {detail}; the best so far is in {result.kept}"
    return f"run the recipe without --until to publish what is in {result.kept}"


def _page(result: RunResult, parity: ParityReport) -> str:
    margin = _margin(parity)
    page: str = template("page.html.j2").render(
        result=result,
        parity=parity,
        headline=_headline(result, parity),
        next_step=next_step(result, parity),
        rows=figure_rows(result),
        layers=layer_bars(parity),
        bars=_bars(result),
        curves=learning_curves(result.learned, result.metric),
        curve_width=CURVE_WIDTH,
        curve_height=CURVE_HEIGHT,
        bar_height=_BAR,
        names_width=_NAMES,
        chart_width=_CHART,
        interval=_interval(parity, margin),
        margin=margin,
        checks=[check_cells(check, parity.metrics) for check in parity.checks],
        classes=[change for change in parity.classes if change.flips][:_CLASSES],
        unchanged=sum(not change.flips for change in parity.classes),
        changed=[(sample, sample.text[:_TEXT], max(0, len(sample.text) - _TEXT)) for sample in parity.changed],
        slowest=max(1, round(result.messages / 100)),
        confidence=f"{100 * parity.confidence:g} %",
        percent=in_percent,
        points=in_points,
        dash=DASH,
        deploykit_version=__version__,
    )
    return page


def template(name: str) -> Any:
    """A page's template: whatever the data holds is text in it, and a name that is missing is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("deploykit.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _headline(result: RunResult, parity: ParityReport) -> _Headline:
    ending = f" Published as version {result.version}." if result.package is not None else " Nothing was published."
    if parity.verdict == "pass":
        return _goal_headline(result, parity, ending)
    names = [check.check for check in parity.checks if check.outcome == parity.verdict]
    share = f"{len(names)} of {len(parity.checks)} checks"
    if parity.verdict == "fail":
        return _Headline("fail", "Failed", f"{share} failed: {', '.join(names)}.{ending}")
    sentence = f"{share} could not be decided on {parity.n:,} messages: {', '.join(names)}.{ending}"
    return _Headline("inconclusive", "Inconclusive", sentence)


def _goal_headline(result: RunResult, parity: ParityReport, ending: str) -> _Headline:
    missed = [goal for goal in result.goal if goal.outcome == "fail"]
    if missed:
        limits = "; ".join(f"{goal.limit} {goal.reached_in_words} ({goal.wanted_in_words})" for goal in missed)
        return _Headline("missed", "Goal missed", f"Parity passed, the goal was not met: {limits}.{ending}")
    undecided = [goal for goal in result.goal if goal.outcome == "inconclusive"]
    if undecided:
        notes = "; ".join(f"{goal.limit}: {goal.note}" for goal in undecided)
        return _Headline("inconclusive", "Inconclusive", f"Parity passed, the goal is undecided: {notes}.{ending}")
    judged = f"All {len(parity.checks)} checks passed on {parity.n:,} messages."
    if parity.drop_upper is not None:
        drops = [(parity.metric, parity.drop_upper), *((each.metric, each.drop_upper) for each in parity.further)]
        fell = [f"the {name} fell by less than {in_points(max(upper, 0.0))} points" for name, upper in drops]
        judged = f"With {100 * parity.confidence:g} % confidence {' and '.join(fell)}. {judged}"
    return _Headline("pass", "Passed", judged + ending)


def _margin(parity: ParityReport) -> float | None:
    return next((check.limit for check in parity.checks if check.check == _drop_check(parity.metric)), None)


def _drop_check(metric: str) -> str:
    return f"{metric} drop"


def check_cells(check: Verdict, metrics: Sequence[str]) -> dict[str, Any]:
    """A check with its numbers in words."""
    if check.check in map(_drop_check, metrics):
        figure, bound, limit = (
            _united(in_points(value), " points") for value in (check.figure, check.bound, check.limit)
        )
        below = "below"
    else:
        figure, bound, limit = (_number(value, check.unit) for value in (check.figure, check.bound, check.limit))
        below = "at most"
    return {
        "name": check.check,
        "outcome": check.outcome,
        "figure": figure,
        "bound": bound,
        "limit": limit if check.limit is None else f"{below} {limit}",
        "n": check.n,
        "details": check.details,
        "next_step": check.next_step,
    }


def _number(value: float | None, unit: str) -> str:
    if unit == "fraction":
        return _united(in_percent(value), " %")
    if value is None:
        return DASH
    return f"{value:,.0f} {unit}" if unit == "items" else f"{value:.3g}"


def _united(number: str, unit: str) -> str:
    return number if number == DASH else number + unit


def _bars(result: RunResult) -> list[_Bar]:
    """p50 of the four forms, on one scale that leaves room for the figures behind the bars."""
    shipped = result.shipped
    forms: tuple[tuple[str, float | None, tuple[float, float] | None], ...] = (
        (result.reference.name, result.reference.p50_ms, result.reference.p50_range_ms),
        (result.onnx_fp32.name, result.onnx_fp32.p50_ms, result.onnx_fp32.p50_range_ms),
        ("What ships", shipped.p50_ms, shipped.p50_range_ms),
        ("Served", shipped.served_p50_ms, None),
    )
    longest = max((max(p50 or 0.0, *(spread or (0.0, 0.0))) for _, p50, spread in forms), default=0.0) or 1.0
    unit = (_CHART - _NAMES - _VALUES) / longest
    return [
        _Bar(
            name=name,
            value=DASH if p50 is None else f"{p50:.2f} ms",
            y=place * _BAR,
            width=None if p50 is None else p50 * unit,
            whisker=None if spread is None else (_NAMES + spread[0] * unit, _NAMES + spread[1] * unit),
            value_at=_NAMES + max(p50 or 0.0, *(spread or (0.0, 0.0))) * unit,
            ships=place >= 2,
        )
        for place, (name, p50, spread) in enumerate(forms)
    ]


def _interval(parity: ParityReport, margin: float | None) -> _Interval | None:
    """The drop, its bound, zero and the margin on one axis; None where there are no labels to judge by."""
    if parity.drop is None or parity.drop_upper is None:
        return None
    shown = [0.0, parity.drop, parity.drop_upper, *([] if margin is None else [margin])]
    low, high = min(shown), max(shown)
    room = 0.12 * ((high - low) or 0.01)
    unit = (_CHART - 2 * _MARGIN) / (high - low + 2 * room)

    def at(value: float) -> float:
        return _MARGIN + (value - low + room) * unit

    return _Interval(
        zero=at(0.0),
        drop=_Mark(f"drop {in_points(parity.drop)}", at(parity.drop)),
        upper=_Mark(f"{100 * parity.confidence:g} % upper bound {in_points(parity.drop_upper)}", at(parity.drop_upper)),
        limit=None if margin is None else _Mark(f"limit {in_points(margin)}", at(margin)),
    )
