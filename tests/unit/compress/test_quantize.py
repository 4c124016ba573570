"""Quantized graphs: what is int8 in them, how far they are from float, and what is refused."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, parser

from deploykit.compress.quantize import INT8_VARIANTS, QuantizeReport, Variant, quantize, scheme_variants, sensitivity
from deploykit.errors import QuantizeError
from deploykit.runners import Target, infer_all, open_runner


@pytest.fixture(scope="module")
def quantized(
    exported: Callable[[str], Any], toy_data: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Variant], tuple[Path, QuantizeReport]]:
    """Quantizes the trained model in a way, once."""
    made: dict[str, tuple[Path, QuantizeReport]] = {}

    def make(variant: Variant) -> tuple[Path, QuantizeReport]:
        if variant.name not in made:
            out = tmp_path_factory.mktemp(variant.name)
            report = quantize(exported("bert").folder, out, variant, calibration=toy_data.train.texts[:100])
            made[variant.name] = out, report
        return made[variant.name]

    return make


def logits(folder: Path, texts: list[str], size: int = 1) -> Any:
    batches = [list(range(start, min(start + size, len(texts)))) for start in range(0, len(texts), size)]
    with open_runner(Target("onnxruntime", str(folder), threads=1)) as runner:
        return infer_all(runner, texts, batches)["logits"]


# The trained model has 2 layers: joined QKV, attention output and two feed-forward products each; pooler; classifier.
@pytest.mark.parametrize(
    ("variant", "products"),
    [
        (Variant("int8_dynamic", "fused"), {"QAttention": 2, "MatMulInteger": 8}),
        (Variant("int8_dynamic", "split"), {"QAttention": 2, "MatMulInteger": 8}),
        (Variant("int8_dynamic", "plain"), {"MatMulInteger": 14}),
        (Variant("int8_static", "fused"), {"QAttention": 2, "MatMulIntegerToFloat": 8}),
        (Variant("int8_static", "split"), {"QAttention": 2, "MatMulIntegerToFloat": 8}),
        (Variant("int8_static", "plain"), {"MatMulIntegerToFloat": 14}),
    ],
    ids=lambda value: value.name if isinstance(value, Variant) else "",
)
def test_every_weight_is_int8_and_the_answers_stay(
    variant: Variant,
    products: dict[str, int],
    quantized: Callable[[Variant], tuple[Path, QuantizeReport]],
    exported: Callable[[str], Any],
    toy_data: Any,
) -> None:
    folder, report = quantized(variant)
    assert report.products == products
    assert report.variant == variant.name
    # In the plain graph the scores and their use stay products of two activations, in float.
    assert report.float_products == (4 if variant.graph == "plain" else 0)
    assert report.embeddings
    assert report.size_bytes == (folder / "model.onnx").stat().st_size
    model = onnx.load(folder / "model.onnx")
    operators = {node.op_type for node in model.graph.node}
    assert ("SkipLayerNormalization" in operators) == (variant.graph == "fused")
    assert ("DynamicQuantizeLinear" in operators) == (variant.scheme == "int8_dynamic")
    texts = list(toy_data.test.texts[:200])
    before, after = logits(exported("bert").folder, texts), logits(folder, texts)
    assert np.abs(before - after).max() > 1e-4  # it is another model
    assert np.mean(before.argmax(axis=1) == after.argmax(axis=1)) >= 0.99
    assert (folder / "tokenizer.json").is_file()
    assert (folder / "config.json").is_file()


def test_weights_are_quantized_per_output_channel(quantized: Callable[[Variant], tuple[Path, QuantizeReport]]) -> None:
    folder, _ = quantized(Variant("int8_dynamic", "plain"))
    graph = onnx.load(folder / "model.onnx").graph
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    scales = [shape for name, shape in sizes.items() if name.endswith("_scale") and shape not in ((), (1,))]
    assert len(scales) == 14
    signed = [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 2]
    assert len(signed) == 14


def test_static_int8_does_not_depend_on_the_neighbours_in_a_batch_and_dynamic_does(
    quantized: Callable[[Variant], tuple[Path, QuantizeReport]], toy_data: Any
) -> None:
    texts = ["where is my parcel", *toy_data.test.texts[:6], " ".join(toy_data.test.texts[6:12])]
    lengths = {len(text.split()) for text in texts}
    assert max(lengths) >= 5 * min(lengths)  # much padding
    for graph in ("fused", "split", "plain"):
        static, _ = quantized(Variant("int8_static", graph))  # type: ignore[arg-type]
        np.testing.assert_allclose(logits(static, texts, len(texts)), logits(static, texts), atol=1e-5)
    dynamic, _ = quantized(Variant("int8_dynamic", "fused"))
    assert np.abs(logits(dynamic, texts, len(texts)) - logits(dynamic, texts)).max() > 1e-4


@pytest.mark.parametrize("graph", ["fused", "plain"])
def test_fp16_keeps_its_interface_and_stays_near(
    graph: Any,
    quantized: Callable[[Variant], tuple[Path, QuantizeReport]],
    exported: Callable[[str], Any],
    toy_data: Any,
) -> None:
    folder, report = quantized(Variant("fp16", graph))
    source = exported("bert").folder
    texts = list(toy_data.test.texts[:64])
    found = logits(folder, texts, 16)
    assert found.dtype == np.float32
    assert np.abs(found - logits(source, texts, 16)).max() <= 1e-2
    assert report.size_bytes < 0.7 * (source / "model.onnx").stat().st_size
    model = onnx.load(folder / "model.onnx")
    kinds = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 2}
    assert TensorProto.FLOAT16 in kinds
    assert TensorProto.FLOAT not in kinds
    assert [value.type.tensor_type.elem_type for value in model.graph.input] == [TensorProto.INT64] * 2


def test_static_scales_need_messages(exported: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="calibration") as caught:
        quantize(exported("bert").folder, tmp_path, Variant("int8_static"))
    assert caught.value.hint
    assert not (tmp_path / "model.onnx").exists()


def test_only_static_scales_can_be_smoothed(exported: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="only static scales"):
        quantize(exported("bert").folder, tmp_path, Variant("int8_dynamic", smooth=True))
    assert not (tmp_path / "model.onnx").exists()


def foreign(folder: Path, model: onnx.ModelProto, source: Path) -> Path:
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy2(source / name, folder / name)
    return folder


@pytest.mark.parametrize("scheme", ["int8_dynamic", "int8_static"])
def test_a_model_without_a_product_is_refused_and_nothing_is_written(
    scheme: Any, exported: Callable[[str], Any], tmp_path: Path
) -> None:
    model = parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (int64[b, s] input_ids, int64[b, s] attention_mask) => (float[b, s] logits)
        { x = Cast <to = 1> (input_ids) logits = Sqrt(x) }"""
    )
    source = foreign(tmp_path / "source", model, exported("bert").folder)
    with pytest.raises(QuantizeError, match="no matrix product"):
        quantize(source, tmp_path / "out", Variant(scheme), calibration=["hello"])
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_a_foreign_model_without_a_plain_graph_is_quantized_as_it_is(
    exported: Callable[[str], Any], tmp_path: Path
) -> None:
    source = foreign(tmp_path / "source", onnx.load(exported("bert").folder / "plain.onnx"), exported("bert").folder)
    report = quantize(source, tmp_path / "out", Variant("int8_dynamic", "plain"))
    assert report.products == {"MatMulInteger": 14}


