"""The intents recipe through a real embedded Triton: several labels in a message, or none, as PyTorch gives them."""

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
RECIPE = Path(__file__).parents[2] / "recipes" / "intents.yaml"


def write(path: Path, table: Any) -> Path:
    """One JSON object a line; every third message is two, every tenth none of them."""
    rows = []
    for index, (text, label) in enumerate(zip(table.texts, table.labels, strict=True)):
        row = {"message": text, "topics": label}
        if index % 3 == 0 and index + 1 < len(table):
            row = {"message": f"{text} and {table.texts[index + 1]}", "topics": [label, table.labels[index + 1]]}
        elif index % 10 == 1:
            row = {"message": f"hello {index} can you tell me about it please", "topics": "out_of_scope"}
        rows.append(json.dumps(row))
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def test_the_recipe_runs_and_what_is_served_says_what_pytorch_does(
    tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = write(tmp_path / "train.jsonl", toy_data.train), write(tmp_path / "test.jsonl", toy_data.test)
    recipe = load_recipe(
        RECIPE,
        [
            f"model={tiny_checkpoint('bert', initializer_range=0.05)}", f"data.train={train}", f"data.test={test}",
            "data.text=message", "data.label=topics", "finetune.epochs=16", "finetune.learning_rate=0.005",
            "finetune.freeze_embeddings=false", "goal.max_drop=0.06", "quantize.scheme=int8_static",
            "quantize.fusions=all", "latency.messages=20", "latency.blocks=2",
        ],
    )  # fmt: skip
    work, repository = tmp_path / "work", tmp_path / "repository"
    result = run_recipe(recipe, workspace=work, repository=repository)
    assert result is not None
    report = json.loads(Path(result.parity).read_text(encoding="utf-8"))
    checks = {check["check"]: check for check in report["checks"]}
    for name in ("served over gRPC against in process", "served over HTTP against in process"):
        assert (checks[name]["outcome"], checks[name]["n"]) == ("pass", 200)
    assert (result.metric, report["bound"]) == ("micro F1", "bootstrap")
    assert report["reference"] > 0.8
    assert result.verdict == "pass", result.statement

    (finetuned,) = (work / "store" / "finetune").iterdir()
    task = find_task(recipe.task)
    texts = [json.loads(line)["message"] for line in test.read_text(encoding="utf-8").splitlines()][:40]
    names = tuple(sorted(toy_data.label_names))
    with open_runner(Target("torch", str(finetuned), threads=1, task=task.name)) as runner:
        expected = [task.answers(runner.infer([text]), names)[0] for text in texts]
    assert {len(answer.as_json("")["labels"]) for answer in expected} == {0, 1, 2}
    with EmbeddedServer(repository, log=tmp_path / "serve.log") as server:
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
