"""`deploykit pretrain`."""

from __future__ import annotations

__all__ = ["command"]

from pathlib import Path
from typing import Any

import click

from deploykit.cli.options import as_json, fraction, section_from_options, section_options, seed_number
from deploykit.recipe import Pretrain

_EPOCHS = 3.0


@click.command("pretrain")
@click.argument("model")
@click.option(
    "--data",
    required=True,
    multiple=True,
    help="Messages: a file, hub:DATASET:SPLIT or sample:support/train; repeatable.",
)
@click.option("--text", default="text", show_default=True, help="The column that holds the message.")
@click.option("--task", default="text-classification", show_default=True, help="What the model is for.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option("--validation", type=fraction, default=0.05, show_default=True, help="Fraction of the messages to watch.")
@click.option(
    "--max-length", type=click.IntRange(4), default=128, show_default=True,
    help="Tokens that a message is truncated to.",
)  # fmt: skip
@click.option("--seed", type=seed_number, default=0, show_default=True, help="Of every random choice.")
@click.option("--trust-pickle", is_flag=True, help="Load pickled weights, which can run any code.")
@section_options(Pretrain)
@as_json
def command(
    model: str,
    data: tuple[str, ...],
    text: str,
    task: str,
    out: Path,
    validation: float,
    max_length: int,
    seed: int,
    trust_pickle: bool,
    as_json: bool,
    **values: Any,
) -> int:
    """Go on with the pretraining of MODEL's encoder on messages without labels: it learns to fill in what is hidden.

    The folder that it writes is a MODEL for `deploykit finetune` and for recipes. With --epochs 0, the recipe's
    default, 3 passes are made. Checkpoints are kept in OUT.work until the end, so an interrupted training goes on.
    """
    import dataclasses

    from deploykit.cli.json_output import print_json
    from deploykit.cli.render import Screen
    from deploykit.pipeline.pretraining import pretrain_alone

    settings = section_from_options(Pretrain, values | {"epochs": values["epochs"] or _EPOCHS})
    with Screen() as screen:
        result = pretrain_alone(
            model, out, settings, data=data, text=text, validation=validation, max_length=max_length, seed=seed,
            task=task,            trust_pickle=trust_pickle, listener=screen,
        )  # fmt: skip
    if as_json:
        print_json({"out": str(out), **dataclasses.asdict(result)})
        return 0
    click.echo(
        f"{out}: loss of what is hidden {result.loss_before:.3f} -> {result.loss:.3f} on messages held out,"
        f" {result.steps:,} steps over {result.texts:,} on {result.device} in {result.precision}"
    )
    click.echo(f"next: deploykit finetune {out} --train FILE -o {out}-tuned")
    return 0
