"""A baseline that is written, compared with, refused elsewhere, and measured again: on a tiny model, verdicts aside."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploykit.cli.main import main
from deploykit.errors import ExitCode

VERDICTS = {ExitCode.PASS, ExitCode.LATENCY_REGRESSED, ExitCode.INCONCLUSIVE}


@pytest.fixture
def made(exported: Callable[[str], Any], toy_data: Any, write_csv: Any, tmp_path: Path) -> tuple[Path, Path, Path]:
    """The model's folder, the messages, and a baseline of both."""
    folder = shutil.copytree(exported("bert").folder, tmp_path / "old")
    data, baseline = write_csv(tmp_path / "data.csv", toy_data.test), tmp_path / "baseline.json"
    code = main(
        ["bench", str(folder), "--data", str(data), "--messages", "60", "--blocks", "4", "--threads", "1",
         "--save-baseline", str(baseline), "--version-name", "v1", "--json"]
    )  # fmt: skip
    assert code == 0
    return folder, data, baseline


def compare(old: Path, new: Path, data: Path, *more: str) -> int:
    return main(
        ["compare", str(old), str(new), "--data", str(data), "--budget", "3", "--threads", "1", "--json", *more]
    )


def test_a_new_artefact_is_compared_with_a_baseline_and_with_the_old_one_again(
    made: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data, baseline = made
    new = shutil.copytree(folder, tmp_path / "new")
    capsys.readouterr()
    assert compare(baseline, new, data) in VERDICTS
    from_file = json.loads(capsys.readouterr().out)
    assert compare(baseline, new, data, "--rebase", str(folder)) in VERDICTS
    again = json.loads(capsys.readouterr().out)
    assert (from_file["live"], again["live"]) == (False, True)
    assert set(from_file["metrics"]) == set(again["metrics"])


def test_row_62_a_baseline_of_another_machine_or_artefact_is_refused(
    made: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data, baseline = made
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    assert compare(baseline, folder, data, "--rebase", str(other)) == ExitCode.ERROR
    assert "is not what" in capsys.readouterr().err
    elsewhere = json.loads(baseline.read_text())
    elsewhere["machine"]["cpu"] = "another processor"
    baseline.write_text(json.dumps(elsewhere))
    assert compare(baseline, folder, data) == ExitCode.ERROR
    assert "--rebase OLD" in capsys.readouterr().err
    assert compare(baseline, other, data, "--rebase", str(folder)) in VERDICTS  # measured again, here
    assert compare(folder, other, data, "--rebase", str(folder)) == ExitCode.USAGE
