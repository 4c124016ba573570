"""The joint recipe through a real embedded Triton: intent and spans that it serves are those in process."""

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
_TESTED = 100
ODD = ["CANCEL the Päckchen 📦 parcel", "", "İnvoice 👨‍👩‍👧 login", "a " * 80 + "parcel"]


def rows(table: Any) -> list[dict[str, Any]]:
    """Messages, their topic, and spans with their keys."""
    return [
        {"message": text, "topic": label.intent, "marked": [span._asdict() for span in label.spans]}
        for text, label in zip(table.texts, table.labels, strict=True)
    ]


def test_the_recipe_runs_and_what_is_served_says_what_the_file_says_in_process(
    run_tiny: Callable[..., Any], joint_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_tiny(
        "joint", rows(joint_data.train), rows(joint_data.test.take(range(_TESTED))), "data.text=message",
        "data.label=[topic, marked]", "finetune.epochs=6", "finetune.max_length=64",
    )  # fmt: skip
    recipe, result, report = run.recipe, run.result, run.report
    assert {"intent accuracy drop", "entity F1 drop"} <= set(run.checks)
    assert result.metric == report["metric"] == "intent accuracy"
    (entities,) = report["further"]
    assert report["reference"] > 0.9
    assert entities["metric"] == "entity F1"
    assert entities["interval"][0] <= entities["candidate"] <= entities["interval"][1] <= 1
    assert "entity F1" in Path(result.report).read_text(encoding="utf-8")

    shipped = run.only("quantize")
    task = find_task(recipe.task)
    texts = [*joint_data.test.texts[:30], *ODD]
    with open_runner(Target("onnxruntime", str(shipped), task=task.name)) as runner:
        expected = [task.answers(runner.infer([text]), joint_data.label_names)[0] for text in texts]
    with EmbeddedServer(run.repository, log=tmp_path / "serve.log") as server:
        for url in (server.urls.grpc, server.urls.http):
            assert url is not None
            with TritonClient(url) as client:
                assert [client.ask(recipe.name, [text])[0] for text in texts] == expected
                assert client.ask(recipe.name, texts) == expected
        code = main(["ask", recipe.name, "please cancel it", "--url", str(server.urls.grpc), "--top-k", "2", "--json"])
    assert code == 0
    (said,) = json.loads(capsys.readouterr().out)["answers"]
    assert (said["text"], said["label"], len(said["alternatives"])) == ("please cancel it", "cancel", 1)
    (entity,) = said["entities"]
    assert (entity["start"], entity["end"], entity["label"], entity["text"]) == (7, 13, "cancel", "cancel")
