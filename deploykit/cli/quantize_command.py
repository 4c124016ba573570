"""`deploykit quantize`."""

from __future__ import annotations

__all__ = ["command"]

from pathlib import Path
from typing import Any

import click

from deploykit.cli.options import (
    as_json,
    column_options,
    fraction,
    section_from_options,
    section_options,
    seed_number,
)
from deploykit.recipe import Quantize


@click.command("quantize")
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The folder to write.")
@click.option("--data", required=True, help="Labelled rows like those to be served: half calibrates, half chooses.")
@click.option(
    "--max-drop", type=fraction, default=0.01, show_default=True, help="The drop of the metric that is too much."
)
@click.option("--task", default="text-classification", show_default=True, help="What the model does.")
@click.option("--seed", type=seed_number, default=0, show_default=True, help="Of the split of the data.")
@column_options
@section_options(Quantize)
@as_json
def command(
    model: Path,
    out: Path,
    data: str,
    max_drop: float,
    task: str,
    seed: int,
    text: str,
    label: str | tuple[str, ...],
    as_json: bool,
    **values: Any,
) -> int:
    """Quantize MODEL (an ONNX folder) in every way that the options leave open; the fastest accurate one wins."""
    from deploykit.cli.json_output import print_json
    from deploykit.cli.render import Screen, mending_lines
    from deploykit.pipeline.alone import quantize_alone

    settings = section_from_options(Quantize, values)
    with Screen() as screen:
        outcome, info = quantize_alone(
            model,
            out,
            settings,
            data=data,
            columns=(text, label),
            max_drop=max_drop,
            task=task,
            seed=seed,
            listener=screen,
        )
    if as_json:
        print_json({"out": str(out), **info})
        return 0
    click.echo(f"{out}: {outcome}")
    if info.get("mended"):
        for line in mending_lines(info["mended"]):
            click.echo(f"  {line}")
    click.echo(f"next: deploykit parity CHECKPOINT {out} --data TEST, then deploykit package {out} --name NAME")
    return 0
