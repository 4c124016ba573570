"""What only a process of its own shows: signals, closed pipes, completion."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit.cli.main import COMMANDS

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
LONG_RUN = """
import sys, time
import deploykit.pipeline.run as run
from deploykit.cli import main

def run_recipe(*_, **__):
    print("running", flush=True)
    time.sleep(60)

run.run_recipe = run_recipe
sys.exit(main(["run", sys.argv[1]]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_row_29_an_interrupted_run_says_that_it_goes_on(number: signal.Signals) -> None:
    command = [sys.executable, "-c", LONG_RUN, str(RECIPE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "interrupted\n  hint: the same command goes on from here"


def run_into_closed_pipe(*arguments: str, closed: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose stdout, or stderr, nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {closed: writing}
    try:
        return subprocess.run(
            [sys.executable, "-m", "deploykit", *arguments], **streams, text=True, timeout=120, check=False
        )  # type: ignore[call-overload]
    finally:
        os.close(writing)


@pytest.mark.parametrize(
    "arguments",
    [("schema",), ("--help",), ("check", str(RECIPE)), ("check", str(RECIPE), "--json"), ("check", "no", "--json")],
)
def test_a_closed_stdout_is_met_quietly(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = run_into_closed_pipe(*arguments, closed="stdout")
    assert done.returncode == 1
    assert "Broken" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_stderr_is_met_quietly() -> None:
    done = run_into_closed_pipe("check", "nope.yaml", closed="stderr")
    assert (done.returncode, done.stdout) == (1, "")  # 120 would be Python's own failure to flush


def completed(shell: str, words: str) -> str:
    position = "" if shell == "fish" else str(len(words.split(" ")) - 1)
    variables = {"_DEPLOYKIT_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": position}
    done = subprocess.run(
        [sys.executable, "-m", "deploykit"],
        env=os.environ | variables, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_command_is_completed(shell: str) -> None:
    offered = completed(shell, "deploykit ")
    assert all(name in offered.split() or f",{name}" in offered for name in COMMANDS)


def test_options_and_their_choices_are_completed() -> None:
    assert "plain,--until" in completed("bash", "deploykit run --un")
    assert "plain,finetune" in completed("bash", "deploykit run --until fi")


def test_the_arguments_of_an_unknown_command_are_not_completed() -> None:
    assert "Traceback" not in completed("bash", "deploykit nonesuch ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_one_for_deploykit(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploykit", "completion", shell],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert f"_DEPLOYKIT_COMPLETE={shell}_complete" in done.stdout
    if interpreter := shutil.which(shell):
        subprocess.run([interpreter, "-n"], input=done.stdout, text=True, timeout=60, check=True)
