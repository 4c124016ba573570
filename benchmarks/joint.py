"""One model for intents and entities against one for each: both metrics, and one call against two.

    python benchmarks/joint.py --save                                  # the shipped messages
    python benchmarks/joint.py --train train.csv --test test.csv --text utterance --intent intent \\
        --entities entity_type --entities start_offset --entities end_offset    # files of your own

Three runs of the pipeline on the same rows: the joint recipe, and the two single tasks with its settings, but for half
its epochs (`--single-epochs`; as many as their own recipes have, or more). Each proves and quantizes its own model.
Then what ships is compared on the test rows, message by message: the joint model's intents with those of the intent
model, its entities with those of the entity model; each must be at most a point worse, by the bound that judges every
drop. At last the three are timed, each in a process of its own, in alternating blocks on the same messages: one call of
the joint model, and the sum of the two others' calls for the same message.

What is done stays in the workspace: run it again to go on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from machine_facts import finish

from deploykit.artifacts.manifest import read_manifest
from deploykit.cli.render import Screen
from deploykit.data.dataset import load_data
from deploykit.latency.measure import Samples, measure, spread_over
from deploykit.parity.noninferiority import judge_score_drop, score_interval
from deploykit.parity.verdict import overall
from deploykit.pipeline.run import run_recipe
from deploykit.recipe import Recipe, load_recipe
from deploykit.report.result import RunResult
from deploykit.runners import Target, infer_all, open_runner
from deploykit.runners.labels import labels_from_folder
from deploykit.tasks import Scores, find_task

RECIPE = Path(__file__).parents[1] / "recipes" / "joint.yaml"
JOINT = "intent-and-entities"
SINGLE = ("text-classification", "token-classification")
"""In the order of the metrics that they share with it."""
_RESAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", default="sample:support/train")
    parser.add_argument("--test", default="sample:support/test")
    parser.add_argument("--text", default="text")
    parser.add_argument("--intent", default="label", help="the intent's column")
    parser.add_argument("--entities", action="append", help="the spans' column, or three")
    parser.add_argument("--single-epochs", type=float, default=6.0, help="of the two single models")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another key of all recipes")
    parser.add_argument("--messages", type=int, default=600, help="that are timed, 0 for none")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--margin", type=float, default=0.01, help="the drop that is too much")
    parser.add_argument("--name", default="joint", help="what the result is kept as")
    parser.add_argument("--workspace", type=Path, default=Path(".deploykit"))
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results/")
    options = parser.parse_args()

    spans = options.entities or ["entities"]
    columns = dict(zip((JOINT, *SINGLE), ([options.intent, *spans], [options.intent], spans), strict=True))
    results: dict[str, tuple[Recipe, RunResult]] = {}
    began = time.monotonic()
    with Screen() as screen:
        for task, names in columns.items():
            label = names if len(names) > 1 else names[0]
            recipe = load_recipe(
                RECIPE,
                [
                    f"task={task}", f"name=joint_{task.replace('-', '_')}", f"data.train={options.train}",
                    f"data.test={options.test}", f"data.text={options.text}",
                    f"data.label={yaml.safe_dump(label, default_flow_style=True, width=1000).splitlines()[0]}",
                    *([] if task == JOINT else [f"finetune.epochs={options.single_epochs}"]), *options.set,
                ],
            )  # fmt: skip
            result = run_recipe(recipe, workspace=options.workspace, repository=options.repository, listener=screen)
            assert result is not None
            results[task] = recipe, result
        scores, shipped, texts = _scored(results)
        figures = _metrics(scores, results, options.margin)
        if options.messages:
            timed = spread_over(texts, options.messages)
            targets = {task: Target("onnxruntime", str(folder), task=task) for task, folder in shipped.items()}
            figures |= _latency(measure(targets, timed, blocks=options.blocks, listener=screen))
    figures["seconds_in_all"] = round(time.monotonic() - began, 1)
    finish(options.name, figures, as_json=options.json, save=options.save)


def _scored(
    results: dict[str, tuple[Recipe, RunResult]],
) -> tuple[dict[str, Scores], dict[str, Path], list[str]]:
    """What each model that ships scores on the test rows, by task; its folder; and the rows' texts."""
    scores, shipped = {}, {}
    texts: list[str] = []
    for name, (recipe, result) in results.items():
        task = find_task(name)
        data, _ = load_data(recipe.data, recipe.seed, form=task.label_form(recipe.data.label))
        texts = list(data.test.texts)
        package = Path(result.kept)
        folder = package.parents[1] / "quantize" / read_manifest(package).parents["quantize"][: len(package.name)]
        with open_runner(Target("onnxruntime", str(folder), task=name)) as runner:
            outputs = infer_all(runner, texts, [[index] for index in range(len(texts))])
        right = task.right_answers(data.test.labels or (), data.label_names)
        scores[name] = task.scores(task.answers(outputs, labels_from_folder(folder)), right)
        shipped[name] = folder
    return scores, shipped, texts


def _metrics(scores: dict[str, Scores], results: dict[str, tuple[Recipe, RunResult]], margin: float) -> dict[str, Any]:
    """Each metric of the joint model beside that of the single one, both as they ship, and the claim on its drop."""
    joint = scores[JOINT].by_metric(find_task(JOINT).metric)
    singles = {name: scores[task] for task, name in zip(SINGLE, joint, strict=True)}
    claims = {name: judge_score_drop(single, joint[name], margin, metric=name) for name, single in singles.items()}
    return {
        "n": len(scores[JOINT].earned),
        "verdict": overall(list(claims.values())),
        "margin": margin,
        "metrics": {
            name: {
                "single": [single.value, score_interval(single)],
                "joint": [joint[name].value, score_interval(joint[name])],
                "drop": claims[name].figure,
                "drop_upper_95": claims[name].bound,
                "outcome": claims[name].outcome,
                "details": claims[name].details,
            }
            for name, single in singles.items()
        },
        "pipeline": {task: [result.verdict, result.scheme] for task, (_, result) in results.items()},
        "pytorch": {task: [result.metric, result.reference.value] for task, (_, result) in results.items()},
    }


def _latency(timed: dict[str, Samples]) -> dict[str, Any]:
    """One call against two for the same messages: medians, and their ratio's interval by a bootstrap of blocks."""
    one = timed[JOINT].blocks
    two = [sum(parts) for parts in zip(*(timed[task].blocks for task in SINGLE), strict=True)]
    random = np.random.default_rng(0)
    ratios = []
    for chosen in random.integers(0, len(one), (_RESAMPLES, len(one))):
        joint, both = (np.median(np.concatenate([blocks[index] for index in chosen])) for blocks in (one, two))
        ratios.append(joint / both)
    both = Samples("two calls", tuple(two))
    return {
        "timed_messages": timed[JOINT].n,
        "stolen_cpu": timed[JOINT].stolen,
        "p50_ms": {name: [each.p50_ms, each.p50_range_ms] for name, each in {**timed, "two calls": both}.items()},
        "p99_ms": {"one call": timed[JOINT].p99_ms, "two calls": both.p99_ms},
        "p50_one_call_over_two": [timed[JOINT].p50_ms / both.p50_ms, *np.quantile(ratios, [0.025, 0.975]).tolist()],
    }


if __name__ == "__main__":
    main()
