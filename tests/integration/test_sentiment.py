"""What the sentiment recipe packages, in a real embedded Triton, and the monitor that asks it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from deploykit.cli.main import main
from deploykit.pipeline.run import run_recipe
from deploykit.recipe import load_recipe
from deploykit.triton.embedded import EmbeddedServer, unsupported_reason

pytestmark = [
    pytest.mark.triton,
    pytest.mark.slow,
    pytest.mark.skipif(unsupported_reason() is not None, reason=str(unsupported_reason())),
]
RECIPE = Path(__file__).parents[2] / "recipes" / "sentiment.yaml"
FEELING = {"cancel": "negative", "delivery": "neutral", "invoice": "positive", "login": "neutral"}


def write(path: Path, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def test_the_recipe_runs_and_the_monitor_asks_what_is_served(
    tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = (
        write(
            tmp_path / f"{part}.csv",
            ("text", "sentiment"),
            [(text, FEELING[label]) for text, label in zip(table.texts, table.labels, strict=True)],
        )
        for part, table in (("train", toy_data.train), ("test", toy_data.test))
    )
    recipe = load_recipe(
        RECIPE,
        [
            f"model={tiny_checkpoint('bert', initializer_range=0.05)}", f"data.train={train}", f"data.test={test}",
            "quantize.mend=false", "quantize.smooth=never", "finetune.epochs=4", "finetune.learning_rate=0.005",
            "finetune.freeze_embeddings=false",
        ],
    )  # fmt: skip
    work = tmp_path / "work"
    run_recipe(recipe, workspace=work, until="package")  # how a text classifier is proved, test_pipeline.py tests
    (repository,) = (work / "store" / "package").iterdir()

    begin = datetime(2026, 1, 5)
    pairs = list(zip(toy_data.test.texts, toy_data.test.labels, strict=True))
    negative = [text for text, label in pairs if label == "cancel"]
    other = [text for text, label in pairs if label != "cancel"]
    rows = []
    for day in range(18):
        bad = 9 if day >= 16 else 2
        texts = [*negative[day : day + bad], *other[day : day + 10 - bad]]
        rows += [(str(begin + timedelta(days=day, minutes=number)), text) for number, text in enumerate(texts)]
    data = write(tmp_path / "stream.csv", ("time", "text"), rows)
    with EmbeddedServer(repository, log=tmp_path / "serve.log") as server:
        capsys.readouterr()
        code = main(
            ["monitor", f"{server.urls.grpc}/{recipe.name}", "--data", str(data), "--reference-days", "14", "--json"]
        )
    served = json.loads(capsys.readouterr().out)
    assert code == 6
    assert served["alerts"][0]["began"].startswith("2026-01-21")
    (quantized,) = (work / "store" / "quantize").iterdir()
    assert main(["monitor", str(quantized), "--data", str(data), "--reference-days", "14", "--json"]) == 6
    assert json.loads(capsys.readouterr().out) == served
