"""Sentence models trained, fitted, taught and given other entries, on tiny encoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import deploykit
from deploykit.data.dataset import LabelledData
from deploykit.data.entries import Entries, entries_from_columns
from deploykit.data.splits import draw_per_class
from deploykit.data.table import Table
from deploykit.errors import DataError, ModelError, UsageError
from deploykit.recipe import Finetune
from deploykit.runners import Target, open_runner
from deploykit.runners.labels import labels_from_folder
from deploykit.tasks import find_task
from deploykit.tasks.pooling import SCALE, is_sentence_model
from deploykit.train.finetune import finetune
from deploykit.train.index import index_checkpoint
from deploykit.train.lesson import Lesson

RETRIEVAL, CLASSES = find_task("retrieval"), find_task("text-classification")
SETTINGS = Finetune(epochs=6, learning_rate=5e-3, freeze_embeddings=False)


@pytest.fixture(scope="module")
def small(toy_data: LabelledData) -> LabelledData:
    return replace(toy_data, train=toy_data.train.take(range(320)), validation=toy_data.validation.take(range(64)))


@pytest.fixture(scope="module")
def encoder(tiny_checkpoint: Callable[..., Path]) -> Path:
    return tiny_checkpoint("bert", initializer_range=0.05)


@pytest.fixture(scope="module")
def finder(encoder: Path, small: LabelledData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Path]:
    """A trained retrieval model, how it went, and its workspace."""
    folder = tmp_path_factory.mktemp("finder")
    result = finetune(encoder, small, SETTINGS, RETRIEVAL, folder / "model", workspace=folder / "work")
    return folder / "model", result, folder / "work"


def test_contrast_teaches_what_the_encoder_does_not_know(
    finder: tuple[Path, Any, Path], encoder: Path, small: LabelledData, tmp_path: Path
) -> None:
    import torch

    untaught = finetune(encoder, small, Finetune(epochs=0), RETRIEVAL, tmp_path / "model", workspace=tmp_path / "work")
    assert finder[1].metrics["recall@1"] > max(0.8, untaught.metrics["recall@1"])
    assert set(untaught.metrics) == {"loss", "recall@1", "recall@5", "mrr"}
    assert (untaught.steps, finder[1].steps) == (0, 60)
    assert len(finder[1].watched) == 6
    before = CLASSES.load_model(encoder).base_model.state_dict()
    after = deploykit.load(tmp_path / "model", task="retrieval").base_model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_a_training_goes_on_with_the_head_that_it_had(
    finder: tuple[Path, Any, Path], encoder: Path, small: LabelledData, tmp_path: Path
) -> None:
    again = finetune(encoder, small, SETTINGS, RETRIEVAL, tmp_path / "model", workspace=finder[2])
    assert again.resumed_from == 60
    assert again.metrics == finder[1].metrics


def test_a_student_keeps_the_entries_of_its_teacher(
    finder: tuple[Path, Any, Path], small: LabelledData, tmp_path: Path
) -> None:
    import torch

    settings = SETTINGS.model_copy(update={"epochs": 1.0})
    out, teacher = tmp_path / "model", finder[0]
    finetune(teacher, small, settings, RETRIEVAL, out, workspace=tmp_path / "work", lesson=Lesson(teacher, copies=1))
    before, after = (deploykit.load(folder, task="retrieval") for folder in (teacher, out))
    assert torch.equal(before.classifier.weight, after.classifier.weight)
    assert not torch.equal(before.base_model.encoder.layer[0].output.dense.weight,
                           after.base_model.encoder.layer[0].output.dense.weight)  # fmt: skip


def test_other_entries_need_no_training(finder: tuple[Path, Any, Path], small: LabelledData, tmp_path: Path) -> None:
    texts = (*small.train.texts[:5], "something new", "another new thing")
    labels = ("b", "a", "b", "c", "b", "new", "new")
    out = tmp_path / "model"
    assert index_checkpoint(finder[0], out, RETRIEVAL, Entries(texts, labels, {"new": "New!"})) == 3
    assert labels_from_folder(out) == ("a", "b", "c", "new")
    with open_runner(Target("torch", str(out), threads=1, task="retrieval")) as runner:
        outputs = runner.infer(texts)
    found = RETRIEVAL.answers(outputs, labels_from_folder(out))
    scores = [answer.as_json("")["score"] for answer in found]
    assert scores == pytest.approx([1.0] * len(texts), abs=1e-5)  # each text is nearest to itself
    assert outputs["logits"].max() == pytest.approx(SCALE, abs=1e-4)
    assert RETRIEVAL.served_settings(out) == {"scale": SCALE, "answers": {"new": "New!"}, "depth": 1}


def test_what_has_no_entries_is_refused(trained: Path, tmp_path: Path) -> None:
    entries = Entries(("one", "two"), ("a", "b"), {})
    with pytest.raises(UsageError, match="no entries"):
        index_checkpoint(trained, tmp_path, CLASSES, entries)
    with pytest.raises(ModelError, match="no retrieval model"):
        index_checkpoint(trained, tmp_path, RETRIEVAL, entries)


def test_a_few_examples_make_a_classifier(encoder: Path, small: LabelledData, tmp_path: Path) -> None:
    few = replace(
        small, train=small.train.take(draw_per_class(list(map(str, small.train.labels or ())), 8, 0).tolist())
    )
    settings = SETTINGS.model_copy(update={"loss": "contrastive", "epochs": 20.0, "batch_size": 16})
    result = finetune(encoder, few, settings, CLASSES, tmp_path / "model", workspace=tmp_path / "work")
    assert result.metrics["accuracy"] > 0.45  # by chance 0.25
    assert is_sentence_model(tmp_path / "model")
    model: Any = deploykit.load(tmp_path / "model")
    assert model.classifier.weight.shape == (4, 32)
    with open_runner(Target("torch", str(tmp_path / "model"), threads=1)) as runner:
        answers = CLASSES.answers(runner.infer(list(small.test.texts[:64])), small.label_names)
    assert CLASSES.scores(answers, CLASSES.right_answers((small.test.labels or ())[:64], small.label_names)).value > 0.4


def test_descriptions_alone_are_the_head(encoder: Path, small: LabelledData, tmp_path: Path) -> None:
    import torch

    texts = tuple(f"about {name}" for name in small.label_names)
    described = replace(small, train=Table("descriptions", texts, small.label_names, (1, 2, 3, 4)))
    settings = Finetune(loss="contrastive", epochs=0)
    finetune(encoder, described, settings, CLASSES, tmp_path / "model", workspace=tmp_path / "work")
    with open_runner(Target("torch", str(tmp_path / "model"), threads=1)) as runner:
        logits = runner.infer(texts)["logits"]
    assert logits.diagonal() == pytest.approx([SCALE] * 4, abs=1e-4)
    model: Any = deploykit.load(tmp_path / "model")
    assert torch.allclose(model.classifier.weight.norm(dim=-1), torch.ones(4), atol=1e-6)
    with pytest.raises(DataError, match="labels of their own"):
        finetune(encoder, described, SETTINGS.model_copy(update={"loss": "contrastive"}), CLASSES,
                 tmp_path / "other", workspace=tmp_path / "w")  # fmt: skip


def test_entries_are_read_with_their_answers(tmp_path: Path) -> None:
    path = tmp_path / "faq.csv"
    path.write_text("text,label,answer\nWhere is it?,track,Look here\nMy parcel?,track,\nMoney back,refund,\n")
    found = entries_from_columns(str(path), "text", "label", "answer")
    assert (found.names, found.labels) == (("refund", "track"), ("track", "track", "refund"))
    assert found.answers == {"track": "Look here"}
    assert entries_from_columns(str(path), "text", "label", None).answers == {}
    shipped = entries_from_columns("sample:faq/entries", "text", "label", "answer")
    assert (len(shipped.texts), len(shipped.names), len(shipped.answers)) == (64, 32, 32)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("a,x,one\nb,x,two\n", "line 3: 'x' has another answer"),
        ("a,x,\nb,x,\n", "all entries have the label 'x'"),
        ("a, ,one\n", "line 2: blank label"),
    ],
)
def test_row_32_entries_that_say_nothing_are_refused(rows: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "faq.csv"
    path.write_text("text,label,answer\n" + rows)
    with pytest.raises(DataError, match=said):
        entries_from_columns(str(path), "text", "label", "answer")
