"""What a model with a prefix is packaged as, in a real embedded Triton."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from safetensors.numpy import load_file

from deploykit.data.table import Table
from deploykit.triton.embedded import unsupported_reason

pytestmark = [
    pytest.mark.triton,
    pytest.mark.slow,
    pytest.mark.skipif(unsupported_reason() is not None, reason=str(unsupported_reason())),
]


def rows(table: Table) -> list[dict[str, str]]:
    labels = table.labels or ()
    return [{"text": text, "label": str(label)} for text, label in zip(table.texts, labels, strict=True)]


def test_a_prefix_is_served_in_int8_as_it_was_learned(run_tiny: Any, trained: Path, toy_data: Any) -> None:
    run = run_tiny(
        "sentiment", rows(toy_data.train), rows(toy_data.test), f"model={trained}", "data.label=label",
        "finetune.strategy=prefix", "finetune.prompt_tokens=4", "finetune.epochs=2", "quantize.mend=false",
    )  # fmt: skip
    assert run.checks["float32 ONNX against PyTorch"]["figure"] < 1e-4
    assert sum("prefix_" in name for name in load_file(run.only("finetune") / "model.safetensors")) == 4
    (path,) = run.repository.glob("*_onnx/1/model.onnx")
    served = onnx.load(path)
    attends = [node for node in served.graph.node if node.op_type == "MultiHeadAttention"]
    assert len(attends) == 2
    assert all(node.input[5].endswith("_of_4_heads") for node in attends)
    assert any(tuple(tensor.dims)[-2:] == (4, 32) for tensor in served.graph.initializer)
