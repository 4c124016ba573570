"""The recommendation recipe through a real embedded Triton: what is served is ranked as in process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploykit.runners import Target, infer_all, open_runner
from deploykit.runners.labels import labels_from_folder
from deploykit.tasks import find_task
from deploykit.triton.embedded import unsupported_reason

pytestmark = [
    pytest.mark.triton,
    pytest.mark.slow,
    pytest.mark.skipif(unsupported_reason() is not None, reason=str(unsupported_reason())),
]


def test_the_recipe_runs_and_what_is_served_is_ranked_as_in_process(
    run_tiny: Callable[..., Any], toy_data: Any, tmp_path: Path
) -> None:
    items = tmp_path / "items.csv"
    words = {"cancel": "order basket", "delivery": "parcel van", "invoice": "bill receipt", "login": "password email"}
    lines = [f"{text},{label},All about {label}: ç" for label, text in words.items()]
    lines += [f"thing {number},spare {number}," for number in range(8)]  # more than a ranking has places
    items.write_text("\n".join(["text,label,answer", *lines]) + "\n", encoding="utf-8")
    test = toy_data.test.take(range(80))
    rows = [
        [{"text": text, "label": label} for text, label in zip(table.texts, table.labels, strict=True)]
        for table in (toy_data.train.take(range(320)), test)
    ]
    run = run_tiny("recommendation", *rows, f"data.entries={items}", "finetune.epochs=5", until="parity")
    assert (run.result.metric, run.report["bound"]) == ("ndcg@10", "bootstrap")
    assert run.report["reference"] > 0.8
    assert "ndcg@10 drop" in run.checks
    metrics = json.loads((run.only("finetune") / "manifest.json").read_text("utf-8"))["info"]["metrics"]
    assert metrics["popularity_ndcg@10"] < metrics["ndcg@10"]

    task = find_task("recommendation")
    with open_runner(Target("onnxruntime", str(run.only("quantize")), task=task.name)) as runner:
        outputs = infer_all(runner, test.texts, [[row] for row in range(len(test))])
    names = labels_from_folder(run.only("quantize"))
    right = task.right_answers(test.labels, names)
    in_process = task.scores(task.answers(outputs, names), right)
    assert run.report["candidate"] == pytest.approx(in_process.value, abs=1e-12)
    assert in_process.value > task.scores(task.answers(outputs, names, top_k=1), right).value  # all places were served
    entry = json.loads((Path(run.result.kept) / run.recipe.name / "1" / "entry.json").read_text(encoding="utf-8"))
    assert entry["answers"]["login"] == "All about login: ç"
    assert len(entry["labels"]) == 12
