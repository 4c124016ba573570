"""Tuning against made-up servers: what is searched, kept, delivered, and what happens where nothing holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.errors import LatencyError
from deploykit.latency.load import LoadResult
from deploykit.latency.tune_history import Point, Trial, TuneHistory, settings_words
from deploykit.pipeline import tune
from deploykit.pipeline.tune import TuneRule, candidates, tune_package
from deploykit.report.tune_report import tune_json, tune_lines, tune_page
from deploykit.runners import Target
from deploykit.triton.package import PackageSettings

START = PackageSettings(layout="call")
RULE = TuneRule(p99_ms=20.0, trials=10)
SPLIT = {"client": 0.1, "network": 0.3, "queue": 0.5, "batch_wait": 0.0, "compute": 4.0}
Capacity = Callable[[PackageSettings], float]


def capacity(settings: PackageSettings) -> float:
    """One thread for an instance, two instances, and holding is best: 4.5 times what is in use."""
    rate = 200.0 * (2.0 if settings.layout == "hold" else 1.0)
    rate *= {1: 1.5, 2: 1.0}.get(settings.threads, 0.8)
    rate *= {1: 1.0, 2: 1.5}.get(settings.instances, 1.2)
    return rate / (1 + settings.queue_delay_us / 5000)


def trial_of(settings: PackageSettings, holds: float) -> Trial:
    points = [
        Point(rate, rate, 10.0 if rate <= holds else 40.0, "pass" if rate <= holds else "fail", 1000, SPLIT)
        for rate in (holds * 0.8, holds, holds * 1.3)
    ]
    return Trial(settings, tuple(points))


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Callable[[Capacity], list[PackageSettings]]:
    """Servers that hold a rate by a formula; what was measured, and what was written under None."""

    def make(holds: Capacity) -> list[PackageSettings]:
        measured: list[PackageSettings] = []

        class Bench:
            def __init__(self, *arguments: Any) -> None: ...

            def measure(self, settings: PackageSettings, near_per_s: float | None) -> Trial:
                measured.append(settings)
                rate = holds(settings)
                if rate > 0:
                    return trial_of(settings, rate)
                return Trial(settings, (Point(10.0, 10.0, -rate, "fail", 700, SPLIT),))

        monkeypatch.setattr(tune, "_Bench", Bench)
        monkeypatch.setattr(tune, "read_settings", lambda *_: START)
        monkeypatch.setattr(tune, "can_hold", lambda *_: True)
        monkeypatch.setattr(tune, "usable_cores", lambda: 2)
        monkeypatch.setattr(tune, "digest_tree", lambda path: {"a": "b"})
        monkeypatch.setattr(tune, "apply_settings", lambda _, name, settings: written.append(settings))
        return measured

    written.clear()
    return make


written: list[PackageSettings] = []


def search(tmp_path: Path, rule: TuneRule = RULE) -> Any:
    return tune_package(tmp_path, "m", ["hello"], rule, history=tmp_path / "history.jsonl")


def test_few_trials_find_nearly_the_best_and_write_it(made_up: Any, tmp_path: Path) -> None:
    measured = made_up(capacity)
    tuned = search(tmp_path)
    best = max(capacity(each) for each in candidates(START, 20.0, 2, hold=True))
    assert measured[0] == START
    assert len(tuned.trials) <= RULE.trials < len(candidates(START, 20.0, 2, hold=True)) / 5
    assert tuned.best.best_per_s >= 0.85 * best
    assert written == [tuned.best.settings]
    assert (tuned.met, tuned.written) == (True, True)
    assert tuned.before.settings == START


def test_a_search_that_was_cut_off_goes_on_and_measures_nothing_twice(made_up: Any, tmp_path: Path) -> None:
    measured = made_up(capacity)
    first = search(tmp_path, TuneRule(20.0, trials=3))
    with (tmp_path / "history.jsonl").open("a") as stream:
        stream.write('{"key": "torn')
    count = len(measured)
    again = search(tmp_path, TuneRule(20.0, trials=5))
    assert again.trials[:3] == first.trials
    new = measured[count:-4]  # the last four are the measurements at the end
    assert len(again.trials) == 5
    assert not {trial.settings for trial in first.trials} & set(new)


def test_trials_of_another_limit_do_not_count(made_up: Any, tmp_path: Path) -> None:
    made_up(capacity)
    search(tmp_path, TuneRule(20.0, trials=2))
    assert len(search(tmp_path, TuneRule(5.0, trials=1)).trials) == 1


def test_what_does_not_beat_the_settings_in_use_is_not_written(made_up: Any, tmp_path: Path) -> None:
    made_up(lambda settings: 300.0 if settings == START else 100.0)
    tuned = search(tmp_path, TuneRule(20.0, trials=5))
    assert (tuned.best.settings, tuned.written, written) == (START, False, [])


def test_where_nothing_holds_the_nearest_is_delivered_and_it_says_what_would_have_to_give(
    made_up: Any, tmp_path: Path
) -> None:
    made_up(lambda settings: -30.0 if settings.layout == "hold" else -60.0)
    tuned = search(tmp_path)
    assert not tuned.met
    assert tuned.best.settings.layout == "hold"
    assert written == [tuned.best.settings]
    words = "\n".join(tune_lines(tuned, 20.0))
    assert "no settings hold p99 below 20 ms" in words
    assert "--p99 36ms" in words
    assert "the model" in words  # compute has the greatest share


def test_what_held_and_does_not_hold_again_is_inconclusive_and_changes_nothing(made_up: Any, tmp_path: Path) -> None:
    measured = made_up(lambda settings: capacity(settings) if len(measured) <= 4 else -90.0)
    tuned = search(tmp_path, TuneRule(20.0, trials=4))
    assert (tuned.verdict, tuned.written, written) == ("inconclusive", False, [])
    assert "this machine is disturbed" in "\n".join(tune_lines(tuned, 20.0))


def test_a_rate_fails_when_it_fails_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[float, int]] = []

    def run_server(target: object, messages: object, *, rate_per_s: float, seconds: float, seed: int) -> LoadResult:
        """Holds 150 a second, keeps up with 250; the first run of all is hit by a burst."""
        ran.append((rate_per_s, seed))
        n = int(rate_per_s * seconds)
        slow = rate_per_s > 150 or len(ran) == 1
        latencies = np.full(n, 50.0 if slow else 5.0)
        took = seconds * max(1.0, rate_per_s / 250)
        return LoadResult("server", rate_per_s, took, latencies, latencies, np.zeros(n))

    monkeypatch.setattr(tune, "run_server", run_server)
    bench = tune._Bench.__new__(tune._Bench)
    bench._rule, bench._messages = TuneRule(20.0, seconds=1.0), ["hello"]
    points = bench._runs(Target("triton", "http://h:1/m"), 120.0)
    assert ran[0][0] == ran[1][0] == 120.0  # the burst
    assert ran[0][1] != ran[1][1]
    best = max(point.rate_per_s for point in points if point.outcome == "pass")
    assert 135 < best <= 150
    monkeypatch.setattr(tune, "run_server", lambda *_, **given: run_server(*_, **given | {"rate_per_s": 400.0}))
    ran.clear()
    bench._runs(Target("triton", "http://h:1/m"), 400.0)
    assert ran[0][1] == 0
    assert ran[1][1] == 1  # another rate: what can't keep up is not tried twice


def test_no_message_and_no_answer_are_errors(made_up: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(capacity)
    with pytest.raises(LatencyError, match="nothing to time"):
        tune_package(tmp_path, "m", [], RULE, history=tmp_path / "h")
    monkeypatch.setattr(tune._Bench, "measure", lambda self, settings, near: Trial(settings, ()))
    with pytest.raises(LatencyError, match="no settings gave an answer"):
        search(tmp_path, TuneRule(20.0, trials=2))


def test_a_dry_run_writes_nothing(made_up: Any, tmp_path: Path) -> None:
    made_up(capacity)
    tuned = tune_package(tmp_path, "m", ["hello"], RULE, history=tmp_path / "h", write=False)
    assert (written, tuned.written) == ([], False)


def test_candidates_are_sound() -> None:
    for cores in (1, 2, 8):
        found = candidates(START, 5.0, cores, hold=True)
        assert found[0] == START
        assert len(found) == len(set(found))
        for each in found[1:]:
            assert each.instances * each.threads <= 2 * cores
            assert each.queue_delay_us <= 1250
            assert all(size <= each.max_batch_size for size in each.preferred_batch_size)
            assert not each.preferred_batch_size or each.queue_delay_us
    assert {each.layout for each in candidates(START, 5.0, 2, hold=False)} == {"call"}
    on_gpu = PackageSettings(device="gpu", layout="call")
    assert {each.layout for each in candidates(on_gpu, 5.0, 2, hold=True)} == {"call"}


def test_a_history_keeps_the_last_of_each_settings_and_passes_over_what_it_can_not_read(tmp_path: Path) -> None:
    history = TuneHistory(tmp_path / "deep" / "h.jsonl", "key")
    assert list(history.read()) == []
    for holds in (100.0, 200.0):
        history.append(trial_of(START, holds))
    TuneHistory(history.path, "another").append(trial_of(START, 300.0))
    with history.path.open("a") as stream:
        stream.write('[1]\n{"key": "key", "trial": {"settings": 3}}\n{"key": "key", "tri')
    assert list(history.read()) == [trial_of(START, 200.0)]
    history.append(trial_of(PackageSettings(threads=1), 50.0))
    assert len(history.read()) == 2


def test_a_trial_scores_below_all_rates_where_none_held() -> None:
    assert trial_of(START, 100.0).score == 100.0
    failed = Trial(START, (Point(50.0, 50.0, 30.0, "fail", 700), Point(70.0, 50.0, None, "fail", 0)))
    assert (failed.score, failed.best_per_s, failed.lowest_p99_ms) == (25.0, None, 30.0)
    assert Trial(START, ()).score is None


def test_reports_show_the_curve(made_up: Any, tmp_path: Path) -> None:
    made_up(capacity)
    tuned = search(tmp_path)
    words = "\n".join(tune_lines(tuned, 20.0))
    assert "p99 against rate" in words
    assert f"{tuned.best.best_per_s:.0f} a second" in words
    assert "of those in use" in words
    page = tune_page("<m>", tuned, 20.0)
    assert "&lt;m&gt;" in page
    assert page.count("<polyline") == 2
    assert "(delivered)" in page
    found = json.loads(json.dumps(tune_json(tuned, 20.0)))
    assert found["best"]["settings"]["layout"] == "hold"
    assert settings_words(START) == "call, 1 instance, all threads, batches to 64"
