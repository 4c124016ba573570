"""Several intents in a message, or none: F1 through the server, and what is out of scope told apart from what is not.

    python benchmarks/intents.py --save                                          # the shipped messages
    python benchmarks/intents.py --name own --set data.train=... --set data.test=... --set data.label=...

Out of scope by the threshold that ships (chosen on validation, for 95 % of what is in scope), and where 95 % of the
test messages with labels keep one. What is done stays in `--workspace`: run it again to go on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from machine_facts import finish
from numpy.typing import NDArray
from proved import checks_of, kept, proved, task_options
from sklearn.metrics import roc_auc_score

from deploykit.parity.intervals import clopper_pearson
from deploykit.recipe import load_recipe
from deploykit.runners import Target, infer_all, open_runner

RECIPE = Path(__file__).parents[1] / "recipes" / "intents.yaml"
IN_SCOPE = 0.95


def main() -> None:
    options = task_options(__doc__, "intents").parse_args()
    recipe = load_recipe(RECIPE, options.set)
    result, parity = proved(recipe, options.workspace, options.repository)
    context = kept(recipe, options.workspace)
    data = context.data()
    forms = {
        "pytorch": Target("torch", str(context.whole), task=recipe.task),
        "shipped": Target("onnxruntime", str(context.folder("quantize")), task=recipe.task),
    }
    targets = np.array(context.task.targets(data.test.labels or (), data.label_names))
    found: dict[str, Any] = {}
    for form, target in forms.items():
        with open_runner(target) as runner:
            rows = [[index] for index in range(len(data.test))]
            logits = infer_all(runner, data.test.texts, rows)["logits"]
        found[form] = {**context.task.metrics(logits, targets, data.label_names), **scope(logits, targets)}
    figures = {
        **found,
        "n": parity.n,
        "out_of_scope": int((targets.sum(axis=1) == 0).sum()),
        "several_intents": int((targets.sum(axis=1) > 1).sum()),
        "verdict": parity.verdict,
        "served_micro_f1": [parity.candidate, *(parity.interval or ())],
        "drop": parity.drop,
        "drop_upper_95": parity.drop_upper,
        "checks": checks_of(parity),
        "scheme": result.scheme,
        "size_mb": {"pytorch": result.reference.size_mb, "shipped": result.shipped.size_mb},
    }
    finish(options.name, figures, as_json=options.json, save=options.save)


def scope(logits: NDArray[np.float32], targets: NDArray[np.float64]) -> dict[str, Any]:
    """How well the highest logit tells messages with labels from those without, with exact 95 % intervals."""
    highest, some = logits.max(axis=1), targets.any(axis=1)
    threshold = np.quantile(highest[some], 1 - IN_SCOPE)
    shipped, at_95 = (int((highest[~some] <= limit).sum()) for limit in (0.0, threshold))
    others = int((~some).sum())
    return {
        "out_of_scope_recall_as_shipped": [shipped / others, *clopper_pearson(shipped, others)],
        "out_of_scope_recall_at_95": [at_95 / others, *clopper_pearson(at_95, others)],
        "auroc": float(roc_auc_score(some, highest)),
    }


if __name__ == "__main__":
    main()
