"""The exporter against PyTorch, on several architectures and with planted faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidGraph

from deploykit.errors import ExportError, ModelError
from deploykit.events import Warn
from deploykit.export import to_onnx
from deploykit.export.lean import make_lean
from deploykit.export.to_onnx import export_onnx
from deploykit.runners.onnx_runner import open_session
from deploykit.tasks import find_task

KINDS = ("bert", "electra", "distilbert", "roberta", "xlm-roberta", "mpnet")
TASK = find_task("text-classification")


def right_padded(lengths: list[int], vocabulary: int, pad_id: int, seed: int = 0) -> dict[str, Any]:
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(seed).integers(5, vocabulary, mask.shape)
    return {"input_ids": np.where(mask > 0, ids, pad_id), "attention_mask": mask}


def masked(holes: list[list[int]], length: int, vocabulary: int) -> dict[str, Any]:
    """Full rows with these positions masked: at the left, in between."""
    mask = np.ones((len(holes), length), dtype=np.int64)
    for row, positions in enumerate(holes):
        mask[row, positions] = 0
    return {"input_ids": np.random.default_rng(1).integers(5, vocabulary, mask.shape), "attention_mask": mask}


def torch_logits(checkpoint: Path, batch: dict[str, Any]) -> Any:
    import torch

    model = TASK.load_model(checkpoint, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(**{name: torch.from_numpy(value) for name, value in batch.items()}).logits.numpy()


def export_planted(
    source: Any, out: Path, monkeypatch: pytest.MonkeyPatch, plant: Callable[[onnx.ModelProto], None], **settings: Any
) -> tuple[Any, list[str]]:
    """Export again what `source` was exported from, with a fault planted in what PyTorch's exporter returns."""

    def save(path: Path) -> None:
        source.program.save(path)
        model = onnx.load(path)
        plant(model)
        onnx.save(model, path)

    monkeypatch.setattr(to_onnx, "_exported", lambda *arguments: SimpleNamespace(save=save))
    said: list[Any] = []
    report = export_onnx(source.checkpoint, out, TASK, listener=said.append, **settings)
    return report, [event.message for event in said if isinstance(event, Warn)]


def nothing(model: onnx.ModelProto) -> None:
    """No fault."""


def ignore_mask(model: onnx.ModelProto) -> None:
    """What reads the mask gets ones instead."""
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name == "attention_mask":
                node.input[position] = "all_ones"
    one = numpy_helper.from_array(np.array(1, dtype=np.int64), "plus_one")
    model.graph.initializer.append(one)
    model.graph.node.insert(0, helper.make_node("Add", ["mask_minus_mask", "plus_one"], ["all_ones"]))
    model.graph.node.insert(0, helper.make_node("Sub", ["attention_mask", "attention_mask"], ["mask_minus_mask"]))


def swap_weights(model: onnx.ModelProto) -> None:
    """Two layers' weights of the same kind change places: the first two large initializers of equal shape."""
    seen: dict[tuple[int, ...], onnx.TensorProto] = {}
    for tensor in model.graph.initializer:
        shape = tuple(tensor.dims)
        if len(shape) == 2 and min(shape) >= 32 and tensor.data_type == onnx.TensorProto.FLOAT and shape in seen:
            other = seen[shape]
            first, second = numpy_helper.to_array(other), numpy_helper.to_array(tensor)
            if not np.array_equal(first, second):
                other.CopyFrom(numpy_helper.from_array(second.copy(), other.name))
                tensor.CopyFrom(numpy_helper.from_array(first.copy(), tensor.name))
                return
        seen[shape] = tensor
    raise AssertionError("no two weights of one shape")


