"""`deploykit compare` and the load scenarios of `deploykit bench`: exit codes, JSON, Markdown, JUnit, usage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from deploykit.latency.comparison import Comparison
from deploykit.latency.load import LoadResult, judge_load
from deploykit.latency.paired import Measured
from deploykit.latency.ratios import METRICS, Metric, Ratio
from deploykit.latency.regression import Rule, judge
from deploykit.latency.scenarios import Tried

Deploykit = Callable[..., Any]
FACTORS = {"pass": 1.0, "fail": 1.3, "inconclusive": 1.0}
ERRORS = {"pass": 0.005, "fail": 0.005, "inconclusive": 0.2}


def comparison(outcome: str, rule: Rule, *, live: bool = True) -> Comparison:
    def ratio(metric: Metric) -> Ratio:
        log = float(np.log(FACTORS[outcome]))
        return Ratio(metric, 2.0, 2.0 * FACTORS[outcome], log, ERRORS[outcome], 1000, 40, 4)

    ratios = {metric: ratio(metric) for metric in METRICS}
    ratios["p99"] = replace(ratios["p99"], log=0.0, error=0.3)
    return Comparison(judge(ratios, rule), Measured((), 12.0, 0.25, (1.0,)), live)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """`compare_alone` that answers with the outcome that the old side is called; how it was called."""
    calls: list[dict[str, Any]] = []

    def compare_alone(old: str, new: str, **arguments: Any) -> Comparison:
        calls.append(arguments)
        return comparison(old, arguments["rule"])

    monkeypatch.setattr("deploykit.pipeline.latency.compare_alone", compare_alone)
    return calls


@pytest.mark.parametrize(("outcome", "code"), [("pass", 0), ("fail", 4), ("inconclusive", 5)])
def test_the_exit_status_is_the_verdict(
    deploykit: Deploykit, compared: list[dict[str, Any]], outcome: str, code: int
) -> None:
    done = deploykit("compare", outcome, "new", "--data", "d.csv")
    assert done.code == code
    assert f"verdict: {outcome}" in done.out
    assert "25% of the CPU time stolen" in done.out
    assert "noise floor: a slow-down of less than" in done.out
    found = deploykit("compare", outcome, "new", "--data", "d.csv", "--json")
    assert (found.code, found.json["verdict"], found.json["exit_code"]) == (code, outcome, code)
    assert set(found.json["metrics"]) == set(METRICS)
    assert (found.json["needed_s"] is None) == (outcome != "inconclusive")


def test_inconclusive_says_what_it_would_take(deploykit: Deploykit, compared: list[dict[str, Any]]) -> None:
    assert "--budget" in deploykit("compare", "inconclusive", "new", "--data", "d.csv").out


def test_a_pass_says_what_it_does_not_claim(deploykit: Deploykit, compared: list[dict[str, Any]]) -> None:
    assert "nothing is claimed for p99" in deploykit("compare", "pass", "new", "--data", "d.csv").out


@pytest.mark.parametrize(("margin", "value"), [("10%", 0.10), ("0.03", 0.03), (" 7.5 %", 0.075)])
def test_a_margin_is_a_share(deploykit: Deploykit, compared: list[dict[str, Any]], margin: str, value: float) -> None:
    deploykit("compare", "pass", "new", "--data", "d.csv", "--margin", margin, "--require", "p99", "--require", "p50")
    assert compared[0]["rule"].margin == pytest.approx(value)
    assert compared[0]["rule"].required == ("p50", "p99")


@pytest.mark.parametrize("margin", ["0", "-1", "300", "ten", "0%"])
def test_other_margins_are_refused(deploykit: Deploykit, compared: list[dict[str, Any]], margin: str) -> None:
    done = deploykit("compare", "pass", "new", "--data", "d.csv", f"--margin={margin}")
    assert done.code == 2
    assert "5%" in done.err


def test_markdown_and_junit_are_written(deploykit: Deploykit, compared: list[dict[str, Any]], tmp_path: Path) -> None:
    for outcome, failures, skipped in (("pass", 0, 1), ("fail", 3, 1), ("inconclusive", 0, 3)):
        files = {name: tmp_path / f"{outcome}.{name}" for name in ("md", "xml")}
        arguments = ["--summary", str(files["md"]), "--junit", str(files["xml"])]
        deploykit("compare", outcome, "<new>", "--data", "d.csv", *arguments)
        markdown = files["md"].read_text()
        assert markdown.startswith(f"### Latency: {outcome}")
        assert markdown.count("\n| ") == 2 + len(METRICS)
        suite = ElementTree.fromstring(files["xml"].read_text())
        assert len(suite.findall("testcase")) == len(METRICS)
        assert len(suite.findall("testcase/failure")) == int(suite.attrib["failures"]) == failures
        assert len(suite.findall("testcase/skipped")) == skipped
        assert len(suite.findall("testcase/error")) == (outcome == "inconclusive")


def test_a_model_that_is_not_there_is_named(deploykit: Deploykit) -> None:
    done = deploykit("compare", "nowhere", "neither", "--data", "sample:support/test")
    assert done.code == 2
    assert "neither is not there" in done.err


def tried(p99_limit_ms: float | None, slow: int = 0) -> Tried:
    latencies = np.r_[np.full(2000 - slow, 5.0), np.full(slow, 90.0)]
    result = LoadResult("server", 100.0, 20.0, latencies, latencies, np.zeros(2000), flags=("the cache is on",))
    return Tried(100.0, result, judge_load(result, p99_limit_ms=p99_limit_ms))


@pytest.mark.parametrize(("slow", "code", "verdict"), [(0, 0, "pass"), (500, 4, "fail"), (15, 5, "inconclusive")])
def test_a_run_under_load_ends_with_its_verdict(
    deploykit: Deploykit, monkeypatch: pytest.MonkeyPatch, slow: int, code: int, verdict: str
) -> None:
    monkeypatch.setattr("deploykit.pipeline.latency.load_alone", lambda *_, **__: (None, (tried(20.0, slow),)))
    arguments = ("bench", "m", "--data", "d.csv", "--scenario", "server", "--rate", "100", "--hourly-price", "3.6")
    done = deploykit(*arguments)
    assert done.code == code
    assert "flag: the cache is on" in done.out
    found = deploykit(*arguments, "--json").json
    assert (found["verdict"], found["runs"][0]["n"]) == (verdict, 2000)
    assert found["runs"][0]["cost_per_million"] == pytest.approx(10)  # 100 a second at 0.001 a second


def test_a_search_in_which_nothing_held_fails(deploykit: Deploykit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploykit.pipeline.latency.load_alone", lambda *_, **__: (None, (tried(1.0),)))
    assert deploykit("bench", "m", "--data", "d.csv", "--scenario", "server", "--p99", "1").code == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ("bench",),
        ("bench", "m"),
        ("bench", "a", "b", "--data", "d.csv", "--scenario", "server", "--rate", "1"),
        ("bench", "a", "b", "--data", "d.csv", "--save-baseline", "b.json"),
        ("bench", "a", "--history", "baselines"),
    ],
)
def test_what_can_not_be_asked_is_refused(deploykit: Deploykit, arguments: tuple[str, ...]) -> None:
    assert deploykit(*arguments).code == 2


def test_history_of_nothing_is_an_error(deploykit: Deploykit, tmp_path: Path) -> None:
    done = deploykit("bench", "--history", str(tmp_path))
    assert (done.code, "holds no baseline" in done.err) == (1, True)


CURVE = ("bench", "grpc://h:1/m", "--data", "d.csv", "--concurrency", "1,2,4")


def test_clients_at_once_are_a_curve_in_the_terminal_and_on_a_page(
    deploykit: Deploykit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def load_alone(*_: Any, concurrency: tuple[int, ...], **__: Any) -> Any:
        split = {"client": 0.5, "network": 0.5, "queue": 1.0, "batch_wait": 0.0, "compute": 3.0}
        runs = []
        for clients in concurrency:
            latencies = np.full(100 * clients, 5.0)
            result = LoadResult("closed", 0, 1.0, latencies, latencies, np.zeros(len(latencies)), split_ms=split)
            result = replace(result, clients=clients)
            runs.append(Tried(result.answered_per_s, result, judge_load(result)))
        return None, tuple(runs)

    monkeypatch.setattr("deploykit.pipeline.latency.load_alone", load_alone)
    done = deploykit(*CURVE, "--page", str(tmp_path / "curve.html"))
    assert done.code == 0
    bars = [line.count("█") for line in done.out.splitlines() if "█" in line]
    assert bars == [10, 20, 40]
    assert "batch wait 0.00, compute 3.00 ms" in done.out
    page = (tmp_path / "curve.html").read_text()
    assert page.count("<polyline") == 3
    found = deploykit(*CURVE, "--json").json
    assert [run["clients"] for run in found["runs"]] == [1, 2, 4]
    assert [run["answered_per_s"] for run in found["runs"]] == [100, 200, 400]
    assert found["runs"][0]["split_ms"]["compute"] == 3.0


@pytest.mark.parametrize("numbers", ["", "0", "1,x", "-2", "1,99999"])
def test_other_numbers_of_clients_are_refused(deploykit: Deploykit, numbers: str) -> None:
    done = deploykit("bench", "grpc://h:1/m", "--data", "d.csv", f"--concurrency={numbers}")
    assert (done.code, "as in 1,2,4,8" in done.err) == (2, True)


def test_clients_of_a_model_in_process_are_refused(deploykit: Deploykit, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    done = deploykit("bench", "m.onnx", "--data", "sample:support/test", "--concurrency", "2")
    assert (done.code, "is no server" in done.err) == (2, True)


@pytest.mark.parametrize("more", [("--scenario", "offline"), ("--concurrency", "2"), ("--save-baseline", "b.json")])
def test_lengths_are_for_one_message_at_a_time(deploykit: Deploykit, more: tuple[str, ...]) -> None:
    done = deploykit("bench", "m", "--data", "sample:support/test", "--lengths", "16,64", *more)
    assert (done.code, "--lengths is for one message at a time" in done.err) == (2, True)


@pytest.mark.parametrize("numbers", ["2", "16,x", ""])
def test_lengths_that_no_message_has_are_refused(deploykit: Deploykit, numbers: str) -> None:
    done = deploykit("bench", "m", "--data", "d.csv", f"--lengths={numbers}")
    assert (done.code, "as in 3,6,12,24" in done.err) == (2, True)


def test_lengths_need_a_tokenizer_at_hand(deploykit: Deploykit, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    target = str(tmp_path / "model.onnx")
    done = deploykit("bench", target, "--data", "sample:support/test", "--lengths", "16")
    assert (done.code, "no tokenizer at hand" in done.err) == (2, True)


def test_a_scenario_and_numbers_of_clients_exclude_each_other(deploykit: Deploykit) -> None:
    assert deploykit(*CURVE, "--scenario", "offline").code == 2
