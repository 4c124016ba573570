"""The page of one comparison says what was proved and where the models part, whatever the data holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.errors import ArtifactError
from deploykit.parity.localize import Finding, LayerFigures, Localization
from deploykit.parity.report import Basis, ParityReport, Predictions, build_report
from deploykit.report.parity_page import write_parity_page

HOSTILE = "<script>alert('x')</script>"


def compared(wrong: int = 0, **given: Any) -> ParityReport:
    labels = [("card", "loan", "fees")[item % 3] for item in range(1200)]
    after = ["other" if item < wrong else label for item, label in enumerate(labels)]
    right = np.array([answer == label for answer, label in zip(after, labels, strict=True)])
    basis = Basis(
        question="fidelity", reference="a", candidate=HOSTILE, precision="int8", tolerance_source="0.25",
        batch_dependent=True,
    )  # fmt: skip
    settings: dict[str, Any] = {"labels": labels, "margin": 0.01, "instruction_set": "avx2", "served": False}
    return build_report(
        Predictions(labels, np.ones(1200, dtype=np.bool_)), Predictions(after, right),
        [f"{HOSTILE} \ud800 {item}" for item in range(1200)], basis=basis, **(settings | given),
    )  # fmt: skip


def located(report: ParityReport) -> ParityReport:
    figures = {"part": "ffn", "layer": 3, "module": "m.3", "cosine": 0.5, "own_sqnr_db": 4.0}
    finding = Finding(name="layer 3 FFN", cause="its range is too small", next_step="keep it in float", **figures)  # type: ignore[arg-type]
    layer = LayerFigures(name="layer 3 FFN", input_sqnr_db=30.0, sqnr_db=4.0, **figures)  # type: ignore[arg-type]
    return report.model_copy(
        update={"localized": Localization(findings=(finding,), precision="int8", layers=(layer,), samples=(1,))}
    )


def written(report: ParityReport, path: Path) -> str:
    return write_parity_page(report, path / "new" / "parity.html").read_text(encoding="utf-8")


def test_a_pass_says_what_was_proved_on_what_and_with_which_bound(tmp_path: Path) -> None:
    report = compared(wrong=2)
    page = written(report, tmp_path)
    assert report.verdict == "pass"
    assert all(line in page for line in report.proved)
    bound = f"{100 * (report.drop_upper or 0):.2f}"
    assert f"accuracy fell by less than {bound} points (seen: 0.17), on 1,200 messages" in page
    assert "the way through a server" in page
    assert "scales are taken over the batch" in page
    assert "Where they part" not in page


def test_a_failure_shows_layers_classes_and_samples(tmp_path: Path) -> None:
    page = written(located(compared(wrong=90)), tmp_path)
    assert "1 of 1 checks failed: accuracy drop." in page
    assert "Nothing as a whole" in page
    assert "its range is too small" in page
    assert re.search(r'<tr class="found"><td>layer 3 FFN</td><td class="n">4</td>', page)
    assert "50 of 90 changed answers" in page


def test_nothing_of_the_data_is_markup_and_nothing_is_loaded(tmp_path: Path) -> None:
    page = written(located(compared(wrong=90)), tmp_path)
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"""(src|href)\s*=|url\(|@import""", page)


def test_row_5_a_page_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="file"):
        write_parity_page(compared(), tmp_path / "file" / "parity.html")
