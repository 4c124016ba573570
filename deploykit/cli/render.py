"""Shows events as progress bars on stderr and results as tables on stdout."""

from __future__ import annotations

__all__ = ["Screen", "print_parity", "result_table", "stdout", "timing_table", "verdict_table"]

import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from deploykit.events import Event, Note, StageFinished, StageStarted, Warn
from deploykit.events import Progress as Step

if TYPE_CHECKING:
    from deploykit.latency.measure import Samples
    from deploykit.parity.report import ParityReport
    from deploykit.parity.verdict import Verdict
    from deploykit.report.result import RunResult

_PLAIN_EVERY_S = 30.0
"""Seconds between two lines of progress where stderr is no terminal."""

_CHANGED = 5
"""Changed answers that are shown."""
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
    for finding in report.localized.findings if report.localized else ():
        console.print(f"  where: {finding.name}: {finding.cause}")
        console.print(f"  what to do: {finding.next_step}")
    for sample in report.changed[:_CHANGED]:
        console.print(f"  changed: {sample.text!r}: {sample.reference} -> {sample.candidate}")
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
