"""Work shared among processes through one study file: all of it done, nothing lost with a process that goes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deploykit.compress.search import choice_of, name_of
from deploykit.errors import MissingDependencyError, UsageError
from deploykit.events import ignore
from deploykit.pipeline import study as studies
from deploykit.pipeline.study import open_study

KEY = "0123456789abcdef0123"
WORKER = """
import sys, time
from deploykit.events import ignore
from deploykit.pipeline.study import open_study

def do(name):
    print(name, flush=True)
    time.sleep(0.3)
    return {"loss": float(name), "metric": 0.5}

print("ready", flush=True)
open_study(sys.argv[1], sys.argv[2], ignore, join=True).work(do)
"""


@pytest.fixture(params=["sqlite:///{}/study.db", "{}/study.log"], ids=["sqlite", "journal"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    pytest.importorskip("optuna")
    return str(request.param).format(tmp_path)


def test_two_processes_share_the_work_of_one_study(url: str) -> None:
    study, names = open_study(url, KEY, ignore), [str(number) for number in range(8)]
    mine: list[str] = []

    def do(name: str) -> Mapping[str, Any]:
        mine.append(name)
        time.sleep(0.3)
        return {"loss": float(name), "metric": 0.5}

    with subprocess.Popen([sys.executable, "-c", WORKER, url, KEY], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        results = study.share(names, do)
        study.close()
        theirs = worker.stdout.read().split()
    assert worker.returncode == 0
    assert {name: found["loss"] for name, found in results.items()} == {name: float(name) for name in names}
    assert sorted([*mine, *theirs]) == names, "each once, by one of them"
    assert theirs, "the other process took part"


def test_what_is_known_already_is_not_done_again(url: str) -> None:
    def do(name: str) -> Mapping[str, Any]:
        return {"loss": 1.0, "metric": None}

    open_study(url, KEY, ignore).share(["a", "b"], do)

    def refuse(name: str) -> Mapping[str, Any]:
        raise AssertionError(name)

    assert set(open_study(url, KEY, ignore).share(["a", "b"], refuse)) == {"a", "b"}


def test_what_a_process_took_and_left_is_done_here(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "_LEAST_S", 0.2)
    monkeypatch.setattr(studies, "_PATIENCE", 1.0)
    said: list[Any] = []
    owner = open_study(url, KEY, said.append)
    other = open_study(url, KEY, ignore, join=True)
    owner._study.enqueue_trial({}, user_attrs={"work": "a"})
    other._study.ask()  # and dies
    results = owner.share(["a", "b"], lambda name: {"loss": 2.0, "metric": None})
    assert set(results) == {"a", "b"}
    assert any("done here" in event.message for event in said)


def test_work_that_fails_elsewhere_is_done_here(url: str) -> None:
    owner, other = open_study(url, KEY, ignore), open_study(url, KEY, ignore, join=True)
    owner._study.enqueue_trial({}, user_attrs={"work": "a"})

    def fail(name: str) -> Mapping[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        other.work(fail)
    assert owner.share(["a"], lambda name: {"loss": 2.0, "metric": None})["a"]["loss"] == 2.0


def test_a_worker_with_other_data_or_settings_is_refused(url: str) -> None:
    open_study(url, KEY, ignore)
    with pytest.raises(UsageError, match="no study of this model, data and settings") as caught:
        open_study(url, KEY[::-1], ignore, join=True)
    assert "\n" not in caught.value.message
    assert KEY[:16] in caught.value.message


def test_a_worker_goes_when_there_is_nothing_to_do(url: str) -> None:
    open_study(url, KEY, ignore)
    assert open_study(url, KEY, ignore, join=True).work(lambda name: {}, idle_s=0.1) == 0


def test_a_storage_that_can_not_be_opened_is_said_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    with pytest.raises(UsageError, match="--study can't be opened") as caught:
        open_study(f"sqlite:///{tmp_path}/no/such/folder/study.db", KEY, ignore)
    assert "\n" not in caught.value.message


def test_without_optuna_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingDependencyError, match="--study needs Optuna") as caught:
        open_study("sqlite:///study.db", KEY, ignore)
    assert caught.value.hint == "pip install 'deploykit[search]'"


def test_a_choice_comes_back_from_its_name() -> None:
    choice = [(4, 64), None, (12, 1536)]
    assert name_of(choice) == "4.64-x-12.1536"
    assert choice_of(name_of(choice)) == choice
