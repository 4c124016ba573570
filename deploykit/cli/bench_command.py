"""`deploykit bench`."""

from __future__ import annotations

__all__ = ["command"]

from pathlib import Path

import click

from deploykit.cli.options import as_json
from deploykit.errors import UsageError


@click.command("bench")
@click.argument("targets", nargs=-1, required=True)
@click.option("--data", required=True, help="Real messages to time: a file, hub:DATASET:SPLIT or sample:support/test.")
@click.option("--text", default="text", show_default=True, help="The column that holds the message.")
@click.option("--messages", type=click.IntRange(1), default=400, show_default=True, help="Messages timed per target.")
@click.option("--blocks", type=click.IntRange(1), default=5, show_default=True, help="Alternating blocks.")
@click.option("--warmup", type=click.IntRange(0), default=20, show_default=True, help="Messages before each block.")
@click.option(
    "--threads", type=click.IntRange(0), default=0, show_default=True, help="Threads in process; 0: all cores."
)
@click.option("--tokenizer", type=click.Path(path_type=Path), help="The tokenizer's folder of a bare .onnx file.")
@click.option("--task", default="text-classification", show_default=True, help="What the models do.")
@click.option("--save-baseline", type=click.Path(path_type=Path), help="Write the figures of one target to this file.")
@click.option("--version-name", default="", help="What the baseline calls this version: a tag, a commit.")
@as_json
def command(
    targets: tuple[str, ...],
    data: str,
    text: str,
    messages: int,
    blocks: int,
    warmup: int,
    threads: int,
    tokenizer: Path | None,
    task: str,
    save_baseline: Path | None,
    version_name: str,
    as_json: bool,
) -> int:
    """Time TARGETS on the same messages, one at a time, each in its own process, in alternating blocks.

    A target is a checkpoint folder, an ONNX folder or file, or grpc://HOST:PORT/MODEL (http:// too). The first one is
    what the others are compared with.
    """
    from deploykit.artifacts.atomic import write_atomic
    from deploykit.cli.json_output import print_json
    from deploykit.cli.render import Screen, stdout, timing_table
    from deploykit.pipeline.alone import bench_alone
    from deploykit.pipeline.latency import make_baseline

    if twice := next((name for name in targets if targets.count(name) > 1), None):
        raise UsageError(f"{twice} is named twice", "name every target once")
    if save_baseline is not None and len(targets) > 1:
        raise UsageError("--save-baseline is for one target", "bench each by itself")
    with Screen() as screen:
        timed = bench_alone(
            targets, data=data, text=text, messages=messages, blocks=blocks, warmup=warmup, threads=threads,
            tokenizer=tokenizer, task=task, listener=screen,
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
        print_json({"targets": rows})
        return 0
    stdout().print(timing_table(timed))
    first = timed[targets[0]]
    click.echo(f"{first.n} messages per target; {first.stolen:.0%} of the CPU time stolen by others meanwhile")
    return 0
