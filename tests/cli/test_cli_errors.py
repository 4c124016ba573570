"""How commands fail: exit status, one line with a hint, JSON, traceback on request."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploykit.cli.main import COMMANDS, main
from deploykit.errors import DataError

Deploykit = Callable[..., Any]


def broken(*_: object, **__: object) -> None:
    raise KeyError("a mistake")


def test_without_a_command_the_help_is_shown(deploykit: Deploykit) -> None:
    done = deploykit()
    assert done.code == 2
    assert all(name in done.err for name in COMMANDS)


def test_the_version_is_a_result(deploykit: Deploykit) -> None:
    done = deploykit("--version")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("deploykit, version ")


@pytest.mark.parametrize(("typed", "meant"), [("chek", "check"), ("quantise", "quantize"), ("benhc", "bench")])
def test_an_unknown_command_is_answered_with_the_nearest(deploykit: Deploykit, typed: str, meant: str) -> None:
    done = deploykit(typed, "x")
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: No such command '{typed}'. Did you mean '{meant}'?\n  hint: deploykit --help\n"


def test_an_unknown_command_like_no_other_gets_no_suggestion(deploykit: Deploykit) -> None:
    done = deploykit("xyzzy")
    assert (done.code, done.err) == (2, "error: No such command 'xyzzy'.\n  hint: deploykit --help\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("check",), "Missing argument 'RECIPE'."),
        (("check", "r.yaml", "--bogus"), "No such option '--bogus'."),
        (("run", "r.yaml", "--until", "deploy"), "'deploy' is not one of 'data'"),
        (("bench", "m", "--data", "d.csv", "--messages", "0"), "0 is not in the range x>=1"),
        (("parity", "a", "b", "--data", "d.csv", "--confidence", "1"), "1.0 is not in the range 0.5<x<1"),
        (("ask", "m", "hi", "--timeout", "-1"), "-1.0 is not in the range x>0"),
        (("finetune", "m", "--train", "t.csv", "-o", "o", "--seed", "-1"), "-1 is not in the range"),
        (("quantize", "nowhere", "--data", "d.csv", "-o", "o"), "Directory 'nowhere' does not exist."),
        (("export", "nowhere", "-o", "o"), "Directory 'nowhere' does not exist."),
        (("package", "nowhere"), "Directory 'nowhere' does not exist."),
    ],
)
def test_a_wrong_call_is_one_line_and_where_help_is(
    deploykit: Deploykit, arguments: tuple[str, ...], said: str
) -> None:
    done = deploykit(*arguments)
    assert (done.code, done.out) == (2, "")
    error, hint = done.err.splitlines()
    assert error.startswith("error: ")
    assert said in error
    assert hint == f"  hint: deploykit {arguments[0]} --help"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--worker",), "a worker needs a study"),
        (("--worker", "--study", "study.log", "--until", "prune"), "no --until"),
        (("--worker", "--study", "study.log", "--from", "prune"), "no --from"),
    ],
)
def test_a_worker_of_a_run_does_one_thing(deploykit: Deploykit, arguments: tuple[str, ...], said: str) -> None:
    done = deploykit("run", "recipe.yaml", *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "hint: " in done.err


def test_every_wrong_setting_of_a_stage_is_named_at_once(deploykit: Deploykit) -> None:
    done = deploykit("finetune", "m", "--train", "t.csv", "-o", "o", "--epochs", "-1", "--weight-decay", "2")
    assert done.code == 2
    assert "--epochs: " in done.err
    assert "--weight-decay: " in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("quantize", ".", "--data", "d.csv", "--scheme", "int8_dynamic", "--smooth", "always"), "needs static scales"),
        (("prune", ".", "--train", "t.csv", "--speedup", "2", "--epochs", "1", "--qat-epochs", "2"), "(2) must not be"),
        (("prune", ".", "--train", "sample:support/train", "--speedup", "2", "--worker"), "give --study"),
    ],
)
def test_options_that_contradict_each_other_are_refused_in_one_line(
    deploykit: Deploykit, arguments: tuple[str, ...], said: str
) -> None:
    done = deploykit(*arguments, "-o", "out")
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert not Path("out").exists()


@pytest.mark.parametrize("validation", ["0.9", "0", "-0.1", "1e3", "nan"])
def test_a_fraction_to_hold_out_has_to_leave_most_of_the_rows(deploykit: Deploykit, validation: str) -> None:
    done = deploykit("finetune", "m", "--train", "t.csv", "-o", "o", "--validation", validation)
    assert done.code == 2
    assert done.err.startswith(f"error: --validation {validation}: a fraction is above 0 and at most 0.5\n")


def test_a_recipe_that_is_not_there(deploykit: Deploykit) -> None:
    done = deploykit("run", "nope.yaml")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: nope.yaml: no such file\n  hint: `deploykit init DIR` writes a recipe that runs\n"


@pytest.mark.parametrize("command", ["run", "check"])
def test_row_32_a_data_file_that_is_not_there_is_named(deploykit: Deploykit, recipe: Path, command: str) -> None:
    done = deploykit(command, str(recipe), "-s", "data.train=gone.csv")
    assert done.code == 1
    assert done.err.startswith("error: gone.csv: no such file\n  hint: ")
    assert not (recipe.parent / "model_repository").exists()


@pytest.mark.parametrize(
    ("arguments", "code"), [(("run", "nope.yaml", "--json"), 2), (("frobnicate", "--json"), 2), (("init", "--json"), 2)]
)
def test_with_json_an_error_is_an_object_on_stdout_too(
    deploykit: Deploykit, arguments: tuple[str, ...], code: int
) -> None:
    done = deploykit(*arguments)
    assert done.code == code
    assert set(done.json) == {"error", "hint", "exit_code"}
    assert done.json["exit_code"] == code
    assert f"error: {done.json['error']}\n" in done.err


def test_an_error_without_a_hint_is_one_line(
    deploykit: Deploykit, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DataError("row 7 is blank")

    monkeypatch.setattr("deploykit.pipeline.run.run_recipe", fail)
    done = deploykit("run", str(recipe), "--json")
    assert (done.code, done.err) == (1, "error: row 7 is blank\n")
    assert done.json == {"error": "row 7 is blank", "hint": None, "exit_code": 1}


def test_a_bug_says_so_and_how_to_report_it(
    deploykit: Deploykit, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploykit.pipeline.run.run_recipe", broken)
    done = deploykit("run", str(recipe), "--json")
    assert done.code == done.json["exit_code"] == 70
    assert done.err.splitlines() == [
        "bug: KeyError: 'a mistake'",
        "  hint: run it again as `deploykit --debug ...` and report the traceback",
    ]


def test_row_3_a_full_disk_is_no_bug_wherever_it_shows(
    deploykit: Deploykit, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 67968 vs 67856")

    monkeypatch.setattr("deploykit.pipeline.run.run_recipe", full)
    done = deploykit("run", str(recipe), "--json")
    assert done.code == done.json["exit_code"] == 1
    assert done.err.splitlines()[-1] == "  hint: free some space and run it again"


def test_debug_shows_the_traceback_and_changes_nothing_else(
    deploykit: Deploykit, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Traceback" not in deploykit("check", "nope.yaml").err
    done = deploykit("--debug", "check", "nope.yaml")
    assert done.code == 2
    assert "Traceback (most recent call last)" in done.err
    assert done.err.endswith("error: nope.yaml: no such file\n  hint: `deploykit init DIR` writes a recipe that runs\n")
    monkeypatch.setattr("deploykit.pipeline.run.run_recipe", broken)
    done = deploykit("--debug", "run", str(recipe))
    assert done.code == 70
    assert "in broken" in done.err


def test_main_runs_in_a_thread_that_may_not_set_signal_handlers(capsys: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["--version"])))
    thread.start()
    thread.join()
    assert codes == [0]
    assert "deploykit" in capsys.readouterr().out


def test_main_gives_the_signal_handler_back(deploykit: Deploykit) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert deploykit("--version").code == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_row_29_an_interrupted_command_with_json_says_so(
    deploykit: Deploykit, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deploykit.pipeline.run.run_recipe", interrupt)
    done = deploykit("run", str(recipe), "--json")
    assert done.code == done.json["exit_code"] == 130
    assert done.json["hint"] == "the same command goes on from here"
    monkeypatch.setattr("deploykit.pipeline.doctor.examine", interrupt)
    assert deploykit("doctor").err.strip() == "interrupted"
