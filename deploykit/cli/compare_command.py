"""`deploykit compare`."""

from __future__ import annotations

__all__ = ["command"]

import re
from pathlib import Path

import click

from deploykit.cli.options import as_json
from deploykit.errors import UsageError

_METRICS = ("p50", "p95", "p99", "throughput")


def _share(text: str) -> float:
    """A fraction, written 0.05 or 5%."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(%?)\s*", text)
    number = float(found[1]) / (100 if found[2] else 1) if found else 0.0
    if not 0 < number <= 1:
        raise UsageError(f"{text!r} is no share above 0 and up to 1", "write 5% or 0.05")
    return number


@click.command("compare")
@click.argument("old")
@click.argument("new")
@click.option("--data", required=True, help="Real messages to time: a file, hub:DATASET:SPLIT or sample:support/test.")
@click.option("--text", default="text", show_default=True, help="The column that holds the message.")
@click.option(
    "--margin", type=_share, metavar="SHARE", default="5%", show_default=True,
    help="The slow-down that is too much: 5% or 0.05.",
)  # fmt: skip
@click.option(
    "--require", type=click.Choice(_METRICS), multiple=True, default=("p50",), show_default=True,
    help="A metric that must be shown to be within the margin; repeatable. The others can only fail.",
)  # fmt: skip
@click.option(
    "--budget", type=click.FloatRange(1), default=60, show_default=True, help="Seconds at most; clear cases end early."
)
@click.option("--rebase", metavar="OLD_ARTEFACT", help="With a baseline: time this, what it was made of, in its place.")
@click.option(
    "--threads", type=click.IntRange(0), default=0, show_default=True, help="Threads in process; 0: all cores."
)
@click.option("--tokenizer", type=click.Path(path_type=Path), help="The tokenizer's folder of a bare .onnx file.")
@click.option("--task", default="text-classification", show_default=True, help="What the models do.")
@click.option("--summary", type=click.Path(path_type=Path), help="Write a Markdown summary to this file.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML to this file.")
@as_json
def command(
    old: str,
    new: str,
    data: str,
    text: str,
    margin: float,
    require: tuple[str, ...],
    budget: float,
    rebase: str | None,
    threads: int,
    tokenizer: Path | None,
    task: str,
    summary: Path | None,
    junit: Path | None,
    as_json: bool,
) -> int:
    """Judge whether NEW is slower than OLD, on a noisy machine too.

    OLD is an artefact (a checkpoint folder, an ONNX folder or file, grpc://HOST:PORT/MODEL), timed in turn with NEW
    here and now; or a baseline's .json file, which only holds on the machine that it was made on. Exit status: 0 pass,
    4 slower, 5 inconclusive.
    """
    from deploykit.artifacts.atomic import write_atomic
    from deploykit.cli.json_output import print_json
    from deploykit.cli.render import Screen, regression_table, stdout
    from deploykit.errors import ExitCode
    from deploykit.latency.ratios import METRICS
    from deploykit.latency.regression import Rule
    from deploykit.pipeline.latency import compare_alone
    from deploykit.report.regression_report import (
        regression_json,
        regression_junit,
        regression_lines,
        regression_markdown,
    )

    rule = Rule(margin=margin, required=tuple(metric for metric in METRICS if metric in require))
    with Screen() as screen:
        found = compare_alone(
            old, new, data=data, text=text, rule=rule, budget_s=budget, rebase=rebase, threads=threads,
            tokenizer=tokenizer, task=task, listener=screen,
        )  # fmt: skip
    if summary is not None:
        write_atomic(summary, regression_markdown(old, new, found).encode())
    if junit is not None:
        write_atomic(junit, regression_junit(old, new, found).encode())
    outcome = found.regression.outcome
    exit_code = {"pass": ExitCode.PASS, "fail": ExitCode.LATENCY_REGRESSED, "inconclusive": ExitCode.INCONCLUSIVE}
    if as_json:
        print_json(regression_json(old, new, found) | {"exit_code": int(exit_code[outcome])})
        return int(exit_code[outcome])
    stdout().print(regression_table(found.regression))
    first, *rest = regression_lines(found)
    for line in rest:
        click.echo(line)
    click.secho(f"verdict: {first}", bold=True)
    return int(exit_code[outcome])
