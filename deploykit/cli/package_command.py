"""`deploykit package`."""

from __future__ import annotations

__all__ = ["command"]

from pathlib import Path
from typing import Any

import click

from deploykit.cli.options import as_json, section_from_options, section_options
from deploykit.recipe import Package


@click.command("package")
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o", "--out", "repository", type=click.Path(path_type=Path), default=Path("model_repository"), show_default=True,
    help="The Triton model repository.",
)  # fmt: skip
@click.option("--name", help="The model's name in Triton; the folder's name unless told.")
@click.option("--task", default="text-classification", show_default=True, help="What the model does.")
@click.option("--target", default="triton-25.08", show_default=True, help="The Triton release that must load it.")
@section_options(Package)
@as_json
def command(
    model: Path, repository: Path, name: str | None, task: str, target: str, as_json: bool, **values: Any
) -> int:
    """Write the next version of MODEL (an ONNX folder) into a Triton model repository: text entry and tensor entry.

    The repository has the version entirely or not at all. Nothing is proved here: `deploykit run` publishes only
    what passed; `deploykit parity` proves a package once it is served.
    """
    from deploykit.cli.json_output import print_json
    from deploykit.cli.render import Screen
    from deploykit.pipeline.alone import package_alone

    settings = section_from_options(Package, values)
    with Screen() as screen:
        published = package_alone(
            model, repository, name or model.resolve().name, settings, task=task, target=target, listener=screen
        )
    paths = {model_name: str(path) for model_name, path in published.paths.items()}
    if as_json:
        print_json({"repository": str(repository), "version": published.version, "new": published.new, "paths": paths})
        return 0
    state = "written" if published.new else "is there already, unchanged"
    click.echo(f"version {published.version} {state}: {', '.join(paths.values())}")
    click.echo(f"next: deploykit serve {repository}")
    return 0
