"""`deploykit parity`."""

from __future__ import annotations

__all__ = ["command"]

from pathlib import Path

import click

from deploykit.cli.options import as_json, column_options


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
    "--max-drop", type=float, default=0.01, show_default=True, help="The drop of the metric that is too much."
)
@click.option(
    "--max-flips", type=float, help="The rate of changed answers that is too much; with --no-labels max-drop."
)
@click.option("--tolerance", type=float, help="The difference of logits that is too much, for the same weights.")
@click.option("--confidence", type=float, default=0.95, show_default=True, help="Of the one-sided bounds.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="The tokenizer's folder of a bare .onnx file.")
@click.option("--task", default="text-classification", show_default=True, help="What the models do.")
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
    report: Path | None,
    text: str,
    label: str,
    as_json: bool,
) -> int:
    """Prove or refute that CANDIDATE answers like REFERENCE.

    Each is a checkpoint folder, an ONNX folder or file, or grpc://HOST:PORT/MODEL (http:// too). Exit status: 0 pass,
    3 failed, 5 inconclusive.
    """
    from deploykit.cli.render import Screen, print_json, stdout, verdict_table
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
            listener=screen,
        )
    if report is not None:
        report.write_text(found.model_dump_json(indent=1), encoding="utf-8")
    exit_code = {"pass": ExitCode.PASS, "fail": ExitCode.PARITY_FAILED, "inconclusive": ExitCode.INCONCLUSIVE}
    if as_json:
        print_json(found.model_dump(mode="json"))
        return int(exit_code[found.verdict])
    console = stdout()
    console.print(verdict_table(found.checks))
    for check in found.checks:
        if check.outcome != "pass":
            for line in (*check.details, check.next_step):
                console.print(f"  {check.check}: {line}", markup=False)
    for sample in found.changed[:5]:
        console.print(f"  changed: {sample.text!r}: {sample.reference} -> {sample.candidate}", markup=False)
    console.print(f"verdict: {found.statement} ({found.n:,} messages)", style="bold")
    return int(exit_code[found.verdict])
