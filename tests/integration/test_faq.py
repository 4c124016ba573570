"""The FAQ recipe through a real embedded Triton; then with other entries, for which nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploykit.events import StageFinished, Warn
from deploykit.pipeline.run import run_recipe
from deploykit.runners.labels import labels_from_folder
from deploykit.triton.embedded import unsupported_reason

pytestmark = [
    pytest.mark.triton,
    pytest.mark.slow,
    pytest.mark.skipif(unsupported_reason() is not None, reason=str(unsupported_reason())),
]


def write_entries(path: Path, table: Any, each: int, *, without: str = "", **more: str) -> Path:
    """The first `each` messages of each label as its questions, and an answer of its own."""
    lines, seen = ["text,label,answer"], dict[str, int]()
    for text, label in zip(table.texts, table.labels, strict=True):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= each and label != without:
            lines.append(f"{text},{label},All about {label}: ç")
    lines += [f"{text},{label}," for label, text in more.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_recipe_runs_and_other_entries_need_no_training(
    run_tiny: Callable[..., Any], toy_data: Any, tmp_path: Path
) -> None:
    train, test = (
        [{"text": text, "label": label} for text, label in zip(table.texts, table.labels, strict=True)]
        for table in (toy_data.train, toy_data.test)
    )
    entries = write_entries(tmp_path / "faq.csv", toy_data.train, 3)
    run = run_tiny(
        "faq", train, test, f"data.entries={entries}", "finetune.epochs=6", "quantize.calibration_rows=64",
        until="parity",
    )  # fmt: skip
    recipe, result, report, work = run.recipe, run.result, run.report, run.work
    assert (result.metric, report["bound"]) == ("recall@1", "score")
    assert report["reference"] > 0.8
    entry = json.loads((Path(result.kept) / recipe.name / "1" / "entry.json").read_text(encoding="utf-8"))
    assert entry["answers"] == {label: f"All about {label}: ç" for label in entry["labels"]}

    (before,) = (work / "store" / "index").iterdir()
    gone = entry["labels"][0]
    write_entries(entries, toy_data.train, 1, without=gone, greeting="hello there")
    events: list[Any] = []
    assert run_recipe(recipe, workspace=work, until="index", listener=events.append) is None
    found = {event.stage: event.cached for event in events if isinstance(event, StageFinished)}
    assert found == {"data": True, "finetune": True, "index": False}
    assert any("no entry has" in event.message for event in events if isinstance(event, Warn))
    after = next(path for path in (work / "store" / "index").iterdir() if path != before)
    assert set(labels_from_folder(after)) == {*entry["labels"], "greeting"} - {gone}
