"""`deploykit parity`."""

from __future__ import annotations

__all__ = ["command"]

from pathlib import Path

import click

from deploykit.cli.options import as_json, column_options, fraction


@click.command("parity")
@click.argument("reference")
@click.argument("candidate")
@click.option(
    "--data", required=True, help="The messages to compare on: a file, hub:DATASET:SPLIT or sample:support/test."
)
@click.option(
    "--no-labels", is_flag=True, help="The data has no labels, or others: compare behaviour without the metric."
)
@click.option(
    "--max-drop", type=fraction, default=0.01, show_default=True, help="The drop of the metric that is too much."
)
@click.option(
    "--max-flips", type=fraction, help="The rate of changed answers that is too much; with --no-labels max-drop."
)
@click.option(
    "--tolerance", type=click.FloatRange(0, min_open=True),
    help="The difference of logits that is too much, for the same weights.",
)  # fmt: skip
@click.option(
    "--confidence", type=click.FloatRange(0.5, 1, min_open=True, max_open=True), default=0.95, show_default=True,
    help="Of the one-sided bounds.",
)  # fmt: skip
@click.option("--tokenizer", type=click.Path(path_type=Path), help="The tokenizer's folder of a bare .onnx file.")
@click.option("--task", default="text-classification", show_default=True, help="What the models do.")
@click.option(
    "--reproduce", type=click.Path(path_type=Path),
    help="Where it fails, write this folder: the messages that show it, both outputs, the command.",
)  # fmt: skip
@click.option("--report", type=click.Path(path_type=Path), help="Write the whole report (JSON) to this file.")
@column_options
@as_json
def command(
    reference: str,
    candidate: str,
    data: str,
    no_labels: bool,
    max_drop: float,
    max_flips: float | None,
    tolerance: float | None,
    confidence: float,
    tokenizer: Path | None,
    task: str,
    reproduce: Path | None,
    report: Path | None,
    text: str,
    label: str | tuple[str, ...],
    as_json: bool,
) -> int:
    """Prove or refute that CANDIDATE answers like REFERENCE.

    Each is a checkpoint folder, an ONNX folder or file, or grpc://HOST:PORT/MODEL (http:// too). Exit status: 0 pass,
    3 failed, 5 inconclusive.
    """
    from deploykit.artifacts.atomic import write_atomic
    from deploykit.cli.json_output import print_json
    from deploykit.cli.render import Screen, location_lines, stdout, verdict_table
    from deploykit.errors import ExitCode
    from deploykit.pipeline.alone import parity_alone

    with Screen() as screen:
        found = parity_alone(
            reference,
            candidate,
            data=data,
            columns=(text, None if no_labels else label),
            max_drop=max_drop,
            max_flips=max_flips,
            tolerance=tolerance,
            confidence=confidence,
            tokenizer=tokenizer,
            task=task,
            reproduce=reproduce,
            listener=screen,
        )
    if report is not None:
        write_atomic(report, found.model_dump_json(indent=1).encode())
    exit_code = {"pass": ExitCode.PASS, "fail": ExitCode.PARITY_FAILED, "inconclusive": ExitCode.INCONCLUSIVE}
    if as_json:
        print_json(found.model_dump(mode="json"))
        return int(exit_code[found.verdict])
    stdout().print(verdict_table(found.checks))
    for check in found.checks:
        if check.outcome != "pass":
            for line in (*check.details, check.next_step):
                click.echo(f"  {check.check}: {line}")
    for line in location_lines(found.localized):
        click.echo(f"  {line}")
    for sample in found.changed[:5]:
        click.echo(f"  changed: {sample.text!r}: {sample.reference} -> {sample.candidate}")
    click.secho(f"verdict: {found.statement} ({found.n:,} messages)", bold=True)
    return int(exit_code[found.verdict])
