"""The intents recipe through a real embedded Triton: several labels in a message, or none, as PyTorch gives them."""

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


def rows(table: Any) -> list[dict[str, Any]]:
    """Messages; every third message is two, every tenth none of them."""
    found = []
    for index, (text, label) in enumerate(zip(table.texts, table.labels, strict=True)):
        row = {"message": text, "topics": label}
        if index % 3 == 0 and index + 1 < len(table):
            row = {"message": f"{text} and {table.texts[index + 1]}", "topics": [label, table.labels[index + 1]]}
        elif index % 10 == 1:
            row = {"message": f"hello {index} can you tell me about it please", "topics": "out_of_scope"}
        found.append(row)
    return found


def test_the_recipe_runs_and_what_is_served_says_what_pytorch_does(
    run_tiny: Callable[..., Any], toy_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = rows(toy_data.test)
    run = run_tiny(
        "intents", rows(toy_data.train), test, "data.text=message", "data.label=topics", "finetune.epochs=16"
    )
    recipe, result, report = run.recipe, run.result, run.report
    assert (result.metric, report["bound"]) == ("micro F1", "bootstrap")
    assert report["reference"] > 0.8

    finetuned = run.only("finetune")
    task = find_task(recipe.task)
    texts = [row["message"] for row in test[:40]]
    names = tuple(sorted(toy_data.label_names))
    with open_runner(Target("torch", str(finetuned), threads=1, task=task.name)) as runner:
        expected = [task.answers(runner.infer([text]), names)[0] for text in texts]
    assert {len(answer.as_json("")["labels"]) for answer in expected} == {0, 1, 2}
    with EmbeddedServer(run.repository, log=tmp_path / "serve.log") as server:
        with TritonClient(str(server.urls.grpc)) as client:
            served = [client.ask(recipe.name, [text])[0] for text in texts]
            together = client.ask(recipe.name, texts)
        assert sum(ours != theirs for ours, theirs in zip(expected, served, strict=True)) <= 2  # int8
        assert together == served
        capsys.readouterr()
        code = main(["ask", recipe.name, "--url", str(server.urls.grpc), "--json", texts[0]])
    assert code == 0
    said = json.loads(capsys.readouterr().out)
    assert "labels" in json.dumps(said)
