"""`deploykit check`."""

from __future__ import annotations

__all__ = ["command"]

from pathlib import Path

import click

from deploykit.cli.options import as_json


@click.command("check")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the recipe.")
@click.option("--data", "with_data", is_flag=True, help="Read and check the data too.")
@click.option(
    "--workspace", type=click.Path(path_type=Path), default=Path(".deploykit"), show_default=True,
    help="Where artefacts are kept.",
)  # fmt: skip
@as_json
def command(recipe: Path, overrides: tuple[str, ...], with_data: bool, workspace: Path, as_json: bool) -> int:
    """Validate RECIPE and print its plan: what is cached, what would be made, and how long it last took.

    Loads no model. All errors are listed at once, each with its file and line.
    """
    import dataclasses
    import json

    from deploykit.artifacts.store import Store
    from deploykit.pipeline.plan import make_plan
    from deploykit.pipeline.run import last_run
    from deploykit.recipe import load_recipe
    from deploykit.recipe.machine import check_machine

    loaded = load_recipe(recipe, overrides)
    warnings = list(check_machine(loaded))
    plan = make_plan(loaded, Path(), download=False)
    kept = Store(workspace / "store").artifacts()
    rows = []
    for step in plan.steps:
        cached = any(found.manifest.stage == step.stage and found.manifest.key == step.key for found in kept)
        took = [found.manifest.seconds for found in kept if found.manifest.stage == step.stage]
        state = "each time" if step.key is None else "cached" if cached else "to do"
        rows.append({"stage": step.stage, "state": state, "key": step.key, "last_s": took[-1] if took else None})
    report = None
    if with_data:
        from deploykit.data.dataset import load_data

        _, data_report = load_data(loaded.data, loaded.seed)
        report = dataclasses.asdict(data_report)
        warnings += data_report.warnings
    interrupted = last_run(workspace, loaded.name)
    if as_json:
        click.echo(
            json.dumps(
                {"name": loaded.name, "steps": rows, "warnings": warnings, "last_run": interrupted, "data": report},
                indent=1,
            )
        )
        return 0
    click.echo(f"{recipe} is valid: {loaded.name}, {loaded.task}, from {loaded.model}")
    for row in rows:
        took_s = "" if row["last_s"] is None else f"last took {row['last_s']:.1f} s"
        click.echo(f"  {row['stage']:<9} {row['state']:<10} {took_s}".rstrip())
    if report is not None:
        for part in ("train", "validation", "test"):
            table = report[part]
            lengths = table["lengths"]
            click.echo(
                f"  {part:<11} {table['rows']:>7,} rows  {len(table['classes'])} labels  "
                f"{lengths['shortest']} to {lengths['longest']} words, median {lengths['median']}"
            )
    if interrupted and interrupted["status"] != "finished":
        click.echo(f"the last run was {interrupted['status']} at {interrupted['stage']}: it goes on from there")
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    return 0
