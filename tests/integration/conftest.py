"""Recipes of tasks on a tiny model and toy data, through a real embedded Triton."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploykit.pipeline.run import run_recipe
from deploykit.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


@dataclass(frozen=True)
class TinyRun:
    """A recipe that was run, and what it found."""

    recipe: Recipe
    result: Any
    report: dict[str, Any]
    work: Path
    repository: Path

    @property
    def checks(self) -> dict[str, Any]:
        return {check["check"]: check for check in self.report["checks"]}

    def only(self, stage: str) -> Path:
        """The one artefact of a stage."""
        (found,) = (self.work / "store" / stage).iterdir()
        return found


def write_json_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """One JSON object a line."""
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def run_tiny(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., TinyRun]:
    """Runs a recipe of the folder on a tiny model, and sees that all test messages were served as in process.

    `run_tiny(name, train_rows, test_rows, *settings, until=None)`, where rows are what JSON lines hold.
    """

    def run(
        name: str, train_rows: Sequence[Any], test_rows: Sequence[Any], *settings: str, until: Any = None
    ) -> TinyRun:
        train = write_json_lines(tmp_path / "train.jsonl", train_rows)
        test = write_json_lines(tmp_path / "test.jsonl", test_rows)
        recipe = load_recipe(
            RECIPES / f"{name}.yaml",
            [
                f"model={tiny_checkpoint('bert', initializer_range=0.05)}", f"data.train={train}", f"data.test={test}",
                "finetune.learning_rate=0.005", "finetune.freeze_embeddings=false", "goal.max_drop=0.06",
                "quantize.scheme=int8_static", "quantize.fusions=all", "latency.messages=20", "latency.blocks=2",
                *settings,
            ],
        )  # fmt: skip
        work, repository = tmp_path / "work", tmp_path / "repository"
        result = run_recipe(recipe, workspace=work, repository=repository, until=until)
        assert result is not None
        found = TinyRun(recipe, result, json.loads(Path(result.parity).read_text("utf-8")), work, repository)
        for check in ("served over gRPC against in process", "served over HTTP against in process"):
            assert (found.checks[check]["outcome"], found.checks[check]["n"]) == ("pass", len(test_rows))
        assert result.verdict == "pass", result.statement
        return found

    return run
