"""Shows events as progress bars on stderr and results as tables on stdout."""

from __future__ import annotations

__all__ = [
    "Screen",
    "mended_lines",
    "mending_lines",
    "print_parity",
    "regression_table",
    "result_table",
    "stdout",
    "timing_table",
    "verdict_table",
]

import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from deploykit.events import Event, Note, StageFinished, StageStarted, Warn
from deploykit.events import Progress as Step

if TYPE_CHECKING:
    from deploykit.latency.measure import Samples
    from deploykit.latency.regression import Regression
    from deploykit.parity.localize import Localization
    from deploykit.parity.report import ParityReport
    from deploykit.parity.verdict import Verdict
    from deploykit.pipeline.mending import Mended
    from deploykit.report.result import RunResult

_PLAIN_EVERY_S = 30.0
"""Seconds between two lines of progress where stderr is no terminal."""

_CHANGED = 5
"""Changed answers that are shown."""
_SHOWN = 200
"""Characters of a message that are shown."""
_PIPE_WIDTH = 140
_LEAST_WIDTH = 78
_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


class Screen:
    """A listener that draws what it hears on stderr: bars on a terminal, now and then a line elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._bars: dict[str, TaskID] = {}
        self._said_at = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Draw one event."""
        match event:
            case Step():
                self._draw(event)
            case StageStarted(stage):
                self._console.print(f"{stage:<9} ...", style="dim")
            case StageFinished():
                self._drop(event.stage)
                took = "cached" if event.cached else f"{event.seconds:.1f} s"
                name = (f"{event.stage:<9}", "green")
                self._console.print(Text.assemble(name, f" {event.outcome} ", (f"({took})", "dim")))
            case Note(message):
                self._console.print(message, style="dim")
            case Warn(message):
                self._console.print(f"warning: {message}", style="yellow")

    def _draw(self, step: Step) -> None:
        figures = "  ".join(f"{name} {value:.4g}" for name, value in step.figures.items())
        if not self._console.is_terminal:
            if time.monotonic() - self._said_at > _PLAIN_EVERY_S:
                self._said_at = time.monotonic()
                self._console.print(f"{step.stage:<9} {step.unit} {step.done:,} of {step.total:,}  {figures}")
            return
        if step.stage not in self._bars:
            self._bars[step.stage] = self._progress.add_task(step.stage, total=step.total, figures="")
        self._progress.update(self._bars[step.stage], completed=step.done, total=step.total, figures=figures)

    def _drop(self, stage: str) -> None:
        if stage in self._bars:
            self._progress.remove_task(self._bars.pop(stage))


def stdout() -> Console:
    """The console for tables: no row is cut, a narrow terminal folds it; a pipe has room for every row."""
    console = Console(highlight=False, markup=False, emoji=False)
    width = max(console.width, _LEAST_WIDTH) if console.is_terminal else _PIPE_WIDTH
    return Console(highlight=False, markup=False, emoji=False, width=width)


def result_table(result: RunResult) -> Table:
    """The forms of the model, a row each."""
    from deploykit.report.table import figure_rows

    headings = (f"{result.metric}\n%", "drop\npoints", "at most\npoints", "p50\nms", "p99\nms", "size\nMB", "speed-up")
    table = _table(f"{result.name}: {result.statement}", "", *headings)
    notes = []
    for row in figure_rows(result):
        table.add_row(row.name, row.metric, row.drop, row.drop_upper, row.p50, row.p99, row.size, row.speedup)
        if row.note:
            notes.append(f"{row.name}: {row.note}")
    table.caption = "; ".join(notes)
    return table


def verdict_table(verdicts: Iterable[Verdict]) -> Table:
    """The checks of a parity report, a row each."""
    table = _table("checks", "", "outcome", "figure", "bound", "limit", "n")
    for verdict in verdicts:
        table.add_row(
            verdict.check,
            Text(verdict.outcome, style=_COLOURS[verdict.outcome]),
            *(_number(value, verdict.unit) for value in (verdict.figure, verdict.bound, verdict.limit)),
            f"{verdict.n:,}",
        )
    return table


