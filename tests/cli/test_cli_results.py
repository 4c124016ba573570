"""What commands print when their work is done, without doing it."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.cli.render import Screen
from deploykit.errors import ServerError
from deploykit.events import Note, Progress, StageFinished, StageStarted, Warn
from deploykit.latency.measure import Samples
from deploykit.pipeline.doctor import Finding
from deploykit.report.result import GoalOutcome
from deploykit.runners.triton_wire import ModelMetadata, TensorMetadata
from deploykit.tasks import Task
from deploykit.tasks.text_classification import Classified
from deploykit.triton.embedded import ServerUrls

Deploykit = Callable[..., Any]
Finished = Callable[..., Any]

MET = GoalOutcome(limit="speedup", wanted=6.0, reached=7.41, outcome="pass", note="7.4x at p50")
MISSED = GoalOutcome(limit="speedup", wanted=20.0, reached=7.41, outcome="fail", note="7.4x at p50")
UNDECIDED = GoalOutcome(limit="p99_ms", wanted=5.0, reached=4.9, outcome="inconclusive", note="too few messages")
FIGURES = ("19.04", "5.03", "2.57", "31.25", "91.6", "23.8", "7.4x", "3.8x")
SERVED = ("4.21", "7.72", "4.5x")


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize(
    ("wrong", "goal", "code"),
    [
        (0, (MET,), 0),
        (60, (MET,), 3),
        (9, (MET,), 5),
        (0, (UNDECIDED,), 5),
        (0, (MISSED,), 6),
        (60, (MISSED,), 3),
        (0, (MISSED, UNDECIDED), 6),
    ],
)
def test_the_exit_status_of_a_run_is_its_verdict(
    deploykit: Deploykit, finished: Finished, recipe: Path, wrong: int, goal: tuple[GoalOutcome, ...], code: int
) -> None:
    result = finished(wrong=wrong, goal=goal)
    done = deploykit("run", str(recipe))
    assert (done.code, done.err) == (code, "")
    assert f"verdict: {result.statement}" in done.out
    assert ("not published; kept in store/package" in done.out) == (code != 0)
    done = deploykit("run", str(recipe), "--json")
    assert (done.code, done.err) == (code, "")
    assert done.json == result.model_dump(mode="json")
    assert done.json["exit_code"] == code


def test_the_object_of_a_run_has_the_fields_that_stay(deploykit: Deploykit, finished: Finished, recipe: Path) -> None:
    finished()
    found = deploykit("run", str(recipe), "--json").json
    assert set(found) >= {"name", "verdict", "n", "metric", "reference", "shipped", "package", "report"}
    assert set(found["reference"]) >= {"value", "p50_ms", "p99_ms", "size_mb"}
    shipped = {"drop", "drop_upper", "discordant", "flips", "speedup", "served_p50_ms", "served_speedup"}
    assert set(found["shipped"]) >= set(found["reference"]) | shipped


def test_a_pipe_gets_whole_rows(
    deploykit: Deploykit, finished: Finished, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    finished(goal=(MET,))
    done = deploykit("run", str(recipe))
    lines = done.out.splitlines()
    shipped = next(line for line in lines if line.startswith(" What ships "))
    assert shipped.split()[2:] == ["99.75", "0.25", "0.62", "2.57", "31.25", "23.8", "7.4x"]
    assert "What ships: int8_dynamic-fused; Served: Triton, text over gRPC" in (line.strip() for line in lines)
    assert "goal speedup at least 6x: pass, 7.41x" in lines
    assert "package: model_repository/toy/1" in lines
    assert "next:    deploykit serve model_repository" in lines
    assert "\x1b" not in done.out


@pytest.mark.parametrize("columns", [30, 60, 80, 200])
@pytest.mark.parametrize("served", [True, False])
def test_a_narrow_terminal_loses_no_figure(
    deploykit: Deploykit, finished: Finished, recipe: Path, monkeypatch: pytest.MonkeyPatch, columns: int, served: bool
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    finished(served=served, goal=(MET,))
    done = deploykit("run", str(recipe))
    assert done.code == 0
    rows = without_colours(done.out).splitlines()
    words = " ".join(rows).split()
    assert set(words) >= {*FIGURES, *(SERVED if served else ())}
    assert max(len(row.rstrip()) for row in rows if "x" in row and "." in row and ":" not in row) <= max(columns, 78)
    assert "report:  store/toy.html" in rows


def test_paths_and_labels_are_shown_as_they_are(
    deploykit: Deploykit, finished: Finished, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    finished(wrong=60, folder="[bold]a :smile: folder with a name that is longer than the terminal is wide[/x]")
    done = deploykit("run", str(recipe))
    assert done.code == 3
    assert (
        "report:  [bold]a :smile: folder with a name that is longer than the terminal is wide[/x]/toy.html"
        in done.out.splitlines()
    )


@pytest.mark.parametrize("as_json", [True, False])
def test_a_run_until_a_stage_has_no_verdict(
    deploykit: Deploykit, recipe: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("deploykit.pipeline.run.run_recipe", lambda _, **given: asked.update(given))
    done = deploykit("run", str(recipe), "--until", "export", "--from", "data", *(["--json"] if as_json else []))
    assert done.code == 0
    assert (asked["until"], asked["start"]) == ("export", "data")
    if as_json:
        assert done.json == {"name": "toy", "until": "export"}
    else:
        assert done.out == "stopped behind export; the same command without --until goes on from here\n"


@pytest.mark.parametrize("as_json", [True, False])
def test_a_worker_says_how_many_models_it_trained(
    deploykit: Deploykit, recipe: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("deploykit.pipeline.run.join_run", lambda *given, **_: asked.append(given[1]) or 2)
    arguments = ("--study", "sqlite:///study.db", "--worker", *(["--json"] if as_json else []))
    done = deploykit("run", str(recipe), *arguments)
    assert (done.code, asked) == (0, ["sqlite:///study.db"])
    if as_json:
        assert done.json == {"name": "toy", "trained": 2}
    else:
        assert done.out == "trained 2 finalists of another process; nothing is written\n"


def test_events_go_to_stderr_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen() as screen:
        screen(StageStarted("export"))
        screen(Progress("export", 1, 3, "step", {"loss": 0.5}))
        screen(Note("see [/tmp/x] :smile:"))
        screen(Warn("[red] is no colour"))
        screen(StageFinished("export", 1.25, outcome="into [/bold]"))
        screen(StageFinished("data", 0.1, cached=True, outcome="12 rows"))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "export    ...",
        "see [/tmp/x] :smile:",
        "warning: [red] is no colour",
        "export    into [/bold] (1.2 s)",
        "data      12 rows (cached)",
    ]


def test_progress_is_drawn_on_a_terminal_and_gone_afterwards(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Screen() as screen:
        for done in range(1, 4):
            screen(Progress("finetune", done, 3, "step", {"loss": 0.25}))
        screen._progress.refresh()
        screen(StageFinished("finetune", 2.0, outcome="done"))
    drawn, _, after = capsys.readouterr().err.rpartition("loss 0.25")
    assert "3/3" in drawn
    assert "finetune  done (2.0 s)\n" in without_colours(drawn)
    assert "\x1b[2K" in after, "the bar stays"


@pytest.mark.parametrize(("wrong", "code"), [(0, 0), (60, 3), (9, 5)])
def test_parity_ends_with_its_verdict(
    deploykit: Deploykit, finished: Finished, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: int, code: int
) -> None:
    from deploykit.parity.report import ParityReport

    report = ParityReport.model_validate_json(Path(finished(wrong=wrong).parity).read_text())
    monkeypatch.setattr("deploykit.pipeline.alone.parity_alone", lambda *_, **__: report)
    done = deploykit("parity", "a", "b", "--data", "d.csv", "--report", "proof.json")
    assert (done.code, done.err) == (code, "")
    assert f"verdict: {report.statement} (1,200 messages)" in done.out.splitlines()
    assert ("changed: 'message 0': cancel -> other" in done.out) == (wrong > 0)
    assert ParityReport.model_validate_json((tmp_path / "proof.json").read_text()) == report
    done = deploykit("parity", "a", "b", "--data", "d.csv", "--json")
    assert (done.code, done.json) == (code, report.model_dump(mode="json"))


def test_row_5_a_report_that_can_not_be_written_is_named(
    deploykit: Deploykit, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploykit.parity.report import ParityReport

    report = ParityReport.model_validate_json(Path(finished().parity).read_text())
    monkeypatch.setattr("deploykit.pipeline.alone.parity_alone", lambda *_, **__: report)
    done = deploykit("parity", "a", "b", "--data", "d.csv", "--report", "no/where.json")
    assert done.code == 1
    assert "no/" in done.err.splitlines()[0]


def test_bench_compares_with_the_first_target(deploykit: Deploykit, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = {
        "slow[/]": Samples("slow", (np.array([10.0, 10.0]), np.array([12.0, 10.0])), 0.02),
        "fast": Samples("fast", (np.array([2.0, 2.0]), np.array([2.0, 2.0])), 0.02),
    }
    monkeypatch.setattr("deploykit.pipeline.alone.bench_alone", lambda *_, **__: timed)
    rows = deploykit("bench", *timed, "--data", "d.csv", "--json").json["targets"]
    assert [(row["target"], row["p50_ms"], row["n"], row["speedup"]) for row in rows] == [
        ("slow[/]", 10.0, 4, 1.0),
        ("fast", 2.0, 4, 5.0),
    ]
    done = deploykit("bench", *timed, "--data", "d.csv")
    assert "slow[/]" in done.out
    assert "5.0x" in done.out
    assert "4 messages per target; 2% of the CPU time stolen" in done.out
    assert "processes wanted a core before" in done.out.splitlines()[-1]


def test_bench_refuses_a_target_twice(deploykit: Deploykit) -> None:
    done = deploykit("bench", "a", "b", "a", "--data", "d.csv")
    assert (done.code, done.err.splitlines()[0]) == (2, "error: a is named twice")


class FakeClient:
    def __init__(self, url: str, *, timeout_s: float) -> None:
        self.url = url

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def metadata(self, model: str) -> ModelMetadata:
        text, *answers = (TensorMetadata(name, "BYTES", (-1, -1)) for name in ("text", "label", "score", "logits"))
        return ModelMetadata(model, ("1",), "python", (text,), tuple(answers))

    def ask(self, model: str, texts: list[str], top_k: int | None = None, task: Task | None = None) -> list[Classified]:
        assert task is not None
        assert task.name == "text-classification"
        return [Classified("remboursement é", 0.75, (("cancel", 0.125),) * ((top_k or 1) - 1)) for _ in texts]


def test_ask_prints_an_answer_for_every_text(deploykit: Deploykit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploykit.runners.triton_client.TritonClient", FakeClient)
    done = deploykit("ask", "toy", "give it back", "😀", "--top-k", "2")
    assert done.out.splitlines() == [
        "remboursement é (75.0%, cancel 12.5%)  give it back",
        "remboursement é (75.0%, cancel 12.5%)  😀",
    ]
    done = deploykit("ask", "toy", "😀", "--json")
    assert done.json == {
        "model": "toy",
        "answers": [{"text": "😀", "label": "remboursement é", "score": 0.75, "alternatives": []}],
    }
    assert "é" in done.out


def test_json_of_what_stdout_can_not_hold_is_escaped(deploykit: Deploykit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploykit.runners.triton_client.TritonClient", FakeClient)
    done = deploykit("ask", "toy", "half \ud83d", "--json")
    assert done.code == 0
    assert done.json["answers"][0]["text"] == "half \ud83d"
    assert r"\u00e9" in done.out


class FakeServer:
    def __init__(self, ending: BaseException) -> None:
        self.urls = ServerUrls("http://127.0.0.1:8000", "grpc://127.0.0.1:8001", None)
        self._ending = ending
        self._looks = 3

    def raise_if_ended(self) -> None:
        self._looks -= 1
        if self._looks == 0:
            raise self._ending


def serve_with(monkeypatch: pytest.MonkeyPatch, ending: BaseException) -> None:
    @contextlib.contextmanager
    def open_server(*_: object, **__: object) -> Iterator[FakeServer]:
        yield FakeServer(ending)

    monkeypatch.setattr("deploykit.triton.engines.open_server", open_server)
    monkeypatch.setattr("time.sleep", lambda _: None)


def test_serve_says_where_and_stops_quietly(deploykit: Deploykit, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_with(monkeypatch, KeyboardInterrupt())
    done = deploykit("serve", "repository")
    assert done.code == 0
    assert done.out.splitlines() == [
        "http     http://127.0.0.1:8000",
        "grpc     grpc://127.0.0.1:8001",
        "metrics  -",
        "ask it: deploykit ask MODEL 'your message' --url grpc://127.0.0.1:8001",
    ]
    assert done.err.splitlines() == ["Ctrl-C stops it.", "stopped"]
    done = deploykit("serve", "repository", "--json")
    assert done.json["grpc"] == "grpc://127.0.0.1:8001"


def test_serve_of_a_server_that_dies_is_an_error(deploykit: Deploykit, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_with(monkeypatch, ServerError("the server ended by itself"))
    done = deploykit("serve", "repository")
    assert done.code == 1
    assert "error: the server ended by itself" in done.err


def test_serve_of_a_server_that_runs_already_only_looks(deploykit: Deploykit, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_with(monkeypatch, AssertionError("looked again"))
    done = deploykit("serve", "--engine", "grpc://127.0.0.1:8001", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["repository"] is None


def test_serve_shows_what_hinders_the_server(deploykit: Deploykit, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_server(*_: object, **__: object) -> None:
        raise ServerError("port 8000 is taken", "take --http-port 0")

    monkeypatch.setattr("deploykit.triton.engines.open_server", open_server)
    done = deploykit("serve", "repository")
    assert (done.code, done.err) == (1, "error: port 8000 is taken\n  hint: take --http-port 0\n")


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("missing", 0), ("problem", 1)])
def test_doctor_fails_on_what_is_in_the_way(
    deploykit: Deploykit, monkeypatch: pytest.MonkeyPatch, status: Any, code: int
) -> None:
    found = [Finding("torch", "ok", "2.13"), Finding("GPU", status, "none", "buy one")]
    monkeypatch.setattr("deploykit.pipeline.doctor.examine", lambda: found)
    done = deploykit("doctor", "--json")
    assert done.code == code
    assert done.json["findings"][1] == {"name": "GPU", "status": status, "detail": "none", "remedy": "buy one"}
    done = deploykit("doctor")
    assert done.code == code
    assert done.out.splitlines()[1].split() == [status, "GPU", "none"]
    assert done.out.splitlines()[2].strip() == "buy one"


@pytest.mark.parametrize("reason", [None, "the embedded Triton runs on Linux x86_64 only, and this is Darwin arm64"])
def test_doctor_installs_triton_only_where_it_runs(
    deploykit: Deploykit, monkeypatch: pytest.MonkeyPatch, reason: str | None
) -> None:
    installed: list[str] = []
    monkeypatch.setattr("deploykit.pipeline.doctor.examine", lambda: [])
    monkeypatch.setattr("deploykit.triton.installation.unsupported_reason", lambda: reason)
    monkeypatch.setattr("deploykit.triton.installation.ensure_installed", lambda listener: installed.append("triton"))
    assert deploykit("doctor", "--install-triton").code == 0
    assert len(installed) == (reason is None)


def test_package_takes_its_name_from_the_folder(
    deploykit: Deploykit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from deploykit.triton.repository import Published

    asked: list[Any] = []

    def package_alone(model: Path, repository: Path, name: str, settings: Any, **_: object) -> Published:
        asked.append((name, settings))
        return Published(repository, version=2, new=True, paths={name: repository / name / "2"})

    monkeypatch.setattr("deploykit.pipeline.alone.package_alone", package_alone)
    (tmp_path / "intents").mkdir()
    done = deploykit(
        "package", "intents", "--max-batch-size", "8", "--preferred-batch-size", "8", "--preferred-batch-size", "4"
    )
    assert done.out == ("version 2 written: model_repository/intents/2\nnext: deploykit serve model_repository\n")
    name, settings = asked[0]
    assert (name, settings.max_batch_size, settings.preferred_batch_size) == ("intents", 8, (4, 8))
    done = deploykit("package", "intents", "--preferred-batch-size", "65")
    assert done.code == 2
    assert "--preferred-batch-size: " in done.err


def test_schema_is_one_json_object(deploykit: Deploykit) -> None:
    bare, as_json = deploykit("schema"), deploykit("schema", "--json")
    assert bare.out == as_json.out
    assert json.loads(bare.out)["title"] == "deploykit recipe"
