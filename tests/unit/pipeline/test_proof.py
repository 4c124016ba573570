"""What the proof says of a right model, and of one with a planted fault."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploykit.compress.quantize import Variant, quantize
from deploykit.errors import ModelError, ParityError
from deploykit.parity.report import ParityReport
from deploykit.pipeline.alone import parity_alone
from deploykit.pipeline.comparison import compare_models
from deploykit.pipeline.pairs import judge_forms, labels_of
from deploykit.pipeline.proof import prove
from deploykit.recipe import Recipe
from deploykit.runners import Target
from deploykit.tasks import find_task

TASK = find_task("text-classification")


def edited(folder: Path, name: str, edit: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads((folder / name).read_text())
    edit(values)
    (folder / name).write_text(json.dumps(values))


def edited_graph(folder: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(folder / "model.onnx")
    edit(model)
    onnx.save(model, folder / "model.onnx")


def ignore_mask(folder: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == "Attention":
                node.input[3] = ""

    edited_graph(folder, edit)


def head(model: onnx.ModelProto) -> tuple[onnx.TensorProto, onnx.TensorProto]:
    """The classifier's weight and bias."""
    gemm = next(node for node in model.graph.node if "logits" in node.output)
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    return found[gemm.input[1]], found[gemm.input[2]]


def permute_head(folder: Path) -> None:
    """The rows of the classifier, so the labels of the logits, change places; config.json does not say so."""

    def edit(model: onnx.ModelProto) -> None:
        for tensor in head(model):
            values = numpy_helper.to_array(tensor)
            axis = values.shape.index(4)
            tensor.CopyFrom(numpy_helper.from_array(np.roll(values, 1, axis=axis), tensor.name))

    edited_graph(folder, edit)


def permute_names(folder: Path) -> None:
    def edit(config: dict[str, Any]) -> None:
        names = list(config["id2label"].values())
        config["id2label"] = {str(index): names[index - 1] for index in range(len(names))}

    edited(folder, "config.json", edit)


def another_vocabulary(folder: Path) -> None:
    def edit(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        words = [word for word, index in vocabulary.items() if index >= 5]
        vocabulary.update({word: vocabulary[words[index - 1]] for index, word in enumerate(words)} | {})

    edited(folder, "tokenizer.json", edit)


def cut_short(folder: Path) -> None:
    edited(folder, "tokenizer_config.json", lambda config: config.update(model_max_length=6))


def swap_layers(folder: Path) -> None:
    """The feed-forward weights of the two layers change places."""

    def edit(model: onnx.ModelProto) -> None:
        tensors = [tensor for tensor in model.graph.initializer if sorted(tensor.dims) == [32, 64]]
        wide = [tensor for tensor in tensors if list(tensor.dims) == [32, 64]]
        first, second = (numpy_helper.to_array(tensor).copy() for tensor in wide[:2])
        wide[0].CopyFrom(numpy_helper.from_array(second, wide[0].name))
        wide[1].CopyFrom(numpy_helper.from_array(first, wide[1].name))

    edited_graph(folder, edit)


def not_a_number(folder: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        bias = head(model)[1]
        values = numpy_helper.to_array(bias).copy()
        values[0] = np.nan
        bias.CopyFrom(numpy_helper.from_array(values, bias.name))

    edited_graph(folder, edit)


def one_label_less(folder: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        for tensor in head(model):
            values = numpy_helper.to_array(tensor)
            kept = np.take(values, range(3), axis=values.shape.index(4))
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(kept), tensor.name))
        del model.graph.output[0].type.tensor_type.shape.dim[:]

    edited_graph(folder, edit)
    edited(folder, "config.json", lambda config: config["id2label"].pop("3"))


def planted(source: Any, folder: Path, plant: Callable[[Path], None]) -> Path:
    shutil.copytree(source.folder, folder)
    plant(folder)
    return folder


@pytest.fixture(scope="session")
def int8(exported: Callable[[str], Any], toy_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int8")
    quantize(exported("bert").folder, out, Variant("int8_static"), calibration=toy_data.train.texts[:100])
    return out


def compare(reference: Path, candidate: Path, data: Any, **settings: Any) -> ParityReport:
    return compare_models(
        Target("torch", str(reference), threads=1),
        Target("onnxruntime", str(candidate), threads=1),
        list(data.test.texts),
        data.test.labels,
        TASK,
        labels=data.label_names,
        **{"max_drop": 0.05, **settings},
    )


def few(data: Any) -> Any:
    """Enough messages to show a fault, though not to prove that there is none."""
    return replace(data, test=data.test.take(range(96)))


def failed(report: ParityReport) -> set[str]:
    return {check.check for check in report.checks if check.outcome == "fail"}


def test_a_right_model_passes_at_the_task_and_by_its_numbers(
    exported: Callable[[str], Any], int8: Path, toy_data: Any
) -> None:
    source = exported("bert")
    report = compare(source.checkpoint, source.folder, toy_data, tolerance=1e-4)
    assert report.verdict == "pass", report.checks
    assert report.flips == report.discordant == 0
    assert report.n == len(toy_data.test)
    assert report.reference is not None
    assert report.reference >= 0.97
    assert not report.served
    quantized = compare(source.checkpoint, int8, toy_data)
    assert quantized.verdict == "pass", quantized.checks
    assert compare(source.checkpoint, int8, toy_data, tolerance=1e-4).verdict == "fail"  # other numbers all the same


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (permute_head, "accuracy"),
        (permute_names, "label order"),
        (permute_names, "accuracy"),
        (another_vocabulary, "tokenizer"),
        (another_vocabulary, "accuracy"),
        (cut_short, "tokenizer"),
        (one_label_less, "label order"),
        (not_a_number, "fidelity"),
    ],
)
def test_row_48_row_49_a_planted_fault_fails_at_the_task(
    plant: Callable[[Path], None], check: str, exported: Callable[[str], Any], toy_data: Any, tmp_path: Path
) -> None:
    source = exported("bert")
    report = compare(source.checkpoint, planted(source, tmp_path / "planted", plant), few(toy_data))
    assert report.verdict == "fail"
    assert any(check in name for name in failed(report)), failed(report)


