"""`deploykit schema`."""

from __future__ import annotations

__all__ = ["command"]

import click

from deploykit.cli.options import as_json


@click.command("schema")
@as_json
def command(as_json: bool) -> int:
    """Print the JSON schema of recipes. In VS Code: `deploykit schema > recipe.schema.json`, then name it in the first
    line of a recipe: `# yaml-language-server: $schema=recipe.schema.json`.
    """
    from deploykit.cli.json_output import print_json
    from deploykit.recipe import json_schema

    print_json(json_schema())
    return 0
