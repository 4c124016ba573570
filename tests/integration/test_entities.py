"""The entities recipe through a real embedded Triton: the spans that it serves are those of PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploykit.cli.main import main
from deploykit.pipeline.run import run_recipe
from deploykit.recipe import load_recipe
from deploykit.runners import Target, open_runner
from deploykit.runners.triton_client import TritonClient
from deploykit.tasks import find_task
from deploykit.triton.embedded import EmbeddedServer, unsupported_reason

pytestmark = [
    pytest.mark.triton,
    pytest.mark.slow,
    pytest.mark.skipif(unsupported_reason() is not None, reason=str(unsupported_reason())),
]
RECIPE = Path(__file__).parents[2] / "recipes" / "entities.yaml"
ODD = ["CANCEL the Päckchen 📦 parcel", "", "İnvoice 👨‍👩‍👧 login", "a " * 80 + "parcel"]


def write(path: Path, table: Any) -> Path:
    """One JSON object a line, spans with their keys."""
    rows = [
        {"message": text, "marked": [span._asdict() for span in label]}
        for text, label in zip(table.texts, table.labels, strict=True)
    ]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def test_the_recipe_runs_and_what_is_served_marks_as_pytorch_does(
    tiny_checkpoint: Callable[..., Path], entity_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = write(tmp_path / "train.jsonl", entity_data.train), write(tmp_path / "test.jsonl", entity_data.test)
    recipe = load_recipe(
        RECIPE,
        [
            f"model={tiny_checkpoint('bert', initializer_range=0.05)}", f"data.train={train}", f"data.test={test}",
            "data.text=message", "data.label=marked", "finetune.epochs=8", "finetune.learning_rate=0.005",
            "finetune.freeze_embeddings=false", "finetune.max_length=64", "goal.max_drop=0.06",
            "quantize.scheme=int8_static", "quantize.fusions=all", "latency.messages=20", "latency.blocks=2",
        ],
    )  # fmt: skip
    work, repository = tmp_path / "work", tmp_path / "repository"
    result = run_recipe(recipe, workspace=work, repository=repository)
    assert result is not None
    report = json.loads(Path(result.parity).read_text(encoding="utf-8"))
    checks = {check["check"]: check for check in report["checks"]}
    for name in ("served over gRPC against in process", "served over HTTP against in process"):
        assert (checks[name]["outcome"], checks[name]["n"]) == ("pass", 200)
    assert result.metric == report["metric"] == "entity F1"
    assert report["bound"] == "bootstrap"
    assert report["reference"] > 0.97
    assert report["interval"][0] < report["candidate"] <= report["interval"][1] <= 1
    assert {change["name"] for change in report["classes"]} == {"cancel", "delivery", "invoice", "login"}
    assert result.verdict == "pass", result.statement
    assert "entity F1" in Path(result.report).read_text(encoding="utf-8")

    (finetuned,) = (work / "store" / "finetune").iterdir()
    names = entity_data.label_names
    task = find_task("token-classification")
    texts = [*entity_data.test.texts[:30], *ODD]
    with open_runner(Target("torch", str(finetuned), threads=1, task=task.name)) as runner:
        expected = [task.answers(runner.infer([text]), names)[0] for text in texts]
    with EmbeddedServer(repository, log=tmp_path / "serve.log") as server:
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