@pytest.mark.parametrize("plant", [ignore_mask, swap_layers, permute_head, another_vocabulary, not_a_number])
def test_row_48_a_planted_fault_fails_by_its_numbers(
    plant: Callable[[Path], None], exported: Callable[[str], Any], toy_data: Any, tmp_path: Path
) -> None:
    source = exported("bert")
    report = compare(source.checkpoint, planted(source, tmp_path / "planted", plant), few(toy_data), tolerance=1e-4)
    assert report.verdict == "fail"
    assert "numbers in padded batches" in failed(report)


def test_a_wrong_mask_shows_in_padded_batches_only(
    exported: Callable[[str], Any], toy_data: Any, tmp_path: Path
) -> None:
    source = exported("bert")
    report = compare(
        source.checkpoint, planted(source, tmp_path / "planted", ignore_mask), few(toy_data), tolerance=1e-4
    )
    assert {"numbers in padded batches", "answers alone and among others"} <= failed(report)
    assert failed(report) <= {
        "numbers in padded batches",
        "answers alone and among others",
        "answers in padded batches against given singly",
    }
    assert report.suspect == "batching"
    assert report.discordant == 0  # alone, every message is answered well


def test_forms_of_equal_folders_agree(exported: Callable[[str], Any], toy_data: Any) -> None:
    source = exported("bert")
    sides = Target("torch", str(source.checkpoint)), Target("onnxruntime", str(source.folder))
    names = toy_data.label_names
    verdicts = judge_forms(*sides, names, labels_of(sides[1]), toy_data.test.texts[:20])
    assert [(verdict.check, verdict.outcome) for verdict in verdicts] == [
        ("label order", "pass"),
        ("tokenizer", "pass"),
        ("tokenizer settings", "pass"),
    ]


