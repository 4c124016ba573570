"""`deploykit finetune`."""

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
from deploykit.recipe import Finetune


@click.command("finetune")
@click.argument("model")
@training_options
@click.option("--entries", help="What messages are compared with, for the loss two_towers: a data reference.")
@click.option("--task", default="text-classification", show_default=True, help="What the model learns.")
@click.option("--seed", type=seed_number, default=0, show_default=True, help="Of every random choice.")
@click.option(
    "--track", multiple=True, type=click.Choice(["tensorboard", "wandb", "mlflow"]),
    help="What hears of the curves; files go to OUT.tracking. May be given more than once.",
)  # fmt: skip
@click.option("--trust-pickle", is_flag=True, help="Load pickled weights, which can run any code.")
@column_options
@section_options(Finetune)
@as_json
def command(
    model: str,
    train: str,
    validation: str | float,
    out: Path,
    task: str,
    seed: int,
    trust_pickle: bool,
    entries: str | None,
    track: tuple[str, ...],
    text: str,
    label: str | tuple[str, ...],
    as_json: bool,
    **values: Any,
) -> int:
    """Fine-tune MODEL (a hub id, a folder, or package:NAME) on labelled messages.

    Checkpoints are kept in OUT.work until the end, so an interrupted training goes on. Several GPUs:
    `torchrun --nproc-per-node N -m deploykit finetune ...`.
    """
    import dataclasses

    from deploykit.cli.json_output import print_json
    from deploykit.cli.render import Screen
    from deploykit.pipeline.alone import finetune_alone

    settings = section_from_options(Finetune, values)
    with Screen() as screen:
        result = finetune_alone(
            model,
            out,
            settings,
            train=train,
            validation=validation,
            columns=(text, label),
            task=task,
            seed=seed,
            trust_pickle=trust_pickle,
            entries=entries,
            track=track,
            listener=screen,
        )
    if as_json:
        print_json({"out": str(out), **dataclasses.asdict(result)})
        return 0
    figures = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
    click.echo(f"{out}: {figures} on validation, {result.steps:,} steps on {result.device} in {result.precision}")
    click.echo(f"next: deploykit export {out} -o {out}-onnx")
    return 0
