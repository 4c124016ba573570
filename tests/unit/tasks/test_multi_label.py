"""Several labels in a message, or none: answers, their metric, the threshold, and what a training makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from deploykit.data.labels import SeveralClasses, classes_of, label_from_json, shown_label
from deploykit.data.readers import read_rows
from deploykit.data.table import Columns
from deploykit.errors import DataError, UsageError
from deploykit.recipe import Finetune
from deploykit.tasks import find_task
from deploykit.tasks.multi_label import Intents, MultiLabelClassification
from deploykit.train.finetune import finetune
from deploykit.train.lesson import Lesson

TASK = find_task("multi-label-classification")
NAMES = ("address", "delivery", "refund")
LOGITS = np.array([[2.0, -1.0, 1.0], [-3.0, -2.0, -1.0], [-1.0, 4.0, 0.0]], np.float32)


def test_the_labels_above_zero_are_the_answer() -> None:
    found = TASK.answers({"logits": LOGITS}, NAMES)
    assert [str(answer) for answer in found] == ["address, refund", "(none of these)", "delivery"]
    said = found[0].as_json("hi")["labels"]
    assert [each["label"] for each in said] == ["address", "refund"]
    assert said[0]["score"] == pytest.approx(1 / (1 + np.exp(-2)))
    assert found[1].as_json("hi") == {"labels": []}
    assert found[1].line("hi") == "(none of these)  hi"
    assert found[0] == Intents(("address", "refund"), (0.1, 0.2))
    assert len({found[0], Intents(("address", "refund"))}) == 1


def test_the_metric_is_the_micro_f1_with_none_as_a_label() -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(200, 3)), rng.random((200, 3)) < 0.3
    labels = [tuple(name for name, has in zip(NAMES, row, strict=True) if has) for row in targets]
    right = TASK.right_answers(labels, NAMES)
    scores = TASK.scores(TASK.answers({"logits": logits}, NAMES), right)
    whole = [np.concatenate([each, ~each.any(axis=1, keepdims=True)], axis=1) for each in (targets, logits > 0)]
    expected = f1_score(*whole, average="micro")
    assert scores.value == pytest.approx(expected)
    metrics = TASK.metrics(logits, targets.astype(np.float32), NAMES)
    assert metrics["micro F1"] == pytest.approx(expected)
    empty = ~targets.any(axis=1)
    assert metrics["out_of_scope_recall"] == pytest.approx((~(logits > 0).any(axis=1))[empty].mean())
    assert metrics["in_scope_recall"] == pytest.approx((logits > 0).any(axis=1)[~empty].mean())
    assert (scores.correct == ((logits > 0) == targets).all(axis=1)).all()


def test_recall_by_class_counts_each_label() -> None:
    right = TASK.right_answers([("address", "refund"), (), ("delivery",)], NAMES)
    asked, said = TASK.by_class(TASK.answers({"logits": LOGITS}, NAMES), right)
    assert list(asked) == ["address", "refund", "(none of these)", "delivery"]
    assert list(said) == list(asked)


def test_the_threshold_is_that_of_the_best_f1_and_keeps_in_scope_messages() -> None:
    rng = np.random.default_rng(1)
    targets = np.zeros((600, 3))
    targets[np.arange(400), rng.integers(0, 3, 400)] = 1  # the last 200 have none
    logits = rng.normal(-2.0, 1.0, (600, 3)) + 6.0 * targets + 1.5  # all too high: zero is no good threshold
    task = MultiLabelClassification()
    shift = task.shift(logits, targets)
    before, after = (task.metrics(logits - each, targets, NAMES) for each in (0.0, shift))
    assert shift > 0.5
    assert after["micro F1"] > before["micro F1"] + 0.05
    assert after["in_scope_recall"] >= 0.95
    assert after["out_of_scope_recall"] > before["out_of_scope_recall"]


def test_a_threshold_that_is_right_stays() -> None:
    targets = np.eye(3)[np.arange(60) % 3]
    assert abs(TASK.shift(10 * targets - 5, targets)) < 5


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        ('["refund", "address"]', ("address", "refund")), ("refund; address", ("address", "refund")),
        ("refund|address|refund", ("address", "refund")), ("refund", ("refund",)), ("", ()), (None, ()), ("[]", ()),
        (["b", "a"], ("a", "b")), (7, ("7",)), ("out_of_scope", ()), ('["OOS"]', ()), (" ; ", ()),
    ],
)  # fmt: skip
def test_labels_are_read_in_every_form(value: object, labels: tuple[str, ...]) -> None:
    assert SeveralClasses().read("text", [value], "row 1") == labels


@pytest.mark.parametrize("value", ["[1", {"a": 1}, 1.5])
def test_what_is_no_list_of_labels_is_an_error(value: object) -> None:
    with pytest.raises(DataError, match="row 1"):
        SeveralClasses().read("text", [value], "row 1")


def test_labels_survive_json_and_are_shown() -> None:
    for label in (("a", "b"), (), ("a",)):
        assert label_from_json(json.loads(json.dumps(label))) == label
    assert classes_of(("a", "b")) == ("a", "b")
    assert shown_label(("a", "b")) == "'a', 'b'"


def test_a_label_that_the_model_does_not_know_is_an_error() -> None:
    with pytest.raises(DataError, match="does not know: parcel"):
        TASK.targets([("refund", "parcel")], NAMES)
    with pytest.raises(UsageError, match="one label column"):
        TASK.label_form(["a", "b"])


def test_the_shipped_sample_has_messages_with_two_intents() -> None:
    tables = [
        read_rows(f"sample:intents/{split}", Columns("text", TASK.label_form("intents"))) for split in ("train", "test")
    ]
    for table in tables:
        counts = np.bincount([len(label) for label in table.labels or ()])
        assert counts[0] > 100
        assert 0.25 < counts[2] / counts[1:].sum() < 0.4
        assert len(counts) == 3
    assert not set(tables[0].texts) & set(tables[1].texts)
    again = read_rows("sample:intents/test", Columns("text", TASK.label_form("intents")))
    assert again == tables[1]


@pytest.fixture
def topics(toy_data: Any) -> Any:
    """Toy messages; every third one is two of them, every tenth has neither."""

    def several(table: Any) -> Any:
        texts, labels = list(table.texts), [(label,) for label in table.labels]
        for index in range(0, len(texts) - 1, 3):
            texts[index] += " and " + table.texts[index + 1]
            labels[index] = tuple(sorted({table.labels[index], table.labels[index + 1]}))
        for index in range(1, len(texts), 10):
            texts[index], labels[index] = "hello can you tell me about it please", ()
        return replace(table, texts=tuple(texts), labels=tuple(labels))

    parts = {name: several(getattr(toy_data, name)) for name in ("train", "validation", "test")}
    return replace(toy_data, **parts)


@pytest.mark.parametrize(
    "settings",
    [{}, {"class_weights": "balanced", "label_smoothing": 0.1}, {"r_drop": 1.0}, {"focal_gamma": 1.0}],
    ids=str,
)
def test_a_model_learns_several_labels_and_none(
    settings: dict[str, Any], topics: Any, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    chosen = Finetune(epochs=8, batch_size=16, learning_rate=5e-3, freeze_embeddings=False, **settings)
    model = tiny_checkpoint("bert", num_hidden_layers=1, initializer_range=0.05)
    result = finetune(model, topics, chosen, TASK, tmp_path / "out", workspace=tmp_path / "work")
    assert result.metrics["micro F1"] > 0.8
    assert set(result.metrics) >= {"macro_f1", "in_scope_recall", "out_of_scope_recall"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["problem_type"] == "multi_label_classification"


def test_a_new_head_begins_with_each_label_as_likely_as_it_is(
    topics: Any, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    rare = replace(
        topics, train=replace(topics.train, labels=(("cancel",), *((("login", "invoice"),) * (len(topics.train) - 1))))
    )
    still = Finetune(epochs=1, learning_rate=1e-9)

    def head_of(model: Path, out: str) -> np.ndarray:
        finetune(model, rare, still, TASK, tmp_path / out, workspace=tmp_path / f"{out}-work")
        bias: np.ndarray = TASK.load_model(tmp_path / out).classifier.bias.detach().numpy()
        return bias

    rows, names = len(topics.train), topics.label_names
    counts = {"cancel": 1, "login": rows - 1, "invoice": rows - 1}
    shares = np.array([(counts.get(name, 0) + 0.5) / (rows + 1) for name in names])
    odds = np.log(shares / (1 - shares))
    found = head_of(tiny_checkpoint("bert", seed=11), "new")
    np.testing.assert_allclose(found - found[0], odds - odds[0], atol=1e-4)  # all are moved by the threshold
    again = head_of(tmp_path / "new", "again")
    np.testing.assert_allclose(again - again[0], odds - odds[0], atol=1e-4)
    learned = TASK.load_model(tmp_path / "new")
    learned.classifier.bias.data = torch.tensor([0.1, 0.2, 0.3, 0.4])
    learned.save_pretrained(tmp_path / "new")
    kept = head_of(tmp_path / "new", "kept")
    np.testing.assert_allclose(kept - kept[0], [0.0, 0.1, 0.2, 0.3], atol=1e-4)


def test_a_student_learns_from_a_teacher_label_by_label(
    topics: Any, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    chosen = Finetune(epochs=8, batch_size=16, learning_rate=5e-3, freeze_embeddings=False)
    model = tiny_checkpoint("bert", num_hidden_layers=1, initializer_range=0.05)
    finetune(model, topics, chosen, TASK, tmp_path / "teacher", workspace=tmp_path / "a")
    silent = replace(topics.train, labels=((),) * len(topics.train))
    lesson = Lesson(tmp_path / "teacher", soft_weight=1.0, hidden_weight=1.0, copies=1, unlabelled=topics.test.texts)
    result = finetune(
        model, replace(topics, train=silent), chosen, TASK, tmp_path / "out", workspace=tmp_path / "b", lesson=lesson
    )
    assert result.metrics["micro F1"] > 0.8
