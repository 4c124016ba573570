"""What the seed of the recovery makes of one pruned model: accuracy over seeds, and the bound for the one that ships.

    python benchmarks/recovery_seeds.py --train train.csv --test test.csv --keep 0/12/768 --keep 5/12/1152

The recipe runs up to the fine-tuned model. Vocabulary, layers, heads and columns are cut once; the teacher's answers
are the same for all seeds. Each recovered model is exported and quantized (static int8, as the search times it). The
best on validation ships; its bound is the only one that the test split is asked for. What is done is kept in the
workspace: run it again to go on.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
from machine_facts import finish
from numpy.typing import NDArray
from peers import recipe_options

from deploykit.artifacts.store import Store
from deploykit.cli.render import Screen
from deploykit.data.dataset import LabelledData
from deploykit.data.table import Table
from deploykit.parity.intervals import paired_drop_upper
from deploykit.pipeline.choice import sampled
from deploykit.pipeline.clock import Bench
from deploykit.pipeline.compression import prune_to_goal
from deploykit.pipeline.context import Context
from deploykit.pipeline.plan import Stage, make_plan
from deploykit.pipeline.run import run_recipe
from deploykit.pipeline.stages import pruning_of
from deploykit.recipe import Recipe, load_recipe
from deploykit.runners import Target, infer_all, open_runner
from deploykit.tasks import Task, find_task


def main() -> None:
    parser = recipe_options(__doc__)
    parser.add_argument("--keep", action="append", required=True, metavar="LAYER/HEADS/COLUMNS")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another key of the recipe")
    parser.add_argument("--name", default="recovery_seeds", help="of the result")
    options = parser.parse_args()

    settings = [f"data.train={options.train}", f"data.test={options.test}"]
    settings += [f"data.text={options.text}", f"data.label={options.label}"]
    settings += [f"prune.keep=[{', '.join(options.keep)}]", f"prune.seeds={options.seeds}", *options.set]
    recipe = load_recipe(options.recipe, settings)
    task = find_task(recipe.task)
    with Screen() as screen:
        run_recipe(recipe, until="teachers", workspace=options.workspace, listener=screen)
        context = Context(recipe, Path(), make_plan(recipe, Path()), Store(options.workspace / "store"), screen)
        for stage in context.plan.step("prune").parents:
            found = context.store.find(stage, str(context.plan.step(cast(Stage, stage)).key))
            assert found is not None
            context.artifacts[stage] = found
        data = context.data()
        work = options.workspace / "seeds" / str(context.plan.step("prune").key)[:16]
        info: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as best:
            prune_to_goal(context.whole, Path(best), workspace=work, info=info, **pruning_of(context))
    recovery = info["recovery"]
    seeds = recovery.get("seeds") or {str(recipe.seed): recovery}
    before = work / "trimmed" / "0" if info.get("vocabulary") else context.whole
    shipped = {seed: _quantized(recipe, task, data, before, work, seed) for seed in seeds}
    whole = {name: _right(Target("torch", str(context.whole)), task, data, name) for name in _splits(data)}
    right = {seed: {name: _right(target, task, data, name) for name in whole} for seed, target in shipped.items()}
    chosen = str(recovery.get("seed", recipe.seed))
    b = int(np.sum(whole["test"] & ~right[chosen]["test"]))
    c = int(np.sum(~whole["test"] & right[chosen]["test"]))
    accuracy = {seed: {name: float(found.mean()) for name, found in splits.items()} for seed, splits in right.items()}
    tests = [found["test"] for found in accuracy.values()]
    finish(
        options.name,
        {
            "kept": options.keep,
            "vocabulary": info.get("vocabulary"),
            "teachers": recipe.prune.teachers,
            "epochs": recipe.prune.epochs_for(len(options.keep)),
            "n": len(whole["test"]),
            "unpruned_pytorch": {name: float(found.mean()) for name, found in whole.items()},
            "int8_by_seed": accuracy,
            "validation_loss_by_seed": {seed: found["metrics"]["loss"] for seed, found in seeds.items()},
            "curves": {seed: found["curve"][:: max(1, len(found["curve"]) // 40)] for seed, found in seeds.items()},
            "test_mean": statistics.mean(tests),
            "test_sd": statistics.stdev(tests) if len(tests) > 1 else None,
            "test_range": [min(tests), max(tests)],
            "seed_that_ships": chosen,
            "shipped_drop": (b - c) / len(whole["test"]),
            "shipped_drop_upper_95": paired_drop_upper(b, c, len(whole["test"])),
            "discordant": b + c,
        },
        as_json=options.json,
        save=options.save,
    )


def _splits(data: LabelledData) -> dict[str, Table]:
    return {"validation": data.validation, "test": data.test}


def _quantized(recipe: Recipe, task: Task, data: LabelledData, before: Path, work: Path, seed: str) -> Target:
    """A model that recovered, cut from the one `before`, in static int8, made once."""
    calibration = sampled(data.train.texts, recipe.quantize.calibration_rows, recipe.seed)
    bench = Bench(
        task, before, recipe.quantize, recipe.export.target, recipe.package.threads, data.validation.texts,
        calibration, work, recipe.seed, lambda event: None,
    )  # fmt: skip
    return bench.build(work / f"recovered-{seed}", f"seed-{seed}")


def _right(target: Target, task: Task, data: LabelledData, split: str) -> NDArray[np.bool_]:
    table = _splits(data)[split]
    with open_runner(target) as runner:
        outputs = infer_all(runner, table.texts, [[index] for index in range(len(table.texts))])
    wanted = task.right_answers(table.labels or (), data.label_names)
    return task.scores(task.answers(outputs, data.label_names), wanted).correct


if __name__ == "__main__":
    main()
