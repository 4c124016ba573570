"""PyTorch and onnxruntime as runners: from raw text to the same logits, and errors that say what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

from deploykit.errors import DataError, ModelError
from deploykit.runners import Target, open_runner
from deploykit.runners.onnx_runner import open_session

MESSAGES = ["where is my parcel", "cancel", "", "📦 " * 300, "a\0b"]


@pytest.mark.parametrize("kind", ["bert", "roberta", pytest.param("mpnet", marks=pytest.mark.slow)])
def test_both_runners_give_the_same_logits_from_raw_text(kind: str, exported: Callable[[str], Any]) -> None:
    source = exported(kind)
    torch_target = Target("torch", str(source.checkpoint), threads=1)
    onnx_target = Target("onnxruntime", str(source.folder), threads=1)
    with open_runner(torch_target) as reference, open_runner(onnx_target) as candidate:
        assert reference.name == "PyTorch fp32"
        for batch in (*([message] for message in MESSAGES), MESSAGES):
            expected, found = reference.infer(batch), candidate.infer(batch)
            assert set(found) == set(expected) == {"logits"}
            assert found["logits"].dtype == expected["logits"].dtype == np.float32
            np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-4)


@pytest.mark.parametrize("kind", ["torch", "onnxruntime"])
def test_row_54_a_lone_surrogate_is_refused(kind: Any, exported: Callable[[str], Any]) -> None:
    source = exported("bert")
    location = source.checkpoint if kind == "torch" else source.folder
    with open_runner(Target(kind, str(location), threads=1)) as runner:
        with pytest.raises(DataError, match="message 2 is not valid Unicode"):
            runner.infer(["hello", "\ud83d"])
        assert runner.infer(["hello"])["logits"].shape == (1, 4)


def test_a_model_whose_tokenizer_has_no_length_is_truncated_to_its_positions(
    tiny_checkpoint: Callable[..., Path],
) -> None:
    with open_runner(Target("torch", str(tiny_checkpoint("roberta", max_length=None)), threads=1)) as runner:
        assert np.isfinite(runner.infer(["parcel " * 500])["logits"]).all()


def test_reduced_precision_answers_in_float32(exported: Callable[[str], Any]) -> None:
    with open_runner(Target("torch", str(exported("bert").checkpoint), precision="bf16", threads=1)) as runner:
        assert runner.name == "PyTorch bf16"
        assert runner.infer(["where is my parcel"])["logits"].dtype == np.float32


def test_a_bare_file_takes_its_tokenizer_from_elsewhere(exported: Callable[[str], Any], tmp_path: Path) -> None:
    source = exported("bert")
    bare = tmp_path / "bare.onnx"
    shutil.copy2(source.folder / "model.onnx", bare)
    with pytest.raises(ModelError, match=r"no tokenizer\.json"), open_runner(Target("onnxruntime", str(bare))):
        pass
    with (
        open_runner(Target("onnxruntime", str(bare), tokenizer=str(source.folder), threads=1)) as runner,
        open_runner(Target("onnxruntime", str(source.folder), threads=1)) as whole,
    ):
        np.testing.assert_array_equal(runner.infer(MESSAGES)["logits"], whole.infer(MESSAGES)["logits"])


def onnx_folder(folder: Path, source: Path, text: str) -> Path:
    shutil.copytree(source, folder)
    onnx.save(
        parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18, "com.microsoft" : 1]> {text}'),
        folder / "model.onnx",
    )
    return folder


@pytest.mark.parametrize(
    "node",
    [
        "logits = com.microsoft.Attention (x)",  # too few inputs
        "logits = NoSuchOperator (x)",
        "logits = Add (x, nowhere)",
        "logits = Gelu (x)",  # opset 20
    ],
)
def test_a_graph_that_onnxruntime_can_not_load_is_a_model_error(
    node: str, exported: Callable[[str], Any], tmp_path: Path
) -> None:
    graph = f"g (int64[b, s] input_ids) => (float[b, s] logits) {{ x = Cast <to = 1> (input_ids) {node} }}"
    folder = onnx_folder(tmp_path / "model", exported("bert").folder, graph)
    with pytest.raises(ModelError, match="can't load") as caught:
        open_session(folder / "model.onnx")
    assert caught.value.hint


def test_inputs_that_no_tokenizer_gives_are_named(exported: Callable[[str], Any], tmp_path: Path) -> None:
    graph = """g (int64[b, s] input_ids, int64[b, s] position_ids) => (int64[b, s] logits)
    { logits = Add (input_ids, position_ids) }"""
    folder = onnx_folder(tmp_path / "model", exported("bert").folder, graph)
    with pytest.raises(ModelError, match="wants position_ids"), open_runner(Target("onnxruntime", str(folder))):
        pass


def test_a_graph_that_fails_on_a_message_is_a_model_error(exported: Callable[[str], Any], tmp_path: Path) -> None:
    graph = """g (int64[b, s] input_ids) => (int64[b, t] logits)
    { shape = Constant <value_ints = [2, 3]> () logits = Reshape (input_ids, shape) }"""
    folder = onnx_folder(tmp_path / "model", exported("bert").folder, graph)
    with (
        open_runner(Target("onnxruntime", str(folder), threads=1)) as runner,
        pytest.raises(ModelError, match=r"failed on 1 message\(s\)"),
    ):
        runner.infer(["where is my parcel now"])


@pytest.mark.parametrize("kind", ["torch", "onnxruntime"])
def test_a_cuda_device_that_is_not_there_is_refused(
    kind: Any, exported: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    source = exported("bert")
    location = source.checkpoint if kind == "torch" else source.folder
    with pytest.raises(ModelError, match="CUDA") as caught, open_runner(Target(kind, str(location), device="cuda")):
        pass
    assert "doctor" in str(caught.value.hint)


def test_a_checkpoint_of_another_kind_is_a_model_error(exported: Callable[[str], Any], tmp_path: Path) -> None:
    source = exported("bert").checkpoint
    for change in ({"model_type": "nonsense"}, {"model_type": "clip"}, {"hidden_size": 64}, {"hidden_size": "x"}):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(source, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError) as caught, open_runner(Target("torch", str(folder))):
            pass
        assert caught.value.hint
