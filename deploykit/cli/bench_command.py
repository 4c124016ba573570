"""`deploykit bench`."""

from __future__ import annotations

__all__ = ["command"]

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import click

from deploykit.cli.options import as_json
from deploykit.errors import UsageError

_MOST_CLIENTS = 1024
_MOST_TOKENS = 1 << 16


def _numbers(least: int, most: int) -> Callable[[click.Context, click.Parameter, str | None], tuple[int, ...]]:
    def read(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, ...]:
        if text is None:
            return ()
        try:
            found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
        except ValueError:
            found = (least - 1,)
        if min(found) < least or max(found) > most:
            example = ",".join(str(least * factor) for factor in (1, 2, 4, 8))
            raise click.BadParameter(f"{text!r} is no list of numbers from {least} to {most}, as in {example}")
        return found

    return read


@click.command("bench")
@click.argument("targets", nargs=-1)
@click.option("--data", help="Real messages to time: a file, hub:DATASET:SPLIT or sample:support/test.")
@click.option("--text", default="text", show_default=True, help="The column that holds the message.")
@click.option("--messages", type=click.IntRange(1), default=400, show_default=True, help="Messages timed per target.")
@click.option("--blocks", type=click.IntRange(1), default=5, show_default=True, help="Alternating blocks.")
@click.option("--warmup", type=click.IntRange(0), default=20, show_default=True, help="Messages before each block.")
@click.option(
    "--threads", type=click.IntRange(0), default=0, show_default=True, help="Threads in process; 0: all cores."
)
@click.option("--tokenizer", type=click.Path(path_type=Path), help="The tokenizer's folder of a bare .onnx file.")
@click.option("--task", default="text-classification", show_default=True, help="What the models do.")
@click.option(
    "--scenario", type=click.Choice(["single", "offline", "server"]), default="single", show_default=True,
    help="One message at a time; all at once; or at random moments, timed from when each was due.",
)  # fmt: skip
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="server: messages a second.")
@click.option(
    "--seconds", type=click.FloatRange(1), default=20, show_default=True, help="server: how long a run lasts at least."
)
@click.option(
    "--p99", type=click.FloatRange(0, min_open=True),
    help="server: the limit on p99 in ms; without --rate the highest rate that holds it is searched.",
)  # fmt: skip
@click.option(
    "--concurrency", callback=_numbers(1, _MOST_CLIENTS), metavar="N,N,...",
    help="So many clients at once, each number for --seconds: answers a second and latency against it.",
)  # fmt: skip
@click.option(
    "--lengths", callback=_numbers(3, _MOST_TOKENS), metavar="N,N,...",
    help="Messages of so many tokens, each length in turn, in place of their own.",
)  # fmt: skip
@click.option("--hourly-price", type=click.FloatRange(0, min_open=True), help="Of the machine: what messages cost.")
@click.option("--save-baseline", type=click.Path(path_type=Path), help="Write the figures of one target to this file.")
@click.option("--version-name", default="", help="What the baseline calls this version: a tag, a commit.")
@click.option(
    "--history", type=click.Path(path_type=Path),
    help="Time nothing: show the baselines in this folder, or file of JSON lines, over versions.",
)  # fmt: skip
@click.option(
    "--page", type=click.Path(path_type=Path),
    help="With --history, --concurrency or a search by --p99: write it as an HTML page to this file.",
)  # fmt: skip
@as_json
def command(
    targets: tuple[str, ...],
    data: str | None,
    text: str,
    messages: int,
    blocks: int,
    warmup: int,
    threads: int,
    tokenizer: Path | None,
    task: str,
    scenario: Literal["single", "offline", "server"],
    rate: float | None,
    seconds: float,
    p99: float | None,
    concurrency: tuple[int, ...],
    lengths: tuple[int, ...],
    hourly_price: float | None,
    save_baseline: Path | None,
    version_name: str,
    history: Path | None,
    page: Path | None,
    as_json: bool,
) -> int:
    """Time TARGETS on the same messages: one at a time, each in its own process, in alternating blocks.

    A target is a checkpoint folder, an ONNX folder or file, or grpc://HOST:PORT/MODEL (http:// too). The first one is
    what the others are compared with. With --scenario or --concurrency one target is put under load; there a tensor
    entry (grpc://HOST:PORT/NAME_onnx, with --tokenizer) is one too. Exit status there: 0 the limits hold, 4 they don't,
    5 inconclusive, 1 the client can't keep the rate.
    """
    from deploykit.artifacts.atomic import write_atomic
    from deploykit.cli.bench_output import show_history, show_load
    from deploykit.cli.json_output import print_json
    from deploykit.cli.render import Screen, stdout, timing_table
    from deploykit.machine import in_words, machine_state
    from deploykit.pipeline.alone import bench_alone
    from deploykit.pipeline.latency import load_alone, make_baseline
    from deploykit.report.load_page import load_page

    if history is not None:
        if targets:
            raise UsageError("--history times nothing", "name no target, or leave --history out")
        return show_history(history, page, as_json=as_json)
    if not targets or data is None:
        raise UsageError("there is nothing to time", "deploykit bench TARGET --data FILE")
    if twice := next((name for name in targets if targets.count(name) > 1), None):
        raise UsageError(f"{twice} is named twice", "name every target once")
    if concurrency and scenario != "single":
        raise UsageError(f"--concurrency is no part of --scenario {scenario}", "leave one of them out")
    if lengths and (concurrency or scenario != "single" or save_baseline is not None):
        raise UsageError("--lengths is for one message at a time and no baseline", "leave --lengths out")
    under_load: Literal["single", "offline", "server", "closed"] = "closed" if concurrency else scenario
    if under_load != "single":
        if len(targets) > 1 or save_baseline is not None:
            asked = "--concurrency" if concurrency else f"--scenario {scenario}"
            raise UsageError(f"{asked} is for one target and no baseline", "bench each by itself")
        with Screen() as screen:
            best, tried = load_alone(
                targets[0], data=data, text=text, scenario=under_load, rate_per_s=rate, seconds=seconds,
                p99_limit_ms=p99, messages=messages, threads=threads, tokenizer=tokenizer, task=task,
                concurrency=concurrency, listener=screen,
            )  # fmt: skip
        if page is not None:
            write_atomic(page, load_page(targets[0], tried, p99).encode())
        return show_load(best, tried, hourly_price, searched=scenario == "server" and rate is None, as_json=as_json)
    if save_baseline is not None and len(targets) > 1:
        raise UsageError("--save-baseline is for one target", "bench each by itself")
    state = machine_state()
    with Screen() as screen:
        timed = bench_alone(
            targets, data=data, text=text, messages=messages, blocks=blocks, warmup=warmup, threads=threads,
            tokenizer=tokenizer, task=task, lengths=lengths, listener=screen,
        )  # fmt: skip
    if save_baseline is not None:
        baseline = make_baseline(
            targets[0], timed[targets[0]], data=data, text=text, threads=threads, task=task, version=version_name
        )
        write_atomic(save_baseline, (baseline.model_dump_json(indent=1) + "\n").encode())
    base = timed[targets[0]].p50_ms
    rows = [
        {
            "target": name,
            "p50_ms": samples.p50_ms,
            "p50_range_ms": samples.p50_range_ms,
            "p99_ms": samples.p99_ms,
            "n": samples.n,
            "speedup": base / samples.p50_ms,
            "stolen": samples.stolen,
        }
        for name, samples in timed.items()
    ]
    if as_json:
        print_json({"targets": rows, "machine": state})
        return 0
    stdout().print(timing_table(timed))
    first = timed[targets[0]]
    click.echo(f"{first.n} messages per target; {first.stolen:.0%} of the CPU time stolen by others meanwhile")
    click.echo(f"the machine: {in_words(state)}")
    return 0
