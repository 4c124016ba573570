"""`deploykit tune`: what it is given, exit codes, JSON, what it writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploykit.latency.tune_history import Point, Trial, Tuned
from deploykit.triton.package import PackageSettings

Deploykit = Callable[..., Any]
SETTINGS = PackageSettings(layout="hold", threads=1, queue_delay_us=300, preferred_batch_size=(4,))


def tuned(*, met: bool) -> Tuned:
    outcome: Any = "pass" if met else "fail"
    trial = Trial(SETTINGS, (Point(100.0, 99.0, 4.0 if met else 9.0, outcome, 700, {"compute": 2.0}),))
    return Tuned(trial, Trial(PackageSettings(), trial.points), (trial,), met=met, written=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Repositories with packages; what the search was asked."""
    for root, names in (("one", ["intents"]), ("two", ["intents", "orders"]), ("empty", [])):
        (tmp_path / root).mkdir()
        for name in names:
            for model in (name, f"{name}_onnx"):
                (tmp_path / root / model).mkdir()
                (tmp_path / root / model / "config.pbtxt").write_text("")
    calls: list[Any] = []

    def tune_package(repository: Path, name: str, messages: list[str], rule: Any, **_: Any) -> Tuned:
        calls.append((repository.name, name, rule.p99_ms))
        return tuned(met=rule.p99_ms >= 5)

    monkeypatch.setattr("deploykit.pipeline.tune.tune_package", tune_package)
    return calls


DATA = ("--data", "sample:support/test")


@pytest.mark.parametrize(
    ("limit", "milliseconds"), [("5ms", 5.0), ("20", 20.0), ("0.05s", 50.0), (" 7.5 ms", 7.5), ("9000us", 9.0)]
)
def test_the_limit_is_a_duration(deploykit: Deploykit, asked: list[Any], limit: str, milliseconds: float) -> None:
    done = deploykit("tune", "one", *DATA, "--p99", limit)
    assert done.code == 0, done.err
    assert asked == [("one", "intents", pytest.approx(milliseconds))]


@pytest.mark.parametrize("limit", ["fast", "0", "-5", "0ms", "5 min", "ms", "1e9s"])
def test_other_limits_are_refused(deploykit: Deploykit, asked: list[Any], limit: str) -> None:
    done = deploykit("tune", "one", *DATA, f"--p99={limit}")
    assert (done.code, "as in 5ms" in done.err, asked) == (2, True, [])


def test_a_packages_folder_names_it_too(deploykit: Deploykit, asked: list[Any]) -> None:
    for arguments in (("two/orders",), ("two/orders_onnx",), ("two", "--name", "orders")):
        assert deploykit("tune", *arguments, *DATA, "--p99", "5ms").code == 0
    assert {call[:2] for call in asked} == {("two", "orders")}


@pytest.mark.parametrize(("folder", "words"), [("two", "several packages: intents, orders"), ("empty", "no package")])
def test_a_folder_that_names_no_package_is_refused(
    deploykit: Deploykit, asked: list[Any], folder: str, words: str
) -> None:
    done = deploykit("tune", folder, *DATA, "--p99", "5ms")
    assert (done.code, words in done.err, asked) == (2, True, [])


@pytest.mark.parametrize(("limit", "code", "verdict"), [("5ms", 0, "pass"), ("4ms", 6, "fail")])
def test_the_exit_status_says_whether_a_rate_holds(
    deploykit: Deploykit, asked: list[Any], tmp_path: Path, limit: str, code: int, verdict: str
) -> None:
    page = tmp_path / "tune.html"
    done = deploykit("tune", "one", *DATA, "--p99", limit, "--page", str(page))
    assert done.code == code
    assert "package: {max_batch_size: 64, instances: 1," in done.out
    assert "preferred_batch_size: [4]" in done.out
    assert page.read_text().startswith("<!doctype html>")
    found = deploykit("tune", "one", *DATA, "--p99", limit, "--json")
    assert (found.code, found.json["verdict"], found.json["exit_code"]) == (code, verdict, code)
    assert found.json["package"]["layout"] == "hold"
    assert found.json["trials"][0]["points"][0]["rate_per_s"] == 100
