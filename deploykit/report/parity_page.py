"""The page of one comparison: what was proved, on what, with which bound; where the models part, and which answers."""

from __future__ import annotations

__all__ = ["write_parity_page"]

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import __version__
from deploykit.artifacts.atomic import disk_errors, write_atomic
from deploykit.report.bars import layer_bars
from deploykit.report.page import check_cells, template
from deploykit.report.table import DASH, in_percent, in_points

if TYPE_CHECKING:
    from deploykit.parity.report import ParityReport

_CLASSES = 20
_TEXT = 400
_TITLES = {"pass": "Passed", "fail": "Failed", "inconclusive": "Inconclusive"}


def write_parity_page(parity: ParityReport, path: Path) -> Path:
    """Write the page of a comparison; it loads nothing from anywhere.

    Messages and labels of the data are on it: it is as confidential as they are.

    Args:
        parity: the comparison.
        path: the file to write or replace; missing folders above it are made.

    Returns:
        the path.

    Raises:
        ArtifactError: the file can't be written.
    """
    page = template("parity_page.html.j2").render(
        parity=parity,
        title=_TITLES[parity.verdict],
        sentence=_sentence(parity),
        checks=[check_cells(check, parity.metrics) for check in parity.checks],
        layers=layer_bars(parity),
        classes=[change for change in parity.classes if change.flips][:_CLASSES],
        unchanged=sum(not change.flips for change in parity.classes),
        changed=[(sample, sample.text[:_TEXT], max(0, len(sample.text) - _TEXT)) for sample in parity.changed],
        confidence=f"{100 * parity.confidence:g} %",
        percent=in_percent,
        points=in_points,
        dash=DASH,
        deploykit_version=__version__,
    )
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    # A lone surrogate in a message has no UTF-8: it is shown as a question mark.
    write_atomic(path, page.encode("utf-8", errors="replace"))
    return path


def _sentence(parity: ParityReport) -> str:
    names = [check.check for check in parity.checks if check.outcome == parity.verdict]
    share = f"{len(names)} of {len(parity.checks)} checks"
    if parity.verdict == "pass":
        return f"All {len(parity.checks)} checks passed on {parity.n:,} messages."
    if parity.verdict == "fail":
        return f"{share} failed: {', '.join(names)}."
    return f"{share} could not be decided on {parity.n:,} messages: {', '.join(names)}."
