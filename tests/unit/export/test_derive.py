"""Graphs derived from the whole model's are those that PyTorch's exporter gives, and answer as the cut model does."""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from deploykit.errors import ExportError
from deploykit.export.derive import derive
from deploykit.export.modules import module_values
from deploykit.export.to_onnx import WholeGraph, export_onnx
from deploykit.pipeline.clock import save_model
from deploykit.runners.onnx_runner import open_session
from deploykit.tasks import find_task
from deploykit.tasks.pruned import LayerPlan, PruningPlan, cut, heads_fixed

TASK = find_task("text-classification")
SECOND_ALONE, BOTH, FIRST_ALONE = [(1, (0, 3), 40)], [(0, (1,), 8), (1, (0, 1, 2), 56)], [(0, (2, 3), 24)]
CASES = [
    ("bert", FIRST_ALONE), ("bert", SECOND_ALONE), ("bert", BOTH), ("electra", BOTH), ("distilbert", SECOND_ALONE),
    ("roberta", SECOND_ALONE), ("xlm-roberta", BOTH), pytest.param("mpnet", SECOND_ALONE, marks=pytest.mark.slow),
]  # fmt: skip


@pytest.fixture
def whole_graph(exported: Callable[[str], Any], tmp_path: Path) -> Callable[[str], tuple[Any, WholeGraph]]:
    """An exported checkpoint, and its model with its graph as PyTorch's exporter gives it."""

    def of(kind: str) -> tuple[Any, WholeGraph]:
        source = exported(kind)
        source.program.save(tmp_path / "whole.onnx")
        return source, WholeGraph(TASK.load_model(source.checkpoint).eval(), tmp_path / "whole.onnx")

    return of


def cut_checkpoint(source: Path, kept: list[tuple[int, tuple[int, ...], int]], out: Path) -> tuple[Any, Path]:
    """A model cut from a checkpoint, every weight of it changed as fitting it does, and its folder.

    But for what is zero, as the biases of a model that was never trained: the exporter leaves such sums out.
    """
    small = TASK.load_model(source)
    heads = tuple(range(4)) if heads_fixed(small) else None
    cut(small, PruningPlan(tuple(LayerPlan(n, heads or some, tuple(range(64 - c, 64))) for n, some, c in kept)))
    torch.manual_seed(1)
    for name, parameter in small.named_parameters():
        if parameter.any() or "norm" in name.lower():
            parameter.data += 0.05 * torch.randn_like(parameter)
    save_model(small, source, out, {})
    return small.eval(), out


def padded(vocabulary: int) -> dict[str, np.ndarray]:
    mask = (np.arange(21) < np.array([21, 1, 8, 20])[:, None]).astype(np.int64)
    return {"input_ids": np.random.default_rng(3).integers(0, vocabulary, mask.shape), "attention_mask": mask}


@pytest.mark.parametrize(("kind", "kept"), CASES)
def test_a_derived_graph_answers_as_the_cut_model(
    kind: str, kept: list[Any], whole_graph: Callable[[str], tuple[Any, WholeGraph]], tmp_path: Path
) -> None:
    source, whole = whole_graph(kind)
    small, folder = cut_checkpoint(source.checkpoint, kept, tmp_path / "small")
    report = export_onnx(folder, tmp_path / "out", TASK, whole=whole)
    batch = padded(small.config.vocab_size)
    with torch.inference_mode():
        expected = small(**{name: torch.from_numpy(value) for name, value in batch.items()}).logits.numpy()
    assert np.abs(expected).max() > 0.1
    for name in ("plain.onnx", "model.onnx"):
        (found,) = open_session(tmp_path / "out" / name, threads=1).run(["logits"], batch)
        assert np.abs(found - expected).max() < 1e-5
    fused = source.report.operators
    for operator in ("Attention", "MultiHeadAttention", "BiasGelu"):
        assert report.operators.get(operator, 0) == fused.get(operator, 0) // 2 * len(kept)
    assert report.fused


def test_it_is_the_graph_that_would_have_been_exported(
    whole_graph: Callable[[str], tuple[Any, WholeGraph]], tmp_path: Path
) -> None:
    source, whole = whole_graph("bert")
    _, folder = cut_checkpoint(source.checkpoint, SECOND_ALONE, tmp_path / "small")
    export_onnx(folder, tmp_path / "derived", TASK, whole=whole)
    export_onnx(folder, tmp_path / "exported", TASK)
    for name in ("plain.onnx", "model.onnx"):
        derived, exported = (onnx.load(tmp_path / folder / name) for folder in ("derived", "exported"))
        kinds = [collections.Counter(node.op_type for node in model.graph.node) for model in (derived, exported)]
        assert kinds[0] == kinds[1]
        shapes = [
            sorted(tuple(tensor.dims) for tensor in model.graph.initializer if tensor.data_type == 1)
            for model in (derived, exported)
        ]
        assert shapes[0] == shapes[1]
        named = [
            {tensor.name for tensor in model.graph.initializer if "." in tensor.name} for model in (derived, exported)
        ]
        assert named[0] == named[1], "parameters have the names of the cut model's"
        places = [sorted(module_values(model).values()) for model in (derived, exported)]
        assert places[0] == places[1]


def test_a_bias_that_the_exporter_left_out_is_missed(
    whole_graph: Callable[[str], tuple[Any, WholeGraph]], tmp_path: Path
) -> None:
    """The check against PyTorch finds it, and whoever asked for the graph exports the model itself."""
    source, whole = whole_graph("electra")
    small, _ = cut_checkpoint(source.checkpoint, BOTH, tmp_path / "small")
    for parameter in small.parameters():
        if not parameter.any():
            parameter.data += 0.05 * torch.randn_like(parameter)
    save_model(small, source.checkpoint, tmp_path / "biased", {})
    with pytest.raises(ExportError, match="differs from PyTorch"):
        export_onnx(tmp_path / "biased", tmp_path / "out", TASK, whole=whole)


def test_a_model_of_another_origin_is_refused(
    whole_graph: Callable[[str], tuple[Any, WholeGraph]], tiny_checkpoint: Callable[..., Path]
) -> None:
    _, whole = whole_graph("bert")
    with pytest.raises(ExportError, match="can't be derived"):
        derive(onnx.load(whole.path), whole.model, TASK.load_model(tiny_checkpoint("bert")))


def test_a_graph_without_the_exporters_notes_is_refused(
    whole_graph: Callable[[str], tuple[Any, WholeGraph]], tmp_path: Path
) -> None:
    source, whole = whole_graph("bert")
    small, _ = cut_checkpoint(source.checkpoint, BOTH, tmp_path / "small")
    plain = onnx.load(source.folder / "plain.onnx")  # its nodes were made anonymous
    with pytest.raises(ExportError, match="can't be derived"):
        derive(plain, whole.model, small)