def test_forms_agree_on_long_messages_where_the_tokenizer_has_no_length(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint("roberta", max_length=None)
    sides = Target("torch", str(folder)), Target("onnxruntime", str(folder))
    names = labels_of(sides[0]) or ()
    assert {verdict.outcome for verdict in judge_forms(*sides, names, names, ["parcel " * 300])} == {"pass"}


# --- the proof of a run, in process ---


def run_proof(
    finetuned: Path,
    exported_to: Path,
    shipped: Path,
    data: Any,
    out: Path,
    scheme: str = "int8",
    pruned: Path | None = None,
) -> tuple[ParityReport, dict[str, Any]]:
    recipe = Recipe.model_validate(
        {
            "task": "text-classification",
            "model": "unused",
            "data": {"train": "unused.csv"},
            "goal": {"max_drop": 0.05},
            "package": {"device": "cpu", "threads": 1},
            "serve": {"engine": "none"},
        }
    )
    folders = {"finetune": finetuned, "export": exported_to, "quantize": shipped}
    context = SimpleNamespace(
        recipe=recipe, task=TASK, data=lambda: data, folder=folders.__getitem__, listener=lambda event: None,
        info=lambda stage: {"scheme": scheme}, checkpoint=pruned or folders["finetune"],
        whole=folders["finetune"],
    )  # fmt: skip
    out.mkdir()
    draft = SimpleNamespace(path=out, info={})
    prove(context, draft)  # type: ignore[arg-type]
    return ParityReport.model_validate_json((out / "parity.json").read_text(encoding="utf-8")), draft.info


def test_a_pruned_runs_export_is_held_against_the_pruned_model_and_its_task_against_the_whole_one(
    exported: Callable[[str], Any], tiny_checkpoint: Callable[..., Path], int8: Path, toy_data: Any, tmp_path: Path
) -> None:
    source = exported("bert")
    whole = tiny_checkpoint("bert", num_hidden_layers=1, initializer_range=0.05, seed=5)  # that has learned nothing
    report, _ = run_proof(whole, source.folder, int8, toy_data, tmp_path / "out", pruned=source.checkpoint)
    fidelity = next(check for check in report.checks if check.check == "float32 ONNX against pruned PyTorch")
    assert fidelity.outcome == "pass"
    assert report.drop is not None
    assert report.drop < -0.3, "better than the whole model by far, which was asked at the task"
    wrong, _ = run_proof(whole, source.folder, int8, toy_data, tmp_path / "wrong")
    assert wrong.verdict == "fail"


def test_a_run_with_a_right_model_passes_and_says_it_was_not_served(
    exported: Callable[[str], Any], int8: Path, toy_data: Any, tmp_path: Path
) -> None:
    source = exported("bert")
    report, info = run_proof(source.checkpoint, source.folder, int8, toy_data, tmp_path / "out")
    assert report.verdict == info["verdict"] == "pass", report.checks
    assert report.statement == "pass (not served)"
    assert info["fp32_onnx"] == report.reference
    assert info["engine"] is None


@pytest.mark.parametrize("plant", [ignore_mask, swap_layers, permute_head])
def test_a_run_whose_export_is_wrong_fails_though_what_ships_is_right(
    plant: Callable[[Path], None], exported: Callable[[str], Any], int8: Path, toy_data: Any, tmp_path: Path
) -> None:
    source = exported("bert")
    wrong = planted(source, tmp_path / "planted", plant)
    report, info = run_proof(source.checkpoint, wrong, int8, toy_data, tmp_path / "out")
    assert report.verdict == info["verdict"] == "fail"
    assert failed(report) == {"float32 ONNX against PyTorch", "float32 ONNX against PyTorch on hard texts"}


@pytest.mark.parametrize("plant", [permute_head, permute_names, another_vocabulary, cut_short])
def test_a_run_that_ships_another_model_fails(
    plant: Callable[[Path], None], exported: Callable[[str], Any], toy_data: Any, tmp_path: Path
) -> None:
    source = exported("bert")
    wrong = planted(source, tmp_path / "planted", plant)
    report, _ = run_proof(source.checkpoint, source.folder, wrong, toy_data, tmp_path / "out")
    assert report.verdict == "fail"
    assert "float32 ONNX against PyTorch" not in failed(report)


# --- folders of one's own ---


@pytest.fixture
def parity(toy_data: Any, write_csv: Any, tmp_path: Path) -> Callable[..., ParityReport]:
    file = write_csv(tmp_path / "test.csv", toy_data.test)

    def call(reference: Path, candidate: Path, **settings: Any) -> ParityReport:
        defaults = {
            "columns": ("text", "label"), "max_drop": 0.05, "max_flips": None, "tolerance": None, "confidence": 0.95,
            "tokenizer": None, "task": "text-classification",
        }  # fmt: skip
        return parity_alone(str(reference), str(candidate), data=str(file), **{**defaults, **settings})

    return call


def test_parity_of_folders(parity: Any, exported: Callable[[str], Any], int8: Path, tmp_path: Path) -> None:
    source = exported("bert")
    assert parity(source.checkpoint, int8).verdict == "pass"
    assert parity(source.checkpoint, planted(source, tmp_path / "wrong", permute_names)).verdict == "fail"
    unlabelled = parity(source.checkpoint, int8, columns=("text", None))
    assert unlabelled.verdict == "pass"
    assert unlabelled.drop is None
    assert unlabelled.unchecked


@pytest.mark.parametrize("with_names", [True, False])
def test_parity_of_a_bare_file_uses_the_other_models_tokenizer(
    with_names: bool, parity: Any, exported: Callable[[str], Any], tmp_path: Path
) -> None:
    source = exported("bert")
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy2(source.folder / "model.onnx", bare)
    if with_names:
        shutil.copy2(source.folder / "config.json", bare)
    report = parity(source.checkpoint, bare / "model.onnx", tolerance=1e-4)
    assert report.verdict == "pass"
    assert ("label order" in {check.check for check in report.checks}) == with_names


def test_parity_without_names_or_with_too_few_is_an_error(
    parity: Any, exported: Callable[[str], Any], tmp_path: Path
) -> None:
    source = exported("bert")
    bare = tmp_path / "bare.onnx"
    shutil.copy2(source.folder / "model.onnx", bare)
    with pytest.raises(ParityError, match="labels are called"):
        parity(bare, bare, tokenizer=source.folder)
    nameless = planted(
        source, tmp_path / "nameless", lambda folder: edited(folder, "config.json", lambda c: c["id2label"].pop("3"))
    )
    with pytest.raises(ParityError, match="4 logits, and 3 labels"):
        parity(source.checkpoint, nameless)
    unnamed = planted(
        source, tmp_path / "unnamed", lambda folder: edited(folder, "config.json", lambda c: c.pop("id2label"))
    )
    with pytest.raises(ModelError, match="names no labels"):
        parity(source.checkpoint, unnamed)
