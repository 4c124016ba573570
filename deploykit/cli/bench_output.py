"""What `deploykit bench` shows besides the table of its targets: runs under load, and the history."""

from __future__ import annotations

__all__ = ["show_history", "show_load"]

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from deploykit.latency.scenarios import Tried


def show_history(path: Path, page: Path | None, *, as_json: bool) -> int:
    """The baselines of a folder or file over versions; the exit status."""
    from deploykit.artifacts.atomic import write_atomic
    from deploykit.cli.json_output import print_json
    from deploykit.latency.history import history_of, read_history, sparkline
    from deploykit.report.history_page import history_page

    found = history_of(read_history(path))
    if page is not None:
        write_atomic(page, history_page(found).encode())
    rows = [
        {
            "version": each.label,
            "created": each.baseline.created,
            "p50_ms": each.baseline.metrics["p50"].value,
            "p99_ms": each.baseline.metrics["p99"].value,
            "throughput_per_s": each.baseline.metrics["throughput"].value,
            "change": each.changed,
        }
        for each in found.versions
    ]
    if as_json:
        print_json({"versions": rows, "elsewhere": found.elsewhere})
        return 0
    for name in ("p50_ms", "p99_ms"):
        values = [value for row in rows if isinstance(value := row[name], float)]
        click.echo(f"{name[:3]} {sparkline(values)}  {min(values):.3g} to {max(values):.3g} ms")
    for row in rows:
        change = f"  p50 changed to {row['change']:.2f}x" if row["change"] is not None else ""
        click.echo(f"{row['version']}: p50 {row['p50_ms']:.3g} ms, p99 {row['p99_ms']:.3g} ms{change}")
    if found.elsewhere:
        click.echo(f"{found.elsewhere} made on another machine, with other settings or messages are left out")
    return 0


def show_load(
    best: float | None, tried: tuple[Tried, ...], hourly_price: float | None, *, searched: bool, as_json: bool
) -> int:
    """The runs under load; the exit status."""
    from deploykit.cli.json_output import print_json
    from deploykit.errors import ExitCode
    from deploykit.report.load_report import load_json, load_lines

    codes = {
        "pass": ExitCode.PASS,
        "inconclusive": ExitCode.INCONCLUSIVE,
        "fail": ExitCode.LATENCY_REGRESSED,
        "invalid": ExitCode.ERROR,
    }
    outcome = max((each.verdict.outcome for each in tried), key=list(codes).index)
    if searched:
        outcome = "pass" if best is not None else "fail"
    if as_json:
        print_json(load_json(best, tried, hourly_price) | {"verdict": outcome, "exit_code": int(codes[outcome])})
    else:
        for line in load_lines(best, tried, hourly_price):
            click.echo(line)
        click.secho(f"verdict: {outcome}", bold=True)
    return int(codes[outcome])
