"""Weights alone in few bits: what is packed, how near the answers stay, and what can load it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.compress.quantize import QuantizeReport, Variant, quantize
from deploykit.compress.weights import _rounded
from deploykit.errors import ExportError
from deploykit.export.compatibility import preflight
from deploykit.parity.activations import open_trace
from deploykit.runners import Target, infer_all, open_runner
from deploykit.runners.anatomy import anatomy_of
from deploykit.runners.tokenize import Encoder

BITS = {"int8_weights": 8, "int4_weights": 4}


@pytest.fixture(scope="module")
def packed(
    exported: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, QuantizeReport]]:
    """Packs a model's weights, once."""
    made: dict[tuple[str, str, str], tuple[Path, QuantizeReport]] = {}

    def make(scheme: Any, kind: str = "bert", graph: Any = "fused") -> tuple[Path, QuantizeReport]:
        key = scheme, kind, graph
        if key not in made:
            out = tmp_path_factory.mktemp("packed")
            made[key] = out, quantize(exported(kind).folder, out, Variant(scheme, graph))
        return made[key]

    return make


def logits(folder: Path, texts: list[str], size: int = 1) -> Any:
    batches = [list(range(start, min(start + size, len(texts)))) for start in range(0, len(texts), size)]
    with open_runner(Target("onnxruntime", str(folder), threads=1)) as runner:
        return infer_all(runner, texts, batches)["logits"]


@pytest.mark.parametrize("scheme", BITS)
@pytest.mark.parametrize("graph", ["fused", "plain"])
def test_every_weight_and_the_embeddings_are_packed_and_the_answers_stay(
    scheme: str, graph: str, packed: Any, exported: Callable[[str], Any], toy_data: Any
) -> None:
    folder, report = packed(scheme, "bert", graph)
    # Two layers: query, key, value, attention output and two feed-forward products each; pooler; classifier.
    assert report.products == {"MatMulNBits": 14}
    assert report.float_products == (4 if graph == "plain" else 0)
    assert report.embeddings
    kinds = {node.op_type for node in onnx.load(folder / "model.onnx").graph.node}
    assert ("MultiHeadAttention" in kinds) == (graph == "fused")
    assert ("GatherBlockQuantized" in kinds) == (scheme == "int4_weights")
    texts = list(toy_data.test.texts[:100])
    before, after = logits(exported("bert").folder, texts), logits(folder, texts)
    assert np.abs(before - after).max() > 1e-4
    assert np.mean(before.argmax(axis=1) == after.argmax(axis=1)) >= 0.98
    assert (folder / "tokenizer.json").is_file()


def test_fewer_bits_make_a_smaller_file_that_is_further_off(
    packed: Any, exported: Callable[[str], Any], toy_data: Any
) -> None:
    source = exported("bert").folder
    texts = list(toy_data.test.texts[:60])
    wanted = logits(source, texts)
    sizes, errors = [(source / "model.onnx").stat().st_size], [0.0]
    for scheme in BITS:
        folder, report = packed(scheme)
        assert report.size_bytes == (folder / "model.onnx").stat().st_size
        sizes.append(report.size_bytes)
        errors.append(float(np.square(logits(folder, texts) - wanted).mean()))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)


@pytest.mark.parametrize("kind", ["roberta", "distilbert"])
def test_other_encoders_are_packed_too(kind: str, packed: Any, exported: Callable[[str], Any], toy_data: Any) -> None:
    folder, report = packed("int8_weights", kind)
    assert report.products["MatMulNBits"] >= 7
    assert report.float_products == 0
    texts = list(toy_data.test.texts[:40])
    before, after = logits(exported(kind).folder, texts), logits(folder, texts)
    assert np.square(before - after).mean() < 0.01 * before.var()


@pytest.mark.parametrize("scheme", BITS)
def test_answers_do_not_depend_on_the_neighbours_in_a_batch(scheme: str, packed: Any, toy_data: Any) -> None:
    texts = list(toy_data.test.texts[:16])
    folder, _ = packed(scheme)
    np.testing.assert_allclose(logits(folder, texts, 16), logits(folder, texts), atol=1e-5)


@pytest.mark.parametrize(
    ("scheme", "old", "enough"),
    [("int8_weights", "triton-25.04", "triton-25.05"), ("int4_weights", "triton-24.11", "triton-24.12")],
)
def test_a_server_that_is_too_old_for_few_bits_is_refused(scheme: str, old: str, enough: str, packed: Any) -> None:
    """FAULTS 43."""
    path = packed(scheme)[0] / "model.onnx"
    with pytest.raises(
        ExportError, match="with 8 bits" if scheme == "int8_weights" else "GatherBlockQuantized"
    ) as found:
        preflight(path, old)
    assert "serve with" in found.value.hint
    preflight(path, enough)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from((4, 8)),
    st.integers(1, 5),
    st.integers(1, 70),
    st.sampled_from((16, 32)),
    st.floats(1e-3, 1e3),
    st.integers(0, 2**31),
)
def test_no_weight_of_a_table_is_further_off_than_half_a_step(
    bits: int, rows: int, width: int, block: int, size: float, seed: int
) -> None:
    table = (size * np.random.default_rng(seed).normal(size=(rows, width))).astype(np.float32)
    steps, scales = _rounded(table, bits, block)
    assert steps.shape == table.shape
    assert np.abs(steps).max() <= 2 ** (bits - 1) - 1
    each = np.repeat(scales, block, axis=1)[:, :width]
    assert (np.abs(steps * each - table) <= 0.501 * each).all()


def test_parity_sees_the_bits(packed: Any) -> None:
    for scheme, bits in BITS.items():
        anatomy = anatomy_of(Target("onnxruntime", str(packed(scheme)[0])))
        assert anatomy is not None
        assert anatomy.precision == f"int{bits}"
        assert not anatomy.dynamic_scales


def test_parity_can_look_inside(packed: Any, exported: Callable[[str], Any]) -> None:
    folder, encoder = packed("int4_weights")[0], Encoder(exported("bert").folder)
    reference, candidate = (open_trace(Target("onnxruntime", str(path))) for path in (exported("bert").folder, folder))
    assert candidate.precision == "int8"
    feed = encoder.encode(["where is my parcel"])
    assert set(candidate.run(feed)) >= set(reference.run(feed))


def test_what_is_to_stay_in_float_stays(exported: Callable[[str], Any], tmp_path: Path) -> None:
    source = exported("bert").folder
    named = [node.name for node in onnx.load(source / "model.onnx").graph.node if node.op_type in ("Attention", "Gemm")]
    report = quantize(source, tmp_path, Variant("int8_weights"), in_float=[named[0], named[-1]])
    assert report.products == {"MatMulNBits": 14 - 3 - 1}
    assert report.float_products == 2


def test_the_root_logger_stays_as_it_was(exported: Callable[[str], Any], tmp_path: Path) -> None:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    quantize(exported("bert").folder, tmp_path, Variant("int8_weights"))
    assert (root.level, list(root.handlers)) == before
