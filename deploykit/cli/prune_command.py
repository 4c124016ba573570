"""`deploykit prune`."""

from __future__ import annotations

__all__ = ["command"]

from pathlib import Path
from typing import Any

import click

from deploykit.cli.options import (
    as_json,
    column_options,
    section_from_options,
    section_options,
    seed_number,
    training_options,
)
from deploykit.recipe import Goal, Prune


@click.command("prune")
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@training_options
@click.option("--speedup", type=float, help="At least this many times PyTorch's speed, at p50, in int8.")
@click.option("--p50-ms", type=float, help="Highest p50 latency in int8, in milliseconds.")
@click.option("--p99-ms", type=float, help="Highest p99 latency in int8, in milliseconds.")
@click.option("--size-mb", type=float, help="Largest size of int8 model and tokenizer, in megabytes.")
@click.option("--unlabelled", help="More messages to learn from, without labels: a file or hub:DATASET:SPLIT.")
@click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="Of a session; 0: all cores.")
@click.option("--target", default="triton-25.08", show_default=True, help="The oldest Triton that must load it.")
@click.option("--task", default="text-classification", show_default=True, help="What the model does.")
@click.option("--seed", type=seed_number, default=0, show_default=True, help="Of every random choice.")
@click.option(
    "--study", help="Share short recoveries with other machines: sqlite:///FILE, a database's URL, or a file."
)
@click.option("--worker", is_flag=True, help="Train for the same command on another machine, which shares its study.")
@column_options
@click.option(
    "--teacher", "teachers", multiple=True, type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Another fine-tuning of the same model, from another seed, to learn from too.",
)  # fmt: skip
@section_options(Prune, without=["teachers"])
@as_json
def command(
    model: Path,
    train: str,
    validation: str | float,
    out: Path,
    speedup: float | None,
    p50_ms: float | None,
    p99_ms: float | None,
    size_mb: float | None,
    unlabelled: str | None,
    threads: int,
    target: str,
    task: str,
    seed: int,
    study: str | None,
    worker: bool,
    teachers: tuple[Path, ...],
    text: str,
    label: str | tuple[str, ...],
    as_json: bool,
    **values: Any,
) -> int:
    """Prune MODEL (a fine-tuned checkpoint folder) until it is as fast and small as asked, in int8 on this machine.

    What the layers, heads and FFN columns cost is measured here; what goes is chosen on training rows, and the rest
    learns from the whole model. What was done is kept in OUT.work until the end, so an interrupted call goes on.

    With --study, machines that run the same command with --worker train some of the finalists. Times are taken on the
    machine that prunes alone.
    """
    from deploykit.cli.json_output import print_json
    from deploykit.cli.render import Screen
    from deploykit.pipeline.alone import prune_alone

    settings = section_from_options(Prune, values)
    limits = {"speedup": speedup, "p50_ms": p50_ms, "p99_ms": p99_ms, "size_mb": size_mb}
    goal = section_from_options(Goal, limits)
    with Screen() as screen:
        outcome, info = prune_alone(
            model,
            out,
            settings,
            goal,
            train=train,
            validation=validation,
            unlabelled=unlabelled,
            columns=(text, label),
            task=task,
            target=target,
            threads=threads,
            seed=seed,
            study=study,
            worker=worker,
            teachers=teachers,
            listener=screen,
        )
    if as_json:
        print_json({"out": str(out), **info})
        return 0
    if worker:
        click.echo(outcome)
        return 0
    click.echo(f"{out}: {outcome}")
    click.echo(f"next: deploykit export {out} -o {out}-onnx, then deploykit parity {model} {out} --data TEST")
    return 0