@pytest.mark.parametrize("kind", KINDS)
def test_both_graphs_give_pytorchs_logits_on_any_batch(kind: str, exported: Callable[[str], Any]) -> None:
    source = exported(kind)
    config = json.loads((source.checkpoint / "config.json").read_text())
    vocabulary, pad_id = config["vocab_size"], config["pad_token_id"]
    batches = [
        right_padded([12], vocabulary, pad_id),
        right_padded([1], vocabulary, pad_id),
        right_padded([1, 30, 7, 2, 19], vocabulary, pad_id),
        right_padded([64, 3], vocabulary, pad_id),
        right_padded(list(range(1, 18)), vocabulary, pad_id),
        masked([[0, 1, 2], [3, 4], [], [0, 5, 6]], 9, vocabulary),
    ]
    sessions = [open_session(source.folder / name, threads=1) for name in ("plain.onnx", "model.onnx")]
    for batch in batches:
        expected = torch_logits(source.checkpoint, batch)
        assert np.abs(expected).max() > 0.1  # a model that says nothing would prove nothing
        for session in sessions:
            (found,) = session.run(["logits"], batch)
            assert found.shape == expected.shape
            assert found.dtype == np.float32
            assert np.abs(found - expected).max() <= 1e-4
    assert all(not isinstance(size, int) for value in sessions[1].get_inputs() for size in value.shape)
    assert source.warnings == ()
    assert source.report.fused
    assert max(source.report.max_difference.values()) <= 1e-4


@pytest.mark.parametrize(
    ("kind", "layers", "embeddings", "attention"),
    [
        ("bert", 2, 1, 2),
        ("electra", 2, 1, 2),
        ("distilbert", 2, 1, 2),
        # Position ids depend on where the padding is: the look-ups stay, their sum is one more SkipLayerNormalization.
        ("roberta", 2, 0, 2),
        ("xlm-roberta", 2, 0, 2),
        # So do they here, and a bias by distance is added to the scores, which no mask can stand for.
        pytest.param("mpnet", 2, 0, 0, marks=pytest.mark.slow),
    ],
)
def test_only_rewrites_that_hold_are_applied(
    kind: str, layers: int, embeddings: int, attention: int, exported: Callable[[str], Any]
) -> None:
    operators = exported(kind).report.operators
    assert operators.get("EmbedLayerNormalization", 0) == embeddings
    assert operators.get("Attention", 0) == attention
    assert operators["SkipLayerNormalization"] == 2 * layers + (1 - embeddings)
    assert operators["BiasGelu"] == layers
    assert operators["Slice"] == 2  # only the first token goes through the last layer's feed-forward part


def test_the_lean_graph_has_little_beside_its_products(exported: Callable[[str], Any]) -> None:
    source = exported("bert")
    graph = onnx.load(source.folder / "model.onnx").graph
    assert len(graph.node) <= 24
    attention = [node for node in graph.node if node.op_type == "Attention"]
    constants = {tensor.name for tensor in graph.initializer}
    for node in attention:
        assert node.input[1] in constants  # one joined weight, which quantizers need
        assert node.input[3] == "attention_mask_int32"
    assert not graph.value_info


def test_files_beside_the_graph_and_nothing_of_this_machine_in_it(exported: Callable[[str], Any]) -> None:
    source = exported("bert")
    names = {path.name for path in source.folder.iterdir()}
    assert names == {"model.onnx", "plain.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"}
    for name in ("model.onnx", "plain.onnx"):
        content = (source.folder / name).read_bytes()
        assert b"site-packages" not in content
        assert b"deploykit/" not in content
        assert str(source.checkpoint).encode() not in content
    assert source.report.opset == 18
    assert source.report.target == "triton-25.08"


@pytest.mark.parametrize("fault", [ignore_mask, swap_weights])
def test_a_wrong_graph_from_the_exporter_is_refused(
    fault: Callable[[onnx.ModelProto], None],
    exported: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ExportError, match="the exported graph differs from PyTorch by"):
        export_planted(exported("bert"), tmp_path, monkeypatch, fault)


