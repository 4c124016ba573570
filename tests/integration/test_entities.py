"""The entities recipe through a real embedded Triton: the spans that it serves are those of PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploykit.cli.main import main
from deploykit.runners import Target, open_runner
from deploykit.runners.triton_client import TritonClient
from deploykit.tasks import find_task
from deploykit.triton.embedded import EmbeddedServer, unsupported_reason

pytestmark = [
    pytest.mark.triton,
    pytest.mark.slow,
    pytest.mark.skipif(unsupported_reason() is not None, reason=str(unsupported_reason())),
]
ODD = ["CANCEL the Päckchen 📦 parcel", "", "İnvoice 👨‍👩‍👧 login", "a " * 80 + "parcel"]


def rows(table: Any) -> list[dict[str, Any]]:
    """Messages, spans with their keys."""
    return [
        {"message": text, "marked": [span._asdict() for span in label]}
        for text, label in zip(table.texts, table.labels, strict=True)
    ]


def test_the_recipe_runs_and_what_is_served_marks_as_pytorch_does(
    run_tiny: Callable[..., Any], entity_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_tiny(
        "entities", rows(entity_data.train), rows(entity_data.test), "data.text=message", "data.label=marked",
        "finetune.epochs=8", "finetune.max_length=64",
    )  # fmt: skip
    recipe, result, report = run.recipe, run.result, run.report
    assert result.metric == report["metric"] == "entity F1"
    assert report["bound"] == "bootstrap"
    assert report["reference"] > 0.97
    assert report["interval"][0] < report["candidate"] <= report["interval"][1] <= 1
    assert {change["name"] for change in report["classes"]} == {"cancel", "delivery", "invoice", "login"}
    assert "entity F1" in Path(result.report).read_text(encoding="utf-8")

    finetuned = run.only("finetune")
    names = entity_data.label_names
    task = find_task("token-classification")
    texts = [*entity_data.test.texts[:30], *ODD]
    with open_runner(Target("torch", str(finetuned), threads=1, task=task.name)) as runner:
        expected = [task.answers(runner.infer([text]), names)[0] for text in texts]
    with EmbeddedServer(run.repository, log=tmp_path / "serve.log") as server:
        for url in (server.urls.grpc, server.urls.http):
            assert url is not None
            with TritonClient(url) as client:
                served = [client.ask(recipe.name, [text])[0] for text in texts]
                together = client.ask(recipe.name, texts)
            assert sum(ours != theirs for ours, theirs in zip(expected, served, strict=True)) <= 1  # int8
            assert together == served
        code = main(["ask", recipe.name, "please cancel it", "--url", str(server.urls.grpc), "--json"])
    assert code == 0
    (said,) = json.loads(capsys.readouterr().out)["answers"]
    assert said["text"] == "please cancel it"
    (entity,) = said["entities"]
    assert (entity["start"], entity["end"], entity["label"], entity["text"]) == (7, 13, "cancel", "cancel")
