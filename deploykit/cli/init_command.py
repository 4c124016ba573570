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
    import json

    from deploykit.pipeline.scaffold import scaffold

    written = scaffold(folder)
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "files": [str(path) for path in written]}, indent=1))
        return 0
    for path in written:
        click.echo(f"wrote {path}")
    click.echo(f"next: cd {folder} && deploykit run recipe.yaml")
    return 0