def unmask(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "Attention":
            node.input[3] = ""


def dangle(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Attention").input[0] = "nowhere"


def reshape_output(model: onnx.ModelProto) -> None:
    """Logits of the first row only, which broadcast against all."""
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[list(last.output).index("logits")] = "all_logits"
    row = [numpy_helper.from_array(np.array([value], dtype=np.int64), f"row_{value}") for value in (0, 1)]
    model.graph.initializer.extend(row)
    model.graph.node.append(helper.make_node("Slice", ["all_logits", "row_0", "row_1", "row_0"], ["logits"]))


@pytest.mark.parametrize("fault", [swap_weights, dangle, reshape_output])
def test_a_wrong_fused_graph_gives_way_to_the_plain_one(
    fault: Callable[[onnx.ModelProto], None],
    exported: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(model: onnx.ModelProto, without: Sequence[str] = ()) -> onnx.ModelProto:
        lean = make_lean(model, without)
        fault(lean)
        return lean

    monkeypatch.setattr(to_onnx, "make_lean", wrong)
    report, warnings = export_planted(exported("bert"), tmp_path, monkeypatch, nothing)
    assert not report.fused
    assert set(report.max_difference) == {"plain"}
    assert len(warnings) == 1
    assert "the plain one is used instead" in warnings[0]
    assert (tmp_path / "model.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()
    assert "Attention" not in report.operators


def test_a_mask_that_a_fusion_loses_is_found_and_the_fusion_left_out(
    exported: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: onnx.ModelProto, without: Sequence[str] = ()) -> onnx.ModelProto:
        lean = make_lean(model, without)
        if "attention by mask" not in without:
            unmask(lean)
        return lean

    monkeypatch.setattr(to_onnx, "make_lean", wrong)
    report, warnings = export_planted(exported("bert"), tmp_path, monkeypatch, nothing)
    assert report.fused
    assert warnings[0].endswith("through attention by mask: left out")


@pytest.mark.parametrize(("fusion", "kind"), [("EmbedLayerNormalization",) * 2, ("SkipLayerNormalization",) * 2])
def test_only_the_fusion_at_fault_is_left_out(
    fusion: str, kind: str, exported: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: onnx.ModelProto, without: Sequence[str] = ()) -> onnx.ModelProto:
        lean = make_lean(model, without)
        if fusion not in without:
            swap_weights(lean)
        return lean

    monkeypatch.setattr(to_onnx, "make_lean", wrong)
    report, warnings = export_planted(exported("bert"), tmp_path, monkeypatch, nothing)
    assert report.fused
    assert report.max_difference["fused"] <= to_onnx.TOLERANCE
    assert kind not in report.operators
    assert "Attention" in report.operators
    (warning,) = warnings
    assert warning.endswith(f"through {fusion}: left out")


@pytest.mark.parametrize(
    "error",
    [KeyError("value"), AssertionError(), StopIteration(), InvalidGraph("no such operator"), ModelError("unsafe")],
)
def test_a_fuser_that_fails_gives_way_to_the_plain_graph(
    error: Exception, exported: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: onnx.ModelProto) -> onnx.ModelProto:
        raise error

    monkeypatch.setattr(to_onnx, "make_lean", fail)
    report, warnings = export_planted(exported("bert"), tmp_path, monkeypatch, nothing)
    assert not report.fused
    assert len(warnings) == 1
    assert type(error).__name__ in warnings[0]
    assert (tmp_path / "model.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()


@pytest.mark.parametrize("error", [RuntimeError("\nconstraints violated\nsee the log"), RuntimeError("")])
def test_what_pytorch_can_not_export_is_an_export_error(
    error: Exception, exported: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def fail(*arguments: Any, **settings: Any) -> None:
        raise error

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ExportError) as caught:
        export_onnx(exported("bert").checkpoint, tmp_path, TASK)
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_an_opset_that_the_exporter_silently_leaves_out_is_refused(
    exported: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ExportError, match="exported opset 18 where 99 was asked for"):
        export_planted(exported("bert"), tmp_path, monkeypatch, nothing, opset=99)


def test_row_43_a_file_too_new_for_the_server_fails_at_export(
    exported: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ExportError, match=r"too new for Triton 23\.04"):
        export_planted(exported("bert"), tmp_path, monkeypatch, nothing, target="triton-23.04")


def test_an_encoder_without_a_head_is_refused(exported: Callable[[str], Any], tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    headless = tmp_path / "headless"
    shutil.copytree(exported("bert").checkpoint, headless)
    weights = load_file(headless / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file(kept, headless / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no weights for classifier\.bias"):
        export_onnx(headless, tmp_path / "out", TASK)
