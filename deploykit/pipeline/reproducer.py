"""A failed parity as a folder: the messages that show it, what both models gave, the verdict, and one command."""

from __future__ import annotations

__all__ = ["fill_reproducer", "write_reproducer"]

import csv
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deploykit.artifacts.atomic import new_folder
from deploykit.parity.report import ParityReport
from deploykit.runners import Target, infer_all, open_runner

_SAMPLES = 50
_README = """# A failed parity

{statement}

The candidate does not answer like its reference on the messages in `samples.csv`. Again, on these alone:

```
{command}
```

- `samples.csv`: the messages, worst first, with their positions in the data and both answers;
- `outputs.npz`: what both give for them, one message at a time, as `reference_NAME` and `candidate_NAME`;
- `verdict.json`: the whole report on all {n} messages.

{checks}{where}
The messages are those of the test data: this folder is as confidential as they are.
"""


def write_reproducer(
    out: Path,
    report: ParityReport,
    reference: Target,
    candidate: Target,
    texts: Sequence[str],
    options: Sequence[str] = (),
) -> None:
    """Write the folder `out`, whole or not at all.

    Args:
        out: not there yet, or empty.
        report: on these two, over these texts.
        reference: what to live up to.
        candidate: what differs.
        texts: the messages of the report.
        options: of `deploykit parity` that made the report.

    Raises:
        UsageError: `out` is there and not empty.
        ArtifactError: it can't be written.
    """
    with new_folder(out) as folder:
        fill_reproducer(folder, report, reference, candidate, texts, options, where=out.absolute())


def fill_reproducer(
    folder: Path,
    report: ParityReport,
    reference: Target,
    candidate: Target,
    texts: Sequence[str],
    options: Sequence[str] = (),
    *,
    where: Path | None = None,
) -> None:
    """Write the files into a folder that somebody else puts into place; see `write_reproducer`.

    Args:
        folder: is there and empty.
        where: where it will lie; None leaves the path in the command to the reader.
    """
    chosen = _samples(report)
    changed = {sample.index: sample for sample in report.changed}
    with (folder / "samples.csv").open("w", encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("text", "label", "row", "reference", "candidate"))
        for index in chosen:
            sample = changed.get(index)
            known = ("", "", "") if sample is None else (sample.label or "", sample.reference, sample.candidate)
            rows.writerow((texts[index], known[0], index, *known[1:]))
    arrays: dict[str, np.ndarray] = {}
    for side, target in (("reference", reference), ("candidate", candidate)):
        with open_runner(target) as runner:
            outputs = infer_all(runner, [texts[index] for index in chosen], [[row] for row in range(len(chosen))])
        arrays |= {f"{side}_{name}": values for name, values in outputs.items() if values.dtype != object}
    np.savez_compressed(folder / "outputs.npz", **arrays)  # type: ignore[arg-type]
    (folder / "verdict.json").write_text(report.model_dump_json(indent=1), encoding="utf-8")
    (folder / "README.md").write_text(
        _readme(report, reference, candidate, options, where), encoding="utf-8", errors="replace"
    )


def _samples(report: ParityReport) -> list[int]:
    """The messages that show it: changed answers, the worst of each output, what was walked through."""
    worst = [tensor.worst_sample for tensor in report.tensors]
    walked = report.localized.samples if report.localized else ()
    shown = list(dict.fromkeys([*(sample.index for sample in report.changed), *worst]))
    return (shown or list(walked) or list(range(min(8, report.n))))[:_SAMPLES]


def _readme(
    report: ParityReport, reference: Target, candidate: Target, options: Sequence[str], where: Path | None
) -> str:
    samples = "samples.csv" if where is None else str(where / "samples.csv")
    command = ["deploykit", "parity", _place(reference), _place(candidate), "--data", samples, "--no-labels", *options]
    failed = [check for check in report.checks if check.outcome == "fail"]
    checks = "".join(f"- failed: {check.check}. {' '.join(check.details)} {check.next_step}\n" for check in failed)
    findings = report.localized.findings if report.localized else ()
    located = "".join(f"- where: {found.name}: {found.cause} {found.next_step}\n" for found in findings)
    return _README.format(
        statement=f"Verdict: {report.statement}, on {report.n:,} messages; {report.flips:,} answers changed.",
        command=shlex.join(command),
        n=f"{report.n:,}",
        checks=checks,
        where=located,
    )


def _place(target: Target) -> str:
    return target.location if target.kind == "triton" else str(Path(target.location).absolute())
