"""`deploykit check`."""

from __future__ import annotations

__all__ = ["command"]

from pathlib import Path

import click

from deploykit.cli.options import as_json

_SUSPECTS = 5
"""Labels that look wrong that are shown; --json has up to 20."""


@click.command("check")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the recipe.")
@click.option("--data", "with_data", is_flag=True, help="Read the data, and say what to look at in it.")
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

    from deploykit.cli.json_output import print_json
    from deploykit.pipeline.plan import make_plan, refuse_what_does_not_fit, step_states
    from deploykit.pipeline.record import last_run
    from deploykit.recipe import check_machine, load_recipe

    loaded = load_recipe(recipe, overrides)
    warnings = list(check_machine(loaded))
    refuse_what_does_not_fit(loaded)
    steps = step_states(make_plan(loaded, Path(), download=False), workspace)
    report, suspects = None, {}
    if with_data:
        from deploykit.data.dataset import load_data
        from deploykit.data.suspects import find_suspects
        from deploykit.runners.medium import columns_of, medium_of
        from deploykit.tasks import find_task

        form = find_task(loaded.task).label_form(loaded.data.label)
        columns = columns_of(loaded.task, loaded.data.text, form)
        textual = medium_of(loaded.task).textual
        data, report = load_data(loaded.data, loaded.seed, form=form, read=columns.read)
        warnings += report.warnings
        for name, table in (("train", data.train), ("test", data.test)):
            suspects[name] = find_suspects(table, loaded.seed, textual=textual)
            warnings += suspects[name].warnings(name)
    last = last_run(workspace, loaded.name)
    if as_json:
        found = {
            "name": loaded.name,
            "steps": [dataclasses.asdict(step) for step in steps],
            "warnings": warnings,
            "last_run": None if last is None else dataclasses.asdict(last),
            "data": None if report is None else dataclasses.asdict(report),
            "suspects": {name: dataclasses.asdict(each) for name, each in suspects.items()} or None,
        }
        print_json(found)
        return 0
    click.echo(f"{recipe} is valid: {loaded.name}, {loaded.task}, from {loaded.model}")
    for step in steps:
        took = "" if step.last_s is None else f"last took {step.last_s:.1f} s"
        click.echo(f"  {step.stage:<9} {step.state:<10} {took}".rstrip())
    if report is not None:
        for name, part in (("train", report.train), ("validation", report.validation), ("test", report.test)):
            lengths = part.lengths
            words = f"{lengths.shortest} to {lengths.longest} words, median {lengths.median}, "
            words = f"{words}95 % up to {lengths.p95}; " if textual else ""
            click.echo(
                f"  {name:<11} {part.rows:>7,} rows  {len(part.classes)} labels  "
                f"{words}{part.repeated} repeat an earlier {'text' if textual else 'image'}"
            )
        for name, looked in suspects.items():
            languages = ", ".join(f"{code} {share:.0%}" for code, share in list((looked.languages or {}).items())[:3])
            spoken = f"; languages: {languages}" if languages else ""
            click.echo(f"  {name:<11} largest class {looked.imbalance:.1f} times the smallest{spoken}")
            for label in looked.labels[:_SUSPECTS]:
                click.echo(f"    {label.at}: {label.text[:60]!r} is {label.label!r}, looks like {label.likelier!r}")
            for reason in looked.not_checked:
                click.echo(f"    not looked for: {reason}")
    if last is not None and last.status != "finished":
        click.echo(f"the last run was {last.status} at {last.stage}; the next one goes on from there")
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    return 0