def print_parity(report: ParityReport) -> None:
    """The outcome of a comparison: the verdict, what was proved, the checks, where they part, which answers changed."""
    console = stdout()
    console.print(
        Text(f"verdict: {report.statement} ({report.n:,} messages)", style=f"bold {_COLOURS[report.verdict]}")
    )
    for line in report.proved:
        console.print(f"  {line}", style="" if report.verdict == "pass" else "dim")
    console.print(verdict_table(report.checks))
    for check in report.checks:
        if check.outcome != "pass":
            for line in (*check.details, check.next_step):
                console.print(f"  {check.check}: {line}")
    if report.suspect is not None:
        console.print(f"  at fault: {report.suspect}", style="bold")
    for line in location_lines(report.localized):
        console.print(f"  {line}")
    for sample in report.changed[:_CHANGED]:
        console.print(f"  changed: {sample.text[:_SHOWN]!r}: {sample.reference} -> {sample.candidate}")
    if report.flips > _CHANGED:
        console.print(f"  and {report.flips - _CHANGED:,} more; --page FILE.html shows up to 50, worst first")


def timing_table(timed: Mapping[str, Samples]) -> Table:
    """The targets of a bench, a row each, against the first."""
    table = _table("", "", "p50\nms", "block medians\nms", "p99\nms", "speed-up")
    base = next(iter(timed.values())).p50_ms
    for name, samples in timed.items():
        low, high = samples.p50_range_ms
        figures = (f"{samples.p50_ms:.2f}", f"{low:.2f} to {high:.2f}", f"{samples.p99_ms:.2f}")
        table.add_row(name, *figures, f"{base / samples.p50_ms:.1f}x")
    return table


def location_lines(localized: Localization | None) -> list[str]:
    """Where a failure begins, why, and what to do; of int8, which parts cost most."""
    if localized is None:
        return []
    lines = []
    for finding in localized.findings:
        lines += [f"where: {finding.name}: {finding.cause}", f"what to do: {finding.next_step}"]
    weighed = sorted(localized.layers, key=lambda layer: -(layer.share or 0.0))[:3]
    if localized.precision == "int8" and weighed:
        costs = (f"{layer.name} {layer.share or 0:.0%} ({layer.own_sqnr_db:.0f} dB)" for layer in weighed)
        lines.append(f"of the output's error: {', '.join(costs)}")
    if localized.breaking is not None:
        lines.append(localized.breaking.line())
    return lines


def mending_lines(mended: Mapping[str, Any]) -> list[str]:
    """What a repair tried, left in float and gave up in speed."""
    lines = [f"{mended['from']} loses too much: {mended['trials']} repairs tried"]
    if not mended["suffices"]:
        lines.append("none of them suffices; the most accurate form is kept")
    if mended["in_float"]:
        lines.append(f"left in float: {', '.join(mended['in_float'])}")
    if "p50_ms" in mended:
        times = mended["p50_ms"]
        lines.append(
            f"p50 {times['after']:.2f} ms, {times['before']:.2f} before, {times['float32']:.2f} in float32: "
            f"{mended['speedup_kept']:.0%} of the speed-up is kept"
        )
    return lines


def mended_lines(mended: Mended) -> list[str]:
    """What a repaired conversion is, and what it gave up in speed."""
    times = mended.p50_ms
    lines = [f"mended: {mended.out}: {mended.outcome}"]
    lines += [f"  {line}" for line in mending_lines(mended.info["mended"])] if mended.info.get("mended") else []
    lines.append(
        f"  p50 {times['mended']:.2f} ms in process, {times['candidate']:.2f} as it was, "
        f"{times['float32']:.2f} in float32"
    )
    return lines


def regression_table(regression: Regression) -> Table:
    """The metrics of a latency comparison, a row each."""
    table = _table("new against old", "", "old", "new", "slow-down", "at least", "at most", "limit", "verdict")
    for each in regression.metrics:
        ratio = each.ratio
        unit = "messages/s" if ratio.metric == "throughput" else "ms"
        table.add_row(
            f"{ratio.metric}, {unit}{'' if each.required else ' (may only fail)'}",
            *(f"{value:.3g}" for value in (ratio.old, ratio.new)),
            *(f"{value:.3f}" for value in (ratio.value, each.lower, each.upper, 1 + regression.rule.margin)),
            Text(each.outcome, style=_COLOURS[each.outcome]),
        )
    return table


def _table(title: str, name: str, *headings: str) -> Table:
    """A table whose first column may fold, and whose figures may not."""
    table = Table(title=title or None, box=SIMPLE_HEAD, pad_edge=False, caption_justify="left", title_justify="left")
    table.title_style, table.caption_style = "bold", "dim"
    table.add_column(name, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True, min_width=max(map(len, heading.split("\n"))))
    return table


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return {"fraction": f"{value:.2%}", "items": f"{value:.0f}"}.get(unit, f"{value:.3g}")
