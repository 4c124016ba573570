"""What the benchmarks of one task share: their options, and a recipe run up to its proof through the server."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from deploykit.artifacts.store import Store
from deploykit.cli.render import Screen
from deploykit.parity.report import ParityReport
from deploykit.pipeline.context import Context
from deploykit.pipeline.plan import make_plan
from deploykit.pipeline.run import run_recipe
from deploykit.recipe import Recipe
from deploykit.report.result import RunResult


def task_options(doc: str | None, name: str) -> argparse.ArgumentParser:
    """A parser with what all of them take: other keys, where the result and the work are kept."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another key of the recipe")
    parser.add_argument("--name", default=name, help="what the result is kept as")
    parser.add_argument("--workspace", type=Path, default=Path(".deploykit"))
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results/")
    return parser


def proved(recipe: Recipe, workspace: Path, repository: Path) -> tuple[RunResult, ParityReport]:
    """A recipe up to its proof, and the proof; what is in the workspace is not made again."""
    with Screen() as screen:
        result = run_recipe(recipe, workspace=workspace, repository=repository, until="parity", listener=screen)
    assert result is not None
    return result, ParityReport.model_validate_json(Path(result.parity).read_text(encoding="utf-8"))


def kept(recipe: Recipe, workspace: Path) -> Context:
    """What was made for a recipe."""
    context = Context(recipe, Path(), make_plan(recipe, Path()), Store(workspace / "store"), lambda event: None)
    for step in context.plan.steps:
        if step.key is not None and (found := context.store.find(step.stage, step.key)) is not None:
            context.artifacts[step.stage] = found
    return context


def checks_of(parity: ParityReport) -> dict[str, Any]:
    """Outcome, figure, limit and number of messages of each check."""
    return {check.check: [check.outcome, check.figure, check.limit, check.n] for check in parity.checks}
