"""Latency over versions: what belongs together, and where it changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deploykit.errors import LatencyError
from deploykit.latency.baseline import Baseline
from deploykit.latency.history import history_of, read_history, sparkline
from deploykit.report.history_page import history_page

Make = Callable[..., Baseline]


@pytest.fixture
def version(baseline: Baseline) -> Make:
    def make(number: int, p50_ms: float, *, cpu: str = "a", drift: float = 0.01) -> Baseline:
        figure = baseline.metrics["p50"].model_copy(
            update={"value": p50_ms, "low": p50_ms * 0.98, "high": p50_ms * 1.02, "error": 0.005, "drift": drift}
        )
        return baseline.model_copy(
            update={
                "version": f"v{number}",
                "created": f"2026-01-{number:02}T00:00:00+00:00",
                "metrics": baseline.metrics | {"p50": figure},
                "machine": {"cpu": cpu},
            }
        )

    return make


def test_changes_are_marked_once_and_noise_is_not(version: Make) -> None:
    values = [1.0, 1.01, 0.99, 1.3, 1.31, 1.29, 1.0]
    found = history_of([version(number, value) for number, value in enumerate(values, 1)])
    assert [each.label for each in found.versions if each.changed is not None] == ["v4", "v7"]
    assert found.versions[3].changed == pytest.approx(1.3, rel=0.01)


def test_a_session_that_drifted_is_no_change(version: Make) -> None:
    assert history_of([version(1, 1.0), version(2, 1.3, drift=0.3)]).versions[1].changed is None


def test_other_machines_are_left_out_and_counted(version: Make) -> None:
    found = history_of([version(3, 1.0), version(1, 9.0, cpu="b"), version(2, 1.0)])
    assert [each.label for each in found.versions] == ["v2", "v3"]
    assert found.elsewhere == 1


def test_a_folder_and_a_file_of_lines_are_read_alike(version: Make, tmp_path: Path) -> None:
    both = [version(1, 1.0), version(2, 2.0)]
    (tmp_path / "folder").mkdir()
    for number, each in enumerate(both):
        (tmp_path / "folder" / f"{number}.json").write_text(each.model_dump_json(indent=1))
    (tmp_path / "lines").write_text("\n".join(each.model_dump_json() for each in both) + "\n")
    assert read_history(tmp_path / "folder") == read_history(tmp_path / "lines") == both


def test_what_is_no_baseline_is_named_with_its_line(version: Make, tmp_path: Path) -> None:
    (tmp_path / "lines").write_text(version(1, 1.0).model_dump_json() + "\n{}\n")
    with pytest.raises(LatencyError, match="line 2"):
        read_history(tmp_path / "lines")
    with pytest.raises(LatencyError, match="holds no baseline"):
        read_history(tmp_path)


def test_a_sparkline_goes_from_the_least_to_the_greatest() -> None:
    assert sparkline([1, 2, 8]) == "▁▂█"
    assert sparkline([3, 3]) == "▁▁"


def test_the_page_loads_nothing_and_escapes_names(version: Make) -> None:
    page = history_page(history_of([version(1, 1.0), version(2, 1.5).model_copy(update={"version": "<v2>"})]))
    assert "&lt;v2&gt;" in page
    assert "<v2>" not in page
    assert "1.50x" in page
    assert "http" not in page
    assert "src=" not in page
