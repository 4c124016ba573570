"""`deploykit monitor`."""

from __future__ import annotations

__all__ = ["command"]

import re
import sys
from pathlib import Path

import click

from deploykit.cli.options import as_json
from deploykit.errors import UsageError

_UNITS_S = {"min": 60, "h": 3600, "d": 86400}


def _seconds(text: str) -> int:
    """A length of time, written 15min, 6h or 1d."""
    found = re.fullmatch(r"\s*(\d{1,6})\s*(min|h|d)\s*", text)
    if found is None:
        raise UsageError(f"{text!r} is no length of time", "write 15min, 6h or 1d")
    return int(found[1]) * _UNITS_S[found[2]]


@click.command("monitor")
@click.argument("model")
@click.option(
    "--data", required=True, help="The stream: a file, `-` for JSON lines on standard input, or sample:stream/surge."
)
@click.option("--text", default="text", show_default=True, help="The column that holds the message.")
@click.option("--time", default="time", show_default=True, help="The column that holds the time at which it came.")
@click.option("--topics", metavar="MODEL", help="A model that tells the topics apart; without it there is one topic.")
@click.option("--negative", default="negative", show_default=True, help="The label of the sentiment that is watched.")
@click.option(
    "--window", type=_seconds, metavar="TIME", default="1d", show_default=True,
    help="What is counted together: 1h, 6h, 1d.",
)  # fmt: skip
@click.option("--zone", default="UTC", show_default=True, help="Whose clock windows go by, for times that have a zone.")
@click.option(
    "--false-alarm-days", type=click.FloatRange(min=0, min_open=True), default=365.0, show_default=True,
    help="Days between two false alarms, in the mean and at least.",
)  # fmt: skip
@click.option(
    "--reference-days", type=click.IntRange(14), default=28, show_default=True,
    help="Days that are learnt from before anything is judged.",
)  # fmt: skip
@click.option(
    "--state", type=click.Path(path_type=Path), help="Go on from this file and remember in it: the stream goes on."
)
@click.option("--page", type=click.Path(path_type=Path), help="Write the series and the alerts to this HTML file.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="The tokenizer's folder of a bare .onnx file.")
@click.option(
    "--threads", type=click.IntRange(0), default=0, show_default=True, help="Threads in process; 0: all cores."
)
@as_json
def command(
    model: str,
    data: str,
    text: str,
    time: str,
    topics: str | None,
    negative: str,
    window: int,
    zone: str,
    false_alarm_days: float,
    reference_days: int,
    state: Path | None,
    page: Path | None,
    tokenizer: Path | None,
    threads: int,
    as_json: bool,
) -> int:
    """Count the sentiment of a stream of messages by window and topic, and tell when negatives surge.

    MODEL is a classifier of sentiment: a checkpoint folder, an ONNX folder or file, or grpc://HOST:PORT/MODEL. What is
    usual is learnt from the stream itself, by the window of the week; an alert comes when a sequential test is sure
    enough, and says since when, how strong, and about what. Exit status: 0 no surge; 6 a surge is open, or was found in
    the new windows; 5 what is usual is not known yet.
    """
    from deploykit.cli.json_output import print_json
    from deploykit.cli.render import Screen
    from deploykit.errors import ExitCode
    from deploykit.monitor import SurgeRule
    from deploykit.pipeline.monitoring import monitor_stream
    from deploykit.report.monitor_page import write_monitor_page
    from deploykit.report.monitor_report import monitor_json, monitor_lines

    rule = SurgeRule(negative, window, false_alarm_days, reference_days)
    with Screen() as screen:
        found = monitor_stream(
            model, data=data, text=text, time=time, zone=zone, topics=topics, rule=rule, state=state,
            tokenizer=tokenizer, threads=threads, stdin=sys.stdin.buffer, listener=screen,
        )  # fmt: skip
    if page is not None:
        write_monitor_page(found, model, page)
    codes = {"pass": ExitCode.PASS, "fail": ExitCode.GOAL_MISSED, "inconclusive": ExitCode.INCONCLUSIVE}
    code = codes[found.judgement.verdict]
    if as_json:
        print_json(monitor_json(found) | {"exit_code": int(code)})
        return int(code)
    for line in monitor_lines(found):
        click.echo(line)
    click.secho(f"verdict: {'surge' if code is ExitCode.GOAL_MISSED else found.judgement.verdict}", bold=True)
    return int(code)
