"""Retrieval on labelled messages: recall at 1 and 5, PyTorch against int8 by one bound, as it is and fine-tuned.

    python benchmarks/retrieval.py --save                                # the shipped FAQ
    python benchmarks/retrieval.py --name retrieval_banking77 --train train.csv --test test.csv --label category --save

Without `--entries` the training messages are what is compared with. Everything runs through the served package; what is
done stays in `--workspace`: run it again to go on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from machine_facts import finish
from numpy.typing import NDArray
from proved import checks_of, kept, proved, task_options

from deploykit.parity.intervals import clopper_pearson
from deploykit.parity.noninferiority import judge_drop
from deploykit.recipe import Recipe, load_recipe
from deploykit.runners import Target, infer_all, open_runner
from deploykit.runners.labels import labels_from_folder
from deploykit.tasks.retrieval import ranks

RECIPE = Path(__file__).parents[1] / "recipes" / "faq.yaml"
WAYS = {"as it is": 0.0, "fine-tuned": None}
"""Epochs; those of the recipe where there is none."""


def main() -> None:
    parser = task_options(__doc__, "retrieval")
    parser.add_argument("--train", help="messages with the names of their answers; the shipped ones unless told")
    parser.add_argument("--test", help="likewise, to certify on")
    parser.add_argument("--entries", help="what is compared with; absent, with --train: the training messages")
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    options = parser.parse_args()
    own = [f"data.text={options.text}", f"data.label={options.label}"]
    if options.train and options.test:
        own += [f"data.train={options.train}", f"data.test={options.test}", "data.answer=null"]
        own.append(f"data.entries={options.entries or 'null'}")
    found: dict[str, Any] = {}
    for way, epochs in WAYS.items():
        more = [] if epochs is None else [f"finetune.epochs={epochs}"]
        recipe = load_recipe(RECIPE, [*own, *options.set, *more])
        found[way] = measured(recipe, options.workspace, options.repository)
    finish(options.name, found, as_json=options.json, save=options.save)


def measured(recipe: Recipe, workspace: Path, repository: Path) -> dict[str, Any]:
    """What one recipe came to, through the server; recall at 5 from the same outputs in process."""
    result, parity = proved(recipe, workspace, repository)
    context = kept(recipe, workspace)
    data = context.data()
    names = labels_from_folder(context.whole)
    targets = np.array([names.index(str(label)) for label in data.test.labels or ()])
    places = {
        "pytorch": ranks(outputs(Target("torch", str(context.whole), task=recipe.task), data.test.texts), targets),
        "int8": ranks(
            outputs(Target("onnxruntime", str(context.folder("quantize")), task=recipe.task), data.test.texts), targets
        ),
    }
    recalls = {
        f"recall@{k}": {
            **{form: with_interval(found <= k) for form, found in places.items()},
            "drop_upper_95": judge_drop(places["pytorch"] <= k, places["int8"] <= k, recipe.goal.max_drop).bound,
        }
        for k in (1, 5)
    }
    return {
        **recalls,
        "mrr": {form: float((1 / found).mean()) for form, found in places.items()},
        "n": len(targets),
        "entries": len(names),
        "epochs": recipe.finetune.epochs,
        "verdict": parity.verdict,
        "served_recall@1": parity.candidate,
        "other_entries": parity.flips,
        "checks": checks_of(parity),
        "scheme": result.scheme,
        "size_mb": {"pytorch": result.reference.size_mb, "int8": result.shipped.size_mb},
    }


def outputs(target: Target, texts: tuple[str, ...]) -> NDArray[np.float32]:
    """The logits of all messages, one message at a time, as they are served."""
    with open_runner(target) as runner:
        found: NDArray[np.float32] = infer_all(runner, texts, [[index] for index in range(len(texts))])["logits"]
    return found


def with_interval(right: NDArray[np.bool_]) -> list[float]:
    """The share of right ones and its exact 95 % interval."""
    return [float(right.mean()), *clopper_pearson(int(right.sum()), len(right))]


if __name__ == "__main__":
    main()
