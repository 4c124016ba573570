"""`deploykit run`."""

from __future__ import annotations

__all__ = ["command"]

from pathlib import Path

import click

from deploykit.cli.options import as_json
from deploykit.errors import UsageError
from deploykit.pipeline.order import STAGES, Stage


@click.command("run")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE",
    help="Override a key of the recipe, e.g. -s finetune.epochs=3; repeatable.",
)  # fmt: skip
@click.option("--until", type=click.Choice(STAGES), help="Stop behind this stage.")
@click.option("--from", "start", type=click.Choice(STAGES), help="Run this stage and those behind it anew.")
@click.option(
    "--workspace", type=click.Path(path_type=Path), default=Path(".deploykit"), show_default=True,
    help="Where artefacts, logs and reports are kept.",
)  # fmt: skip
@click.option(
    "--repository", type=click.Path(path_type=Path), default=Path("model_repository"), show_default=True,
    help="The Triton model repository to publish into.",
)  # fmt: skip
@click.option(
    "--study", metavar="URL",
    help="Share the trials of pruning with other machines: sqlite:///FILE, a database's URL, or a file.",
)  # fmt: skip
@click.option("--worker", is_flag=True, help="Train for the same command on another machine, which shares its study.")
@as_json
def command(
    recipe: Path,
    overrides: tuple[str, ...],
    until: Stage | None,
    start: Stage | None,
    workspace: Path,
    repository: Path,
    study: str | None,
    worker: bool,
    as_json: bool,
) -> int:
    """Take RECIPE from data to a proven model in a Triton repository.

    Stages: data, finetune, export, quantize, package, parity, latency, publish. What was made before with the same
    data, settings and versions is found and not made again; an interrupted run goes on where it was. Only a package
    that passes parity and meets the goal enters the repository.

    With --study, machines that run the same command with --worker train some of the models that pruning chooses among.
    They read the run's data and model in the --workspace, which both reach (or a copy); times are taken by the run
    alone.
    """
    from deploykit.cli.json_output import print_json
    from deploykit.cli.render import Screen, result_table, stdout, verdict_table
    from deploykit.parity.report import ParityReport
    from deploykit.pipeline.run import join_run, run_recipe
    from deploykit.recipe import load_recipe
    from deploykit.report.page import next_step

    if worker and study is None:
        raise UsageError("a worker needs a study to work for", "give --study")
    if worker and (until or start):
        raise UsageError("--worker takes no --until and no --from", "a worker trains what a run prunes, and no more")
    loaded = load_recipe(recipe, overrides)
    if worker and study is not None:
        with Screen() as screen:
            count = join_run(loaded, study, workspace=workspace, listener=screen)
        if as_json:
            print_json({"name": loaded.name, "trained": count})
        else:
            click.echo(f"trained {count} finalist{'s' * (count != 1)} of another process; nothing is written")
        return 0
    with Screen() as screen:
        result = run_recipe(
            loaded,
            workspace=workspace,
            repository=repository,
            until=until,
            start=start,
            study=study,
            listener=screen,
        )
    if result is None:
        if as_json:
            print_json({"name": loaded.name, "until": until})
        else:
            click.echo(f"stopped behind {until}; the same command without --until goes on from here")
        return 0
    if as_json:
        print_json(result.model_dump(mode="json"))
        return result.exit_code
    parity = ParityReport.model_validate_json(Path(result.parity).read_text(encoding="utf-8"))
    tables = stdout()
    tables.print(result_table(result))
    tables.print(verdict_table(parity.checks))
    for goal in result.goal:
        note = f" ({goal.note})" if goal.outcome == "inconclusive" else ""
        click.echo(f"goal {goal.limit} {goal.wanted_in_words}: {goal.outcome}, {goal.reached_in_words}{note}")
    click.echo(
        f"{result.n:,} test messages; {result.messages:,} timed per form in alternating blocks, "
        f"{result.stolen:.0%} of the CPU time stolen by others meanwhile"
    )
    click.secho(f"verdict: {result.statement}", bold=True)
    if result.learned.warning:
        click.echo(f"but:     {result.learned.warning}")
    click.echo(f"package: {result.package or 'not published; kept in ' + result.kept}")
    click.echo(f"report:  {result.report}")
    click.echo(f"next:    {next_step(result, parity)}")
    return result.exit_code
