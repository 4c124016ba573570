"""Baselines: what they hold, and where they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploykit.errors import LatencyError
from deploykit.latency.baseline import Baseline, check_baseline, read_baseline

MACHINE = {"cpu": "a", "versions": {"onnxruntime": "1.2"}}
SETTINGS: dict[str, Any] = {"threads": 1, "runner": "onnxruntime"}


def test_it_comes_back_from_its_file(baseline: Baseline, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(baseline.model_dump_json())
    assert read_baseline(path) == baseline
    figure = baseline.metrics["p50"]
    assert figure.low < figure.value < figure.high
    assert figure.n == 600


def test_where_nothing_differs_it_holds(baseline: Baseline) -> None:
    check_baseline(baseline, settings=SETTINGS, data="def", machine=MACHINE)


@pytest.mark.parametrize(
    ("settings", "data", "machine", "named"),
    [
        (SETTINGS, "def", MACHINE | {"cpu": "b"}, r"cpu \(a then, b now\)"),
        (SETTINGS, "def", MACHINE | {"versions": {"onnxruntime": "1.3"}}, "onnxruntime 1.2 then, onnxruntime 1.3 now"),
        (SETTINGS | {"threads": 2}, "def", MACHINE, r"threads \(1 then, 2 now\)"),
        (SETTINGS | {"server": "grpc://h:1"}, "def", MACHINE, r"server \(None then, grpc://h:1 now\)"),
        (SETTINGS, "other", MACHINE, "the messages"),
    ],
)
def test_row_62_a_baseline_from_elsewhere_is_refused(
    baseline: Baseline, settings: dict[str, Any], data: str, machine: dict[str, Any], named: str
) -> None:
    with pytest.raises(LatencyError, match=named) as caught:
        check_baseline(baseline, settings=settings, data=data, machine=machine)
    assert "--rebase" in (caught.value.hint or "")


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"metrics": {}}, {"surprise": 1}, {"stolen": 2}])
def test_a_file_that_is_none_is_refused(baseline: Baseline, tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(baseline.model_dump(mode="json") | change))
    with pytest.raises(LatencyError, match="no baseline of this version"):
        read_baseline(path)


def test_a_file_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(LatencyError, match=r"absent\.json can't be read"):
        read_baseline(tmp_path / "absent.json")
