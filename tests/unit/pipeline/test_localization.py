"""From two folders to the stage that differs, and a failure as a folder of its own."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploykit.cli.main import main
from deploykit.errors import UsageError
from deploykit.parity.report import ParityReport
from deploykit.pipeline.alone import parity_alone
from deploykit.pipeline.localization import locate
from deploykit.runners import Target
from deploykit.tasks import find_task

TASK = find_task("text-classification")


@pytest.fixture
def candidate(exported: Callable[[str], Any], tmp_path: Path) -> Path:
    """The exported model, to be spoiled."""
    return shutil.copytree(exported("bert").folder, tmp_path / "candidate")


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))


def permute_labels(folder: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        names = config["id2label"]
        names["0"], names["1"] = names["1"], names["0"]

    changed(folder / "config.json", change)


def lose_lower_casing(folder: Path) -> None:
    changed(folder / "tokenizer.json", lambda tokenizer: tokenizer["normalizer"].update(lowercase=False))


def truncate(folder: Path) -> None:
    changed(folder / "tokenizer_config.json", lambda tokenizer: tokenizer.update(model_max_length=6))


def add_temperature(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "cool"
    model.graph.initializer.append(numpy_helper.from_array(np.array(2.0, np.float32), "temperature"))
    model.graph.node.append(onnx.helper.make_node("Div", ["cool", "temperature"], ["logits"]))
    onnx.save(model, folder / "model.onnx")


def spoil_layer(folder: Path, by: float = 2.0) -> None:
    model = onnx.load(folder / "model.onnx")
    node = next(node for node in model.graph.node if node.op_type == "BiasGelu")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(by), tensor.name))
    onnx.save(model, folder / "model.onnx")


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (permute_labels, "labels"),
        (lose_lower_casing, "tokenizer"),
        (truncate, "tokenizer"),
        (add_temperature, "post-processing"),
        (spoil_layer, "ffn"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_row_48_49_the_stage_that_differs_is_named(
    spoil: Callable[[Path], None], part: str, candidate: Path, exported: Callable[[str], Any], toy_data: Any
) -> None:
    spoil(candidate)
    texts = [*toy_data.test.texts[:20], "Where is my PARCEL"]
    reference = Target("torch", str(exported("bert").checkpoint))
    found = locate(reference, Target("onnxruntime", str(candidate)), texts, TASK)
    assert found.findings
    assert found.findings[0].part == part
    assert ParityReport.model_fields["localized"].default is None


def test_nothing_is_found_where_nothing_is_wrong(
    candidate: Path, exported: Callable[[str], Any], toy_data: Any
) -> None:
    reference = Target("torch", str(exported("bert").checkpoint))
    found = locate(reference, Target("onnxruntime", str(candidate)), toy_data.test.texts[:20], TASK)
    assert found.findings == ()
    assert len(found.layers) > 10


def test_a_graph_that_takes_one_message_at_a_time_is_found(
    candidate: Path, exported: Callable[[str], Any], toy_data: Any
) -> None:
    model = onnx.load(candidate / "model.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].ClearField("dim_param")
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, candidate / "model.onnx")
    reference = Target("torch", str(exported("bert").checkpoint))
    found = locate(reference, Target("onnxruntime", str(candidate)), toy_data.test.texts[:20], TASK)
    assert found.findings[0].part == "inputs"


def test_a_pruned_model_is_walked_by_the_layers_it_kept(trained: Path, toy_data: Any, tmp_path: Path) -> None:
    from deploykit.tasks.pruned import LayerPlan, PruningPlan, cut

    model = TASK.load_model(trained)
    cut(model, PruningPlan((LayerPlan(1, tuple(range(4)), tuple(range(64))),)))
    shutil.copytree(trained, tmp_path / "pruned", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    model.save_pretrained(tmp_path / "pruned")
    found = locate(
        Target("torch", str(trained)), Target("torch", str(tmp_path / "pruned")), toy_data.test.texts[:12], TASK
    )
    assert {layer.layer for layer in found.layers} == {None, 1}
    assert (found.findings[0].part, found.findings[0].layer) == ("layer", 0)


def fails(reference: Path, candidate: Path, data: Path, **more: Any) -> ParityReport:
    return parity_alone(
        str(reference), str(candidate), data=str(data), columns=("text", "label"), max_drop=0.01, max_flips=None,
        tolerance=None, confidence=0.95, tokenizer=None, task="text-classification", **more,
    )  # fmt: skip


def test_a_failure_is_kept_with_what_reproduces_it(
    candidate: Path,
    exported: Callable[[str], Any],
    toy_data: Any,
    write_csv: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil_layer(candidate, 20.0)
    data, out = write_csv(tmp_path / "data.csv", toy_data.test), tmp_path / "deep" / "failed"
    report = fails(exported("bert").checkpoint, candidate, data, reproduce=out)
    assert report.verdict == "fail"
    assert report.localized is not None
    assert report.localized.findings[0].part == "ffn"
    assert {path.name for path in out.iterdir()} == {"samples.csv", "outputs.npz", "verdict.json", "README.md"}
    assert {path.name for path in out.parent.iterdir()} == {"failed"}  # no scratch
    assert ParityReport.model_validate_json((out / "verdict.json").read_text()) == report
    rows = list(csv.DictReader((out / "samples.csv").open(encoding="utf-8")))
    assert [int(row["row"]) for row in rows] == [sample.index for sample in report.changed]
    with np.load(out / "outputs.npz") as arrays:
        assert np.abs(arrays["reference_logits"] - arrays["candidate_logits"]).max() > 0.1
        assert len(arrays["reference_logits"]) == len(rows)
    command = next(line for line in (out / "README.md").read_text().splitlines() if line.startswith("deploykit"))
    assert main(command.split()[1:]) == 3
    assert "where: layer 0 ffn activation" in capsys.readouterr().out
    with pytest.raises(UsageError, match="is there already"):
        fails(exported("bert").checkpoint, candidate, data, reproduce=out)


def test_of_a_success_nothing_is_kept(
    candidate: Path, exported: Callable[[str], Any], toy_data: Any, write_csv: Any, tmp_path: Path
) -> None:
    data = write_csv(tmp_path / "data.csv", toy_data.train)
    report = fails(exported("bert").checkpoint, candidate, data, reproduce=tmp_path / "failed")
    assert (report.verdict, report.localized) == ("pass", None)
    assert not (tmp_path / "failed").exists()
