"""Shows events as progress bars on stderr and results as tables on stdout."""

from __future__ import annotations

__all__ = ["Screen", "print_json", "result_table", "verdict_table"]

import json
import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from deploykit.events import Event, Note, StageFinished, StageStarted, Warn
from deploykit.events import Progress as Step

if TYPE_CHECKING:
    from deploykit.parity.verdict import Verdict
    from deploykit.report.result import Figures, RunResult

_PLAIN_EVERY_S = 30.0
"""Seconds between two lines of progress where stderr is no terminal."""


class Screen:
    """A listener that draws what it hears on stderr: bars on a terminal, now and then a line elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
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
                self._console.print(f"[dim]{stage:<9} ...[/dim]")
            case StageFinished():
                self._drop(event.stage)
                took = "cached" if event.cached else f"{event.seconds:.1f} s"
                self._console.print(f"[green]{event.stage:<9}[/green] {event.outcome} [dim]({took})[/dim]")
            case Note(message):
                self._console.print(message, style="dim", markup=False)
            case Warn(message):
                self._console.print(f"warning: {message}", style="yellow", markup=False)

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


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def stdout() -> Console:
    """The console for results: never narrower than its table, so that pipes get whole rows."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)


def result_table(result: RunResult) -> Table:
    """The forms of the model, a row each."""
    table = Table(title=f"{result.name}: {result.statement}", title_justify="left", title_style="bold")
    for heading in ("", "size", result.metric, "drop", "at most", "p50", "p99", "speed-up"):
        table.add_column(heading, justify="left" if not heading else "right")
    shipped = result.shipped
    table.add_row(*_cells(result.reference), "", "", *_times(result.reference), "1.0x")
    base = result.reference.p50_ms
    fp32_speed = _ratio(base, result.onnx_fp32.p50_ms)
    table.add_row(*_cells(result.onnx_fp32), "", "", *_times(result.onnx_fp32), fp32_speed)
    table.add_row(
        f"ONNX {result.scheme} (ships)", *_cells(shipped)[1:], _percent(shipped.drop), _percent(shipped.drop_upper),
        *_times(shipped), _times_faster(shipped.speedup),
    )  # fmt: skip
    if shipped.served_p50_ms is not None:
        table.add_row(
            "served by Triton (gRPC)", "", _percent(shipped.value), "", "",
            _ms(shipped.served_p50_ms), _ms(shipped.served_p99_ms), _times_faster(shipped.served_speedup),
        )  # fmt: skip
    return table


def verdict_table(verdicts: Iterable[Verdict]) -> Table:
    """The checks of a parity report, a row each, with what to do about those that did not pass."""
    table = Table(title="checks", title_justify="left", title_style="bold")
    for heading in ("check", "outcome", "figure", "bound", "limit", "n"):
        table.add_column(heading, justify="left" if heading in ("check", "outcome") else "right")
    colours = {"pass": "green", "fail": "red", "inconclusive": "yellow"}
    for verdict in verdicts:
        table.add_row(
            verdict.check,
            f"[{colours[verdict.outcome]}]{verdict.outcome}[/]",
            *(_number(value, verdict.unit) for value in (verdict.figure, verdict.bound, verdict.limit)),
            f"{verdict.n:,}",
        )
    return table


def _cells(figures: Figures) -> tuple[str, str, str]:
    size = "" if figures.size_mb is None else f"{figures.size_mb:.1f} MB"
    return figures.name, size, _percent(figures.value)


def _times(figures: Figures) -> tuple[str, str]:
    return _ms(figures.p50_ms), _ms(figures.p99_ms)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} ms"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _ratio(base: float | None, value: float | None) -> str:
    return "-" if not base or not value else f"{base / value:.1f}x"


def _times_faster(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}x"


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return {"fraction": f"{value:.2%}", "items": f"{value:.0f}"}.get(unit, f"{value:.3g}")
