"""Planted faults are caught and placed as was written down before, harmless changes pass: `benchmarks/` in small."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from deploykit.pipeline.measuring import OutputCache

BENCHMARKS = str(Path(__file__).parents[3] / "benchmarks")
sys.path.insert(0, BENCHMARKS)
try:
    from parity_faults import try_clean, try_fault, try_mixed_up
    from parity_plants import CLEAN, FAULTS, Clean, Fault, Workbench
finally:
    sys.path.remove(BENCHMARKS)


PLANTED = (
    "mask dropped", "position ids off by one", "a weight transposed", "two layers' weights swapped", "one head zeroed",
    "LayerNorm epsilon x1000", "labels permuted in the head", "labels permuted in config.json", "another vocabulary",
    "lower-casing lost", "truncation at another length", "NaN in few rows", "fp16 overflow", "frozen batch axis",
    "batch frozen within", "dropout left on", "wrong output picked", "a temperature",
    "probabilities in place of logits", "a batch-dependent answer", "the rows of a batch in another order",
    "int8: wrong calibration set", "int8: weights read with another offset",
)  # fmt: skip
"""Those that a model with two small layers feels: it is right though a product of it is rounded to three values."""
HARMLESS = (
    "fused as exported", "plain as exported", "fused against plain", "opset 20", "onnxruntime's extended fusions",
    "renamed tensors", "identity nodes", "initializers as constants", "one output more", "external data",
    "a package folder", "a bare file", "fp16", "static int8", "dynamic int8",
)  # fmt: skip


@pytest.fixture(scope="module")
def bench(
    trained: Path, toy_data: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Workbench, list[str], OutputCache]:
    folder = tmp_path_factory.mktemp("bench")
    texts = toy_data.test.texts
    made = Workbench.made(trained, folder, texts, toy_data.train.texts[:100])
    return made, list(toy_data.test.labels), OutputCache(folder / "outputs")


@pytest.mark.parametrize("fault", [each for each in FAULTS if each.name in PLANTED], ids=lambda fault: fault.name)
def test_row_48_a_planted_fault_is_caught(fault: Fault, bench: Any, tmp_path: Path) -> None:
    made, labels, cache = bench
    outcome = try_fault(fault, made, labels, tmp_path, cache, layers=2)
    assert outcome.verdict == "fail", outcome
    assert outcome.right, outcome
    assert outcome.placed is not False, outcome


@pytest.mark.parametrize("clean", [each for each in CLEAN if each.name in HARMLESS], ids=lambda clean: clean.name)
def test_a_harmless_change_passes(clean: Clean, bench: Any, tmp_path: Path) -> None:
    made, labels, cache = bench
    outcome = try_clean(clean, made, labels, tmp_path, cache)
    assert outcome.verdict == "pass", outcome


def test_every_case_that_is_named_is_there() -> None:
    assert set(PLANTED) <= {fault.name for fault in FAULTS}
    assert set(HARMLESS) <= {clean.name for clean in CLEAN}
    assert len(FAULTS) >= 30
    assert len(CLEAN) >= 30


def test_requests_that_are_mixed_up_are_caught(bench: Any) -> None:
    made, labels, _ = bench
    outcome = try_mixed_up(labels, made.texts, every=4)
    assert outcome.right, outcome
