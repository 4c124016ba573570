"""`deploykit init`."""

from __future__ import annotations

__all__ = ["command"]

from pathlib import Path

import click

from deploykit.cli.options import as_json


@click.command("init")
@click.argument("folder", type=click.Path(path_type=Path))
@as_json
def command(folder: Path, as_json: bool) -> int:
    """Scaffold a project in FOLDER: recipe.yaml and data/train.csv, data/test.csv, which run as they are."""
    import shlex

    from deploykit.cli.json_output import print_json
    from deploykit.pipeline.scaffold import scaffold

    written = scaffold(folder)
    if as_json:
        print_json({"folder": str(folder), "files": [str(path) for path in written]})
        return 0
    for path in written:
        click.echo(f"wrote {path}")
    click.echo(f"next: cd {shlex.quote(str(folder))} && deploykit run recipe.yaml")
    return 0
