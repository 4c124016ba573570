"""Intents and entities jointly: labels, two metrics as two claims, and the same answers from every form of a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.compress.calibrate import candidates, divergence, pruned_copy
from deploykit.compress.quantize import Variant, quantize
from deploykit.data.labels import MarkedMessage as Marked
from deploykit.data.labels import Span, classes_of, label_from_json, shown_label
from deploykit.data.readers import read_rows
from deploykit.data.table import Columns
from deploykit.errors import DataError, ModelError, UsageError
from deploykit.export.to_onnx import export_onnx
from deploykit.parity.report import Predictions, build_report
from deploykit.pipeline.clock import save_model
from deploykit.recipe import Finetune
from deploykit.runners import Target, infer_all, open_runner
from deploykit.runners.tokenize import Encoder
from deploykit.tasks import find_task, task_of_outputs
from deploykit.tasks.joint import Understood
from deploykit.tasks.text_classification import Classified
from deploykit.tasks.token_classification import Entities
from deploykit.train.finetune import finetune
from deploykit.train.lesson import Lesson

TASK = find_task("intent-and-entities")
NAMES = ("O", "B-city", "I-city", "intent:book", "intent:cancel")
ODD = ["cancel the Päckchen 📦 now", "", "ínvoice", "a " * 50 + "parcel", "login 👨‍👩‍👧 password", "İstanbul bill"]


def understood(intent: str, *spans: tuple[int, int, str]) -> Understood:
    return Understood(Classified(intent), Entities(tuple(Span(*span) for span in spans), (1.0,) * len(spans)))


def test_it_is_told_by_its_outputs_from_the_single_tasks() -> None:
    names = ["label", "score", "entities", "logits"]
    found = [task_of_outputs(some) for some in (names, [names[0], names[1], names[3]], names[2:])]
    assert [each and each.name for each in found] == [TASK.name, "text-classification", "token-classification"]


def test_labels_are_an_intent_and_spans_in_two_columns_or_four(tmp_path: Path) -> None:
    assert TASK.label_form(("intent", "type", "start", "end")).columns == ("intent", "type", "start", "end")
    for columns in ("intent", ("intent", "start", "end")):
        with pytest.raises(UsageError, match="two label columns or four"):
            TASK.label_form(columns)
    path = tmp_path / "rows.csv"
    path.write_text('text,intent,type,start,end\nto Rome,book,city,3,7\n"stop, now",cancel,,,\n', encoding="utf-8")
    form = TASK.label_form(("intent", "type", "start", "end"))
    table = read_rows(str(path), Columns("text", form))
    assert table.labels == (Marked("book", (Span(3, 7, "city"),)), Marked("cancel", ()))
    classes = [classes_of(label) for label in table.labels]
    assert classes == [("intent:book", "city"), ("intent:cancel",)]
    assert form.outputs(sorted({name for each in classes for name in each})) == NAMES
    assert [label_from_json(json.loads(json.dumps(label))) for label in table.labels] == list(table.labels)
    assert [shown_label(label) for label in table.labels] == ["'book', city 3-7", "'cancel'"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (",city,3,7", "line 2: blank label in 'intent'"),
        ("book,city,3,70", "line 2: the span 3-70"),
        ("book,intent:city,3,7", "line 2: a span is called 'intent:city'"),
    ],
)
def test_row_32_an_unusable_label_is_told_with_its_row(row: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"text,intent,type,start,end\nto Rome,{row}\n", encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_rows(str(path), Columns("text", TASK.label_form(("intent", "type", "start", "end"))))


def test_row_32_one_intent_only_is_refused() -> None:
    with pytest.raises(DataError, match="all rows have the label 'book'"):
        TASK.label_form(("intent", "spans")).outputs(["city", "intent:book"])


def test_targets_are_the_intent_for_the_first_token_and_tags_for_the_others() -> None:
    words = np.array([[0, 0], [0, 2], [3, 7], [0, 0]])
    label = Marked("cancel", (Span(3, 7, "city"),))
    assert TASK.targets([label], NAMES, [words]) == [[4, 0, 1, -100]]
    with pytest.raises(ModelError, match="special token in front"):
        TASK.targets([label], NAMES, [words[1:]])
    for unknown in (Marked("refund", ()), Marked("book", (Span(0, 1, "planet"),))):
        with pytest.raises(DataError, match=r"refund|planet"):
            TASK.targets([unknown], NAMES, [words])
        with pytest.raises(DataError, match=r"refund|planet"):
            TASK.right_answers([unknown], NAMES)
    with pytest.raises(UsageError, match="'book' is no intent with spans"):
        TASK.right_answers(["book"], NAMES)
    with pytest.raises(ModelError, match="not tags and then intents"):
        TASK.sections(("O", "B-city", "I-city"))


def test_metrics_and_scores_by_hand() -> None:
    right = [understood("book", (0, 5, "city")), understood("cancel"), understood("book", (1, 2, "city"))]
    found = [understood("book", (0, 5, "city")), understood("book"), understood("book", (4, 5, "city"))]
    scores = TASK.scores(found, right).by_metric(TASK.metric)
    assert {name: each.value for name, each in scores.items()} == {"intent accuracy": 2 / 3, "entity F1": 0.5}
    assert scores["intent accuracy"].is_share
    lost = TASK.scores(right, right).without([1, 2])
    assert (lost.value, lost.beside["entity F1"].value) == (1 / 3, pytest.approx(2 / 5))
    assert TASK.by_class(found, right) == (
        ["intent:book", "intent:cancel", "intent:book", "city", "city"],
        ["intent:book", "intent:book", "intent:book", "city", ""],
    )
    predictions = np.zeros((2, 3, 5), dtype=np.float32)
    predictions[0, 0, 3] = predictions[0, 1, 1] = predictions[0, 2, 2] = predictions[1, 0, 3] = 1
    predictions[1, 1:, 4] = 9  # an intent's column says nothing about a token
    metrics = TASK.metrics(predictions, np.array([[3, 1, 2], [4, 0, -100]]), NAMES)
    assert metrics["intent accuracy"] == 0.5
    assert metrics["entity F1"] == metrics["entity_recall"] == 1


def test_an_answer_says_both_and_is_equal_whatever_its_scores() -> None:
    text = "Zoë in Kraków"
    logits = np.zeros((1, 5, 5), dtype=np.float32)
    logits[0, 0, 4] = logits[0, 3, 1] = logits[0, 1, 0] = logits[0, 2, 0] = 4
    words = np.array([[[0, 0], [0, 3], [4, 6], [7, 13], [0, 0]]])
    (answer,) = TASK.answers({"logits": logits, "words": words}, NAMES, top_k=2)
    assert answer == understood("cancel", (7, 13, "city"))
    assert len({answer, understood("cancel", (7, 13, "city"))}) == 1
    assert str(answer) == "cancel; city 7-13"
    said = answer.as_json(text)
    assert (said["label"], said["alternatives"][0]["label"]) == ("cancel", "book")
    assert said["entities"][0]["text"] == "Kraków"
    assert said["score"] > 0.9
    assert answer.line(text) == "cancel (98.2%, book 1.8%); 'Kraków' city (96.5%)  Zoë in Kraków"


def test_each_metric_is_a_claim_of_its_own() -> None:
    """A candidate that loses entities only must not pass by its intents, nor the other way round."""
    n = 400
    right = [understood("book", (0, 4, "city"))] * n
    worse = {
        "entity F1": [understood("book")] * 40 + right[40:],
        "intent accuracy": [understood("cancel", (0, 4, "city"))] * 40 + right[40:],
    }

    def predicted(answers: list[Understood]) -> Predictions:
        scores = TASK.scores(answers, right)
        return Predictions(answers, scores.correct, None, scores)

    for lost, answers in worse.items():
        report = build_report(
            predicted(right), predicted(answers), ["to Rome"] * n, instruction_set="any", served=False, labels=right,
            by_class=([], [], []), metric=TASK.metric, margin=0.02,
        )  # fmt: skip
        outcomes = {check.check: check.outcome for check in report.checks}
        assert outcomes == {
            "intent accuracy drop": "fail" if lost == "intent accuracy" else "pass",
            "entity F1 drop": "fail" if lost == "entity F1" else "pass",
        }
        assert report.verdict == "fail"
        (entities,) = report.further
        assert report.metrics == ("intent accuracy", "entity F1")
        assert (entities.drop > 0) == (lost == "entity F1")
        kept = "entity F1" if lost == "intent accuracy" else "intent accuracy"
        assert [kept in said for said in report.proved] == [True]


@pytest.fixture(scope="module")
def joint(tiny_checkpoint: Callable[..., Path], joint_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joint")
    finetune(
        tiny_checkpoint("bert", initializer_range=0.05),
        joint_data,
        Finetune(epochs=6, learning_rate=5e-3, freeze_embeddings=False, early_stopping=6),
        TASK,
        folder / "model",
        workspace=folder / "work",
    )
    return folder / "model"


@pytest.fixture(scope="module")
def joint_onnx(joint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joint-onnx")
    assert export_onnx(joint, folder, TASK).fused
    return folder


def answers_of(kind: str, folder: Path, texts: Any, batch: int, names: Any) -> tuple[list[Any], np.ndarray]:
    batches = [list(range(start, min(start + batch, len(texts)))) for start in range(0, len(texts), batch)]
    target = Target(kind, str(folder), threads=1, task=TASK.name)  # type: ignore[arg-type]
    with open_runner(target) as runner:
        outputs = infer_all(runner, texts, batches)
    return TASK.answers(outputs, names), outputs["logits"]


def figures(answers: list[Any], data: Any) -> tuple[float, float]:
    scores = TASK.scores(answers, TASK.right_answers(data.test.labels, data.label_names))
    return scores.value, scores.beside["entity F1"].value


def test_both_are_learned_and_every_form_answers_alike(joint: Path, joint_onnx: Path, joint_data: Any) -> None:
    texts, names = [*joint_data.test.texts, *ODD], joint_data.label_names
    reference, logits = answers_of("torch", joint, texts, 1, names)
    accuracy, f1 = figures(reference[: len(joint_data.test)], joint_data)
    assert accuracy > 0.9
    assert f1 > 0.97
    for kind, folder, batch in (("torch", joint, 7), ("onnxruntime", joint_onnx, 1), ("onnxruntime", joint_onnx, 7)):
        found, other = answers_of(kind, folder, texts, batch, names)
        assert found == reference
        assert np.abs(other - logits).max() < 1e-4


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "electra", "xlm-roberta", "mpnet"])
def test_every_kind_of_encoder_is_loaded_cut_and_saved(
    kind: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    import torch

    import deploykit

    made = TASK.load_model(tiny_checkpoint(kind, names=("a", "b")), NAMES, dtype=torch.float32).eval()
    ids = torch.tensor([[4, 9, 7, 5]])
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    heads = 4 if kind == "mpnet" else 2
    small, _ = pruned_copy(made, candidates(made, batches, heads=[heads], columns=[32]), [(heads, 32), None])
    small.save_pretrained(tmp_path)
    loaded = deploykit.load(tmp_path, TASK.name).eval()
    with torch.inference_mode():
        before, after = (model(**batches[0])["logits"] for model in (small, loaded))
    assert after.shape == (1, 4, len(NAMES))
    assert torch.allclose(before, after, atol=1e-6)


def test_a_model_of_another_task_is_refused(tiny_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="has no weights for"):
        TASK.load_model(tiny_checkpoint("bert", head="MaskedLM"))
    with pytest.raises(ModelError, match="not tags and then intents"):
        TASK.load_model(tiny_checkpoint("bert", head="TokenClassification", names=NAMES[:3]))


def test_int8_keeps_both(joint_onnx: Path, joint_data: Any, tmp_path: Path) -> None:
    variant = Variant("int8_static", "fused")
    quantize(joint_onnx, tmp_path / "int8", variant, calibration=joint_data.train.texts[:64])
    found, _ = answers_of("onnxruntime", tmp_path / "int8", joint_data.test.texts, 1, joint_data.label_names)
    whole, _ = answers_of("onnxruntime", joint_onnx, joint_data.test.texts, 1, joint_data.label_names)
    for before, after in zip(figures(whole, joint_data), figures(found, joint_data), strict=True):
        assert after > before - 0.02


def test_a_pruned_model_learns_both_from_the_whole(joint: Path, joint_data: Any, tmp_path: Path) -> None:
    import torch

    model = TASK.load_model(joint, dtype=torch.float32).eval()
    encoder = Encoder(joint)
    texts = joint_data.train.texts
    batches = [
        {name: torch.from_numpy(values) for name, values in encoder.encode(texts[start : start + 16]).items()}
        for start in range(0, 64, 16)
    ]
    with torch.inference_mode():
        expected = [model(**batch)["logits"] for batch in batches]
    assert divergence(model, batches, expected, TASK) == pytest.approx(0, abs=1e-6)
    tags, intents = TASK.sections(joint_data.label_names)
    for columns, counts in ((slice(tags.first, tags.past), True), (slice(intents.first, intents.past), False)):
        moved = [logits.clone() for logits in expected]
        for logits in moved:
            logits[:, 1:, columns] += torch.arange(logits[:, 1:, columns].shape[-1])
        found = divergence(model, batches, moved, TASK)
        assert (found > 0.01) == counts, "only the first token's row is about the intent"
    small, _ = pruned_copy(model, candidates(model, batches, heads=[2], columns=[32]), [(2, 32), None])
    save_model(small, joint, tmp_path / "pruned", {})
    finetune(
        tmp_path / "pruned",
        joint_data,
        Finetune(epochs=6, learning_rate=5e-3, freeze_embeddings=False, dropout=0.0),
        TASK,
        tmp_path / "recovered",
        workspace=tmp_path / "work",
        lesson=Lesson(joint, unlabelled=ODD, copies=1),
        stage="prune",
    )
    names = joint_data.label_names
    whole = figures(answers_of("torch", joint, joint_data.test.texts, 16, names)[0], joint_data)
    after = figures(answers_of("torch", tmp_path / "recovered", joint_data.test.texts, 16, names)[0], joint_data)
    assert min(after[0] - whole[0], after[1] - whole[1]) > -0.04


def test_unanswered_messages_earn_nothing_of_either() -> None:
    right = [understood("book", (0, 4, "city")), understood("cancel")]
    scores = TASK.scores(right, right)
    assert replace(scores, beside={}).without([1]).value == 0.5
    assert scores.without([1]).beside["entity F1"].possible.tolist() == [2, 1]
