"""Recommendation: NDCG@10 of what is served beside PyTorch, what is wanted most, and the best ranking that there is.

    python benchmarks/recommendation.py --save                                    # the shipped histories
    python benchmarks/recommendation.py --name offers --train train.csv --test test.csv --entries items.csv --save

For the shipped histories two things more are said: the ceiling, which is what the best possible ranking comes to on
average (the generator's own probabilities, exact), and what is lost where the model reads the items of a history
without what was done with them and by whom. What is done stays in `--workspace`: run it again to go on.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine_facts import finish
from numpy.typing import NDArray
from proved import checks_of, kept, proved, task_options

from deploykit.cli.render import Screen
from deploykit.data.sample import OfferRow, offer_rows
from deploykit.data.sample.offers import next_shares
from deploykit.parity.intervals import ratio_interval
from deploykit.pipeline.run import run_recipe
from deploykit.recipe import Recipe, load_recipe
from deploykit.runners import Target, infer_all, open_runner
from deploykit.runners.labels import labels_from_folder
from deploykit.tasks.recommendation import DEPTH
from deploykit.tasks.retrieval import ranks

RECIPE = Path(__file__).parents[1] / "recipes" / "recommendation.yaml"


def main() -> None:
    parser = task_options(__doc__, "recommendation")
    parser.add_argument("--train", help="histories with what was taken next; the shipped ones unless told")
    parser.add_argument("--test", help="likewise, to certify on")
    parser.add_argument("--entries", help="the items, with --train")
    options = parser.parse_args()
    own = []
    if options.train:
        own = [f"data.train={options.train}", f"data.test={options.test}", f"data.entries={options.entries}"]
        own.append("data.answer=null")
    found = measured(load_recipe(RECIPE, [*own, *options.set]), options.workspace, options.repository)
    if not own:
        rows = offer_rows("test")
        found["ceiling"] = ceiling(rows, features=True)
        found["items_alone"] = {
            "ceiling": ceiling(rows, features=False),
            "pytorch": items_alone(options.set, options.workspace),
        }
        found["share_of_ceiling"] = {form: each[0] / found["ceiling"] for form, each in found["ndcg@10"].items()}
    finish(options.name, found, as_json=options.json, save=options.save)


def measured(recipe: Recipe, workspace: Path, repository: Path) -> dict[str, Any]:
    """What one recipe came to: through the server, in PyTorch, and what is wanted most."""
    result, parity = proved(recipe, workspace, repository)
    context = kept(recipe, workspace)
    data, names = context.data(), labels_from_folder(context.whole)
    counts = Counter(map(str, data.train.labels or ()))
    targets = np.array([names.index(str(label)) for label in data.test.labels or ()])
    wanted = np.array([[counts[name] for name in names]]).repeat(len(targets), axis=0)
    places = {
        "popularity": ranks(wanted, targets),
        "pytorch": ranks(logits("torch", context.whole, recipe.task, data.test.texts), targets),
        "served": ranks(logits("onnxruntime", context.folder("quantize"), recipe.task, data.test.texts), targets),
    }  # what is served answers as its file in process, bit for bit: a check of the parity report
    return {
        "n": len(targets),
        "items": len(names),
        "ndcg@10": {form: with_interval(gains(found)) for form, found in places.items()},
        "hit_rate@10": {form: float((found <= DEPTH).mean()) for form, found in places.items()},
        "mrr": {form: float((1 / found).mean()) for form, found in places.items()},
        "above_popularity": with_interval(gains(places["served"]) - gains(places["popularity"])),
        "verdict": parity.verdict,
        "served_ndcg@10": parity.candidate,
        "drop": parity.drop,
        "drop_upper_95": parity.drop_upper,
        "other_first_items": parity.flips,
        "checks": checks_of(parity),
        "scheme": result.scheme,
        "size_mb": {"pytorch": result.reference.size_mb, "served": result.shipped.size_mb},
    }


def items_alone(settings: Sequence[str], workspace: Path) -> list[float]:
    """NDCG@10 of a model that reads the items of a history and nothing else."""
    folder = workspace / "items_alone"
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            rows = [("; ".join(event.item for event in row.events), row.label) for row in offer_rows(split)]
            csv.writer(file, lineterminator="\n").writerows([("text", "label"), *rows])
    files = [f"data.{split}={folder.absolute() / split}.csv" for split in ("train", "test")]
    recipe = load_recipe(RECIPE, [*files, *settings])
    with Screen() as screen:
        run_recipe(recipe, workspace=workspace, until="index", listener=screen)
    context = kept(recipe, workspace)
    data, names = context.data(), labels_from_folder(context.whole)
    targets = np.array([names.index(str(label)) for label in data.test.labels or ()])
    return with_interval(gains(ranks(logits("torch", context.whole, recipe.task, data.test.texts), targets)))


def ceiling(rows: Sequence[OfferRow], *, features: bool) -> float:
    """The NDCG@10 that the best ranking of what is known comes to on average, over these histories."""
    total = 0.0
    for row in rows:
        shares = next_shares(row)
        known = shares if features else next_shares(row, features=False)
        order = sorted(known, key=lambda item: -known[item])
        total += sum(shares[item] / math.log2(2 + place) for place, item in enumerate(order[:DEPTH]))
    return total / len(rows)


def logits(kind: Any, folder: Path, task: str, texts: Sequence[str]) -> NDArray[np.float32]:
    """The logits of all histories, one at a time, as they are served."""
    with open_runner(Target(kind, str(folder), task=task)) as runner:
        found: NDArray[np.float32] = infer_all(runner, texts, [[index] for index in range(len(texts))])["logits"]
    return found


def gains(places: NDArray[np.int64]) -> NDArray[np.float64]:
    """What each place earns of an ideal ranking's 1."""
    return np.where(places <= DEPTH, 1 / np.log2(1 + places), 0.0)


def with_interval(values: NDArray[np.float64]) -> list[float]:
    """A mean and its 95 % interval by the bootstrap."""
    return [float(values.mean()), *ratio_interval(np.stack([values, np.ones_like(values)], axis=1))]


if __name__ == "__main__":
    main()
