"""The joint recipe through a real embedded Triton: intent and spans that it serves are those in process."""

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
RECIPE = Path(__file__).parents[2] / "recipes" / "joint.yaml"
_TESTED = 100
ODD = ["CANCEL the Päckchen 📦 parcel", "", "İnvoice 👨‍👩‍👧 login", "a " * 80 + "parcel"]


def write(path: Path, table: Any) -> Path:
    """One JSON object a line."""
    rows = [
        {"message": text, "topic": label.intent, "marked": [span._asdict() for span in label.spans]}
        for text, label in zip(table.texts, table.labels, strict=True)
    ]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def test_the_recipe_runs_and_what_is_served_says_what_the_file_says_in_process(
    tiny_checkpoint: Callable[..., Path], joint_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write(tmp_path / "train.jsonl", joint_data.train)
    test = write(tmp_path / "test.jsonl", joint_data.test.take(range(_TESTED)))
    recipe = load_recipe(
        RECIPE,
        [
            f"model={tiny_checkpoint('bert', initializer_range=0.05)}", f"data.train={train}", f"data.test={test}",
            "data.text=message", "data.label=[topic, marked]", "finetune.epochs=6", "finetune.learning_rate=0.005",
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
        assert (checks[name]["outcome"], checks[name]["n"]) == ("pass", _TESTED)
    assert {"intent accuracy drop", "entity F1 drop"} <= set(checks)
    assert result.metric == report["metric"] == "intent accuracy"
    (entities,) = report["further"]
    assert report["reference"] > 0.9
    assert entities["metric"] == "entity F1"
    assert entities["interval"][0] <= entities["candidate"] <= entities["interval"][1] <= 1
    assert result.verdict == "pass", result.statement
    assert "entity F1" in Path(result.report).read_text(encoding="utf-8")

    (shipped,) = (work / "store" / "quantize").iterdir()
    task = find_task(recipe.task)
    texts = [*joint_data.test.texts[:30], *ODD]
    with open_runner(Target("onnxruntime", str(shipped), task=task.name)) as runner:
        expected = [task.answers(runner.infer([text]), joint_data.label_names)[0] for text in texts]
    with EmbeddedServer(repository, log=tmp_path / "serve.log") as server:
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
