"""`deploykit parity`."""

from __future__ import annotations

__all__ = ["command"]

from pathlib import Path
from typing import Literal

import click

from deploykit.cli.options import as_json, column_options, fraction


@click.command("parity")
@click.argument("reference")
@click.argument("candidate")
@click.option(
    "--data", required=True, help="The messages to compare on: a file, hub:DATASET:SPLIT or sample:support/test."
)
@click.option("--no-labels", is_flag=True, help="The data has no labels: compare behaviour without the metric.")
@click.option(
    "--question", type=click.Choice(["auto", "fidelity", "equivalence"]), default="auto", show_default=True,
    help="fidelity: the same weights in another form, whose numbers must agree; equivalence: another model, as good at "
    "the task; auto: by the shapes in both config.json.",
)  # fmt: skip
@click.option(
    "--max-drop", type=fraction, default=0.01, show_default=True, help="The drop of the metric that is too much."
)
@click.option(
    "--max-flips", type=fraction, help="The rate of changed answers that is too much; without labels max-drop."
)
@click.option(
    "--tolerance", type=click.FloatRange(0, min_open=True),
    help="The difference of logits that is too much; by default what the precision of the models explains.",
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
@click.option("--page", type=click.Path(path_type=Path), help="Write the report as a page (HTML) to this file.")
@click.option(
    "--cache/--no-cache", default=True, show_default=True, help="Keep PyTorch's outputs for the next time, by digest."
)
@click.option(
    "--also", metavar="URL", help="The served CANDIDATE by the server's other protocol, which has to answer the same."
)
@click.option(
    "--mend", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Where it fails, make CANDIDATE (an ONNX folder) again from REFERENCE with the cheapest repair that suffices, "
    "write it to this folder, and prove that one.",
)  # fmt: skip
@click.option("--mend-data", metavar="DATA", help="Labelled rows that choose the repair; not those of --data.")
@column_options
@as_json
def command(
    reference: str,
    candidate: str,
    data: str,
    no_labels: bool,
    question: Literal["auto", "fidelity", "equivalence"],
    max_drop: float,
    max_flips: float | None,
    tolerance: float | None,
    confidence: float,
    tokenizer: Path | None,
    task: str,
    reproduce: Path | None,
    report: Path | None,
    page: Path | None,
    cache: bool,
    also: str | None,
    mend: Path | None,
    mend_data: str | None,
    text: str,
    label: str | tuple[str, ...],
    as_json: bool,
) -> int:
    """Prove or refute that CANDIDATE answers like REFERENCE.

    Each is a checkpoint folder, an ONNX folder or file, a model's folder in a Triton repository, or
    grpc://HOST:PORT/MODEL (http:// too). Exit status: 0 pass, 3 failed, 5 inconclusive.
    """
    from functools import partial

    from deploykit.artifacts.atomic import write_atomic
    from deploykit.cli.json_output import print_json
    from deploykit.cli.render import Screen, mended_lines, print_parity
    from deploykit.errors import ExitCode, UsageError
    from deploykit.pipeline.alone import parity_alone
    from deploykit.pipeline.mending import mend_if_failed
    from deploykit.report.parity_page import write_parity_page
    from deploykit.triton.installation import default_cache

    if (mend is None) != (mend_data is None):
        raise UsageError("--mend and --mend-data belong together", "give the folder to write, and the rows that choose")
    with Screen() as screen:
        prove = partial(
            parity_alone,
            reference,
            data=data,
            columns=(text, None if no_labels else label),
            max_drop=max_drop,
            max_flips=max_flips,
            tolerance=tolerance,
            confidence=confidence,
            tokenizer=tokenizer,
            task=task,
            reproduce=reproduce,
            question=question,
            cache=default_cache() / "outputs" if cache else None,
            listener=screen,
        )
        mended = None
        if mend is None or mend_data is None:
            found = prove(candidate, also=also)
        else:
            found, mended = mend_if_failed(
                reference, candidate, mend, prove, data=data, mend_data=mend_data, columns=(text, label), task=task,
                tokenizer=tokenizer, max_drop=max_drop, listener=screen,
            )  # fmt: skip
    if report is not None:
        write_atomic(report, found.model_dump_json(indent=1).encode())
    if page is not None:
        write_parity_page(found, page)
    exit_code = {"pass": ExitCode.PASS, "fail": ExitCode.PARITY_FAILED, "inconclusive": ExitCode.INCONCLUSIVE}
    if as_json:
        print_json(found.model_dump(mode="json") | ({} if mended is None else {"mended": mended.as_json()}))
    else:
        print_parity(found)
        for line in [] if mended is None else mended_lines(mended):
            click.echo(line)
    return int(exit_code[found.verdict])