def test_a_quantizer_that_fails_is_a_quantize_error(
    exported: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime.quantization

    def fail(*arguments: Any, **settings: Any) -> None:
        raise onnx.shape_inference.InferenceError("(op_type:Gemm): Inferred shape and existing shape differ")

    monkeypatch.setattr(onnxruntime.quantization, "quantize_dynamic", fail)
    with pytest.raises(QuantizeError, match=r"quantizer failed: .*Inferred shape"):
        quantize(exported("bert").folder, tmp_path, Variant("int8_dynamic"))
    assert not (tmp_path / "model.onnx").exists()


def test_the_root_logger_keeps_its_level(exported: Callable[[str], Any], tmp_path: Path) -> None:
    before = logging.getLogger().level
    quantize(exported("bert").folder, tmp_path, Variant("int8_dynamic"))
    assert logging.getLogger().level == before


@pytest.mark.parametrize(
    ("scheme", "fusions", "names"),
    [
        ("int8", "auto", [variant.name for variant in INT8_VARIANTS]),
        ("int8", "all", ["int8_dynamic-fused", "int8_static-fused"]),
        ("int8", "none", ["int8_dynamic-plain", "int8_static-plain"]),
        ("int8_dynamic", "auto", ["int8_dynamic-fused", "int8_dynamic-split", "int8_dynamic-plain"]),
        ("int8_static", "auto", ["int8_static-fused", "int8_static-split"]),
        ("int8_static", "none", ["int8_static-plain"]),
        ("fp16", "auto", ["fp16-fused"]),
        ("fp16", "none", ["fp16-plain"]),
        ("int8_weights", "auto", ["int8_weights-fused"]),
        ("int4_weights", "none", ["int4_weights-plain"]),
    ],
)
def test_every_scheme_leaves_a_variant_open(scheme: str, fusions: str, names: list[str]) -> None:
    assert [variant.name for variant in scheme_variants(scheme, fusions)] == names


def test_static_scales_are_smoothed_where_that_is_asked_for() -> None:
    names = [variant.name for variant in scheme_variants("int8", "all", "always")]
    assert names == ["int8_dynamic-fused", "int8_static-fused-smooth"]


@pytest.fixture(scope="module")
def hurt(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model's graph, equal in float, with outliers that int8 activations can't hold."""
    import torch

    from deploykit.export.to_onnx import export_onnx
    from deploykit.tasks import find_task

    task, folder = find_task("text-classification"), tmp_path_factory.mktemp("hurt")
    shutil.copytree(trained, folder / "checkpoint", ignore=shutil.ignore_patterns("*.safetensors"))
    model = task.load_model(trained)
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.self.value.weight[3] *= 3e4
            layer.attention.self.value.bias[3] *= 3e4
            layer.attention.output.dense.weight[:, 3] /= 3e4
    model.save_pretrained(folder / "checkpoint")
    export_onnx(folder / "checkpoint", folder / "onnx", task)
    return folder / "onnx"


@pytest.mark.parametrize("scheme", ["int8_static", "int8_dynamic"])
def test_the_product_that_suffers_is_found_and_in_float_it_does_not(
    scheme: Any, hurt: Path, toy_data: Any, tmp_path: Path
) -> None:
    variant, texts = Variant(scheme), list(toy_data.train.texts[:100])
    report = quantize(hurt, tmp_path / "all", variant, calibration=texts)
    ranked = sensitivity(hurt, variant, texts[:20])
    assert len(ranked) == sum(report.products.values())
    assert [ratio for _, ratio in ranked] == sorted(ratio for _, ratio in ranked)
    assert ranked[1][1] < 10 < ranked[2][1], "the output products of two attentions, and no other"
    worst = [name for name, _ in ranked[:2]]
    spared = quantize(hurt, tmp_path / "spared", variant, calibration=texts, in_float=worst)
    assert sum(spared.products.values()) == len(ranked) - 2
    assert spared.float_products == report.float_products + 2
    last = quantize(hurt, tmp_path / "last", variant, calibration=texts, in_float=[ranked[-1][0]])
    assert last.float_products == report.float_products + 1, "a Gemm too"
    wanted = logits(hurt, texts[:40])
    before, after = (np.abs(logits(tmp_path / name, texts[:40]) - wanted).mean() for name in ("all", "spared"))
    assert after < 0.2 * before


def test_worst_products_go_back_to_float_until_the_answers_stay(hurt: Path, toy_data: Any, tmp_path: Path) -> None:
    from deploykit.pipeline.choice import choose_variant
    from deploykit.recipe import Quantize
    from deploykit.tasks import find_task

    info: dict[str, Any] = {}
    settings = Quantize(scheme="int8_static", fusions="all", smooth="never")
    (tmp_path / "out").mkdir()
    outcome = choose_variant(
        hurt, tmp_path / "out", settings, find_task("text-classification"), toy_data, max_drop=0.01, seed=0, info=info
    )
    assert info["candidates"]["int8_static-fused"]["drop"] > 0.05
    assert "in-float" in info["variant"], outcome
    assert abs(info["candidates"][info["variant"]]["drop"]) < 0.05
    mended = info["mended"]
    assert len(mended["sensitivity_db"]) == 10
    assert mended["from"] == "int8_static-fused"
    assert mended["to"] == info["variant"]
    assert set(mended["in_float"]) <= {"layer 0 attention output", "layer 1 attention output"}
    assert mended["trials"] == len(mended["tried"]) <= settings.mend_trials
    assert mended["speedup_kept"] > 0


def test_smoothing_takes_outliers_out_of_static_scales(hurt: Path, toy_data: Any, tmp_path: Path) -> None:
    texts = list(toy_data.train.texts[:100])
    wanted = logits(hurt, texts[:40])
    errors = {}
    for smooth in (False, True):
        out = tmp_path / str(smooth)
        report = quantize(hurt, out, Variant("int8_static", smooth=smooth), calibration=texts)
        errors[smooth] = np.square(logits(out, texts[:40]) - wanted).mean() / wanted.var()
        assert (report.smoothed > 0) == smooth
    assert errors[False] > 0.1
    assert errors[True] < 0.02


def test_static_int8_that_loses_is_smoothed_before_anything_goes_back_to_float(
    hurt: Path, toy_data: Any, tmp_path: Path
) -> None:
    from deploykit.events import Note
    from deploykit.pipeline.choice import choose_variant
    from deploykit.recipe import Quantize
    from deploykit.tasks import find_task

    info: dict[str, Any] = {}
    said: list[Any] = []
    (tmp_path / "out").mkdir()
    choose_variant(
        hurt,
        tmp_path / "out",
        Quantize(scheme="int8_static", fusions="all"),
        find_task("text-classification"),
        toy_data,
        max_drop=0.01,
        seed=0,
        info=info,
        listener=said.append,
    )
    assert info["variant"] == "int8_static-fused-smooth"
    mended = info["mended"]
    assert (mended["from"], mended["to"], mended["in_float"]) == ("int8_static-fused", info["variant"], [])
    assert mended["tried"] == {info["variant"]: info["candidates"][info["variant"]]["drop"]}
    assert mended["speedup_kept"] > 0
    assert info["candidates"]["int8_static-fused"]["drop"] > 0.05
    assert info["candidates"]["int8_static-fused-smooth"]["smoothed"] > 0
    assert [event.message for event in said if isinstance(event, Note) and "smoothed" in event.message]
