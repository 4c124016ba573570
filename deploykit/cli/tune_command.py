"""`deploykit tune`."""

from __future__ import annotations

__all__ = ["command"]

import math
import re
from pathlib import Path

import click

from deploykit.cli.options import as_json
from deploykit.errors import UsageError

_DURATION = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(ms|s|us)?\s*", re.ASCII)
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, None: 1.0}


def _milliseconds(context: click.Context, option: click.Parameter, text: str) -> float:
    """A duration: `5ms`, `0.005s`, or a number of milliseconds."""
    found = _DURATION.fullmatch(text)
    if found is None or not 0 < (milliseconds := float(found[1]) * _MS[found[2]]) < 1e6:
        raise click.BadParameter(f"{text!r} is no duration, as in 5ms")
    return milliseconds


@click.command("tune")
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--p99", callback=_milliseconds, metavar="DURATION", required=True,
    help="The limit that p99 must stay below, as in 5ms.",
)  # fmt: skip
@click.option("--data", required=True, help="Real messages: a file, hub:DATASET:SPLIT or sample:support/test.")
@click.option("--text", default="text", show_default=True, help="The column that holds the message.")
@click.option("--name", help="The package in a repository that has several; for an ONNX folder its name in Triton.")
@click.option(
    "-o", "--out", "repository", type=click.Path(path_type=Path), default=Path("model_repository"), show_default=True,
    help="For an ONNX folder: the model repository that gets it.",
)  # fmt: skip
@click.option("--trials", type=click.IntRange(1), default=12, show_default=True, help="Settings to measure at most.")
@click.option(
    "--seconds", type=click.FloatRange(1), default=4, show_default=True, help="How long a run at a rate lasts at least."
)
@click.option("--enough", type=click.FloatRange(0, min_open=True), help="Messages a second; no rate above is tried.")
@click.option(
    "--protocol", type=click.Choice(["http", "grpc"]), default="http", show_default=True,
    help="What the client that measures speaks.",
)  # fmt: skip
@click.option("--task", default="text-classification", show_default=True, help="What the model does.")
@click.option("--target", default="triton-25.08", show_default=True, help="For an ONNX folder: the Triton release.")
@click.option(
    "--history", type=click.Path(path_type=Path), default=Path(".deploykit/tune.jsonl"), show_default=True,
    help="Where trials are kept: a search that was cut off goes on from here.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Write nothing into the package.")
@click.option("--page", type=click.Path(path_type=Path), help="Write the curve as an HTML page to this file.")
@as_json
def command(
    model: Path,
    p99: float,
    data: str,
    text: str,
    name: str | None,
    repository: Path,
    trials: int,
    seconds: float,
    enough: float | None,
    protocol: str,
    task: str,
    target: str,
    history: Path,
    dry_run: bool,
    page: Path | None,
    as_json: bool,
) -> int:
    """Search the Triton settings of MODEL for the highest rate of messages that holds a limit on p99.

    MODEL is a package's folder in a model repository, the repository, or an ONNX folder, which is packaged with what is
    found. Each trial serves a copy on a fresh server. Only config.pbtxt changes: instances, threads, batch sizes,
    queue delay, layout. Exit status: 0 a rate holds; 6 none does, and the nearest settings are delivered all the same;
    5 what held did not hold again.
    """
    from deploykit.artifacts.atomic import write_atomic
    from deploykit.cli.json_output import print_json
    from deploykit.cli.render import Screen
    from deploykit.data.readers import read_rows
    from deploykit.errors import ExitCode
    from deploykit.pipeline.tune import TuneRule, recipe_section, tune_folder, tune_package
    from deploykit.report.tune_report import tune_json, tune_lines, tune_page
    from deploykit.runners.medium import columns_of

    messages = list(read_rows(data, columns_of(task, text, None)).texts)
    rule = TuneRule(p99, trials, seconds, protocol, enough or math.inf)
    with Screen() as screen:
        if (model / "model.onnx").is_file():
            name = name or model.resolve().name
            tuned = tune_folder(
                model, repository, name, messages, rule, history=history, task=task, target=target,
                write=not dry_run, listener=screen,
            )  # fmt: skip
        else:
            repository, name = _package(model, name)
            tuned = tune_package(
                repository, name, messages, rule, history=history, task=task, write=not dry_run, listener=screen
            )
    if page is not None:
        write_atomic(page, tune_page(name, tuned, p99).encode())
    codes = {"pass": ExitCode.PASS, "inconclusive": ExitCode.INCONCLUSIVE, "fail": ExitCode.GOAL_MISSED}
    code = codes[tuned.verdict]
    section = recipe_section(tuned.best.settings)
    if as_json:
        print_json(tune_json(tuned, p99) | {"name": name, "package": section, "exit_code": int(code)})
        return int(code)
    for line in tune_lines(tuned, p99):
        click.echo(line)
    click.echo(f"{'written into' if tuned.written else 'unchanged:'} {repository / name} and {name}_onnx")
    settings = ", ".join(
        f"{key}: {list(value) if isinstance(value, tuple) else value}" for key, value in section.items()
    )
    click.echo(f"for the recipe, so that the next run keeps it:\n  package: {{{settings}}}")
    click.secho(f"verdict: {'goal missed' if tuned.verdict == 'fail' else tuned.verdict}", bold=True)
    return int(code)


def _package(path: Path, name: str | None) -> tuple[Path, str]:
    """The repository and the package that a folder names.

    Raises:
        UsageError: it is neither, or holds several packages and none is named.
    """
    path = path.resolve()
    if name is None and (path / "config.pbtxt").is_file():
        return path.parent, path.name.removesuffix("_onnx")
    if name is not None:
        return path, name
    found = sorted(each.name for each in path.iterdir() if (path / f"{each.name}_onnx" / "config.pbtxt").is_file())
    if len(found) == 1:
        return path, found[0]
    if found:
        raise UsageError(f"{path} has several packages: {', '.join(found)}", f"name one: --name {found[0]}")
    raise UsageError(
        f"{path} holds no package and no model.onnx", "give a folder of a repository, or an ONNX folder to package"
    )
