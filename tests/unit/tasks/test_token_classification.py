"""Token classification: loading, metrics, scores, answers, and the same spans from every form of a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from deploykit.compress.calibrate import candidates, divergence, pruned_copy
from deploykit.compress.quantize import Variant, quantize
from deploykit.compress.vocabulary import trim_vocabulary
from deploykit.data.labels import Span
from deploykit.errors import DataError, ModelError, UsageError
from deploykit.export.to_onnx import export_onnx
from deploykit.pipeline.clock import save_model
from deploykit.recipe import Finetune
from deploykit.runners import Target, infer_all, open_runner
from deploykit.runners.tokenize import Encoder
from deploykit.tasks import find_task, task_of_outputs
from deploykit.tasks.token_classification import Entities
from deploykit.train.finetune import finetune
from deploykit.train.lesson import Lesson

TASK = find_task("token-classification")
NAMES = ("O", "B-city", "I-city", "B-person", "I-person")
KINDS = ("distilbert", "roberta", "mpnet")


def one_hot(*tags: int) -> np.ndarray:
    return np.eye(len(NAMES), dtype=np.float32)[list(tags)] * 4


def entities(*spans: tuple[int, int, str]) -> Entities:
    return Entities(tuple(Span(*span) for span in spans), (1.0,) * len(spans))


def test_it_is_told_by_its_outputs() -> None:
    found = task_of_outputs(["entities", "logits"])
    assert found is not None
    assert found.name == "token-classification"
    assert TASK.per_token


def test_label_columns_are_one_or_three() -> None:
    assert TASK.label_form("entities").columns == ("entities",)
    assert TASK.label_form(("type", "start", "end")).columns == ("type", "start", "end")
    with pytest.raises(UsageError, match="one label column or three, not 2"):
        TASK.label_form(("start", "end"))


def test_metrics_and_scores_by_hand() -> None:
    right = [entities((0, 5, "city"), (9, 12, "person")), entities(), entities((1, 2, "city"))]
    found = [entities((0, 5, "city"), (9, 11, "person")), entities(), entities((1, 2, "person"), (4, 5, "city"))]
    scores = TASK.scores(found, right)
    assert scores.earned.tolist() == [2, 0, 0]
    assert scores.possible.tolist() == [4, 0, 3]
    assert scores.value == pytest.approx(2 / 7)
    assert scores.correct.tolist() == [False, True, False]
    assert not scores.is_share
    assert TASK.scores(right, right).value == 1
    assert TASK.by_class(found, right) == (["city", "person", "city"], ["city", "", "person"])
    predictions = np.stack([one_hot(0, 1, 2, 3), one_hot(3, 0, 0, 1)])
    targets = np.array([[-100, 1, 2, 3], [3, 4, 0, -100]])
    metrics = TASK.metrics(predictions, targets, NAMES)
    assert metrics == {
        "entity F1": pytest.approx(4 / 6),
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
    }


def test_answers_say_where_and_are_equal_whatever_their_scores() -> None:
    text = "Zoë in Kraków"
    words = np.array([[[0, 0], [0, 3], [4, 6], [7, 13], [0, 0]]])
    (answer,) = TASK.answers({"logits": one_hot(1, 3, 0, 1, 2)[None], "words": words}, NAMES)
    assert answer == entities((0, 3, "person"), (7, 13, "city"))
    assert str(answer) == "person 0-3, city 7-13"
    said = answer.as_json(text)["entities"]
    assert [each["text"] for each in said] == ["Zoë", "Kraków"]
    assert 0.9 < said[0]["score"] < 1
    assert answer.line(text).startswith("'Zoë' person (")
    assert entities().line(text) == "no entity  Zoë in Kraków"
    assert len({answer, TASK.right_answers([(Span(0, 3, "person"), Span(7, 13, "city"))], NAMES)[0]}) == 1


def test_classes_that_the_model_does_not_know_are_named() -> None:
    label = (Span(0, 3, "planet"),)
    with pytest.raises(DataError, match=r"1 label\(s\) that the model does not know: planet"):
        TASK.right_answers([label], NAMES)
    with pytest.raises(DataError, match="planet"):
        TASK.targets([label], NAMES, [np.array([[0, 3]])])
    with pytest.raises(UsageError, match="'cancel' is a class, and spans are asked for"):
        TASK.right_answers(["cancel"], ("O", "B-cancel", "I-cancel"))


@pytest.mark.parametrize(
    "sent",
    [
        np.array([[b"[{}]"]], object),
        np.array([[b"{"]], object),
        np.array([b"[]"], object),
        np.zeros((1, 1), np.float32),
    ],
)
def test_row_55_a_malformed_reply_is_told(sent: np.ndarray) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (of several kinds)
        TASK.served_answers({"entities": sent})


def test_a_classifier_is_no_tagger(trained: Path) -> None:
    model = TASK.load_model(trained, NAMES)
    assert model.config.id2label[1] == "B-city"
    with pytest.raises(ModelError, match="has no weights for"):
        TASK.load_model(_encoder_only(trained))


def _encoder_only(checkpoint: Path) -> Path:
    from transformers import AutoModel

    folder = checkpoint.parent / "encoder"
    AutoModel.from_pretrained(checkpoint).save_pretrained(folder)
    return folder


def answers_of(kind: str, folder: Path, texts: Any, batch: int, names: Any) -> tuple[list[Any], np.ndarray]:
    batches = [list(range(start, min(start + batch, len(texts)))) for start in range(0, len(texts), batch)]
    target = Target(kind, str(folder), threads=1, task=TASK.name)  # type: ignore[arg-type]
    with open_runner(target) as runner:
        outputs = infer_all(runner, texts, batches)
    return TASK.answers(outputs, names), outputs["logits"]


ODD = ["cancel the Päckchen 📦 now", "", "ínvoice", "a " * 50 + "parcel", "login 👨‍👩‍👧 password", "İstanbul bill"]


def test_a_toy_task_is_learned(tagger: Path, entity_data: Any) -> None:
    test = entity_data.test
    found, _ = answers_of("torch", tagger, test.texts, 16, entity_data.label_names)
    right = TASK.right_answers(test.labels, entity_data.label_names)
    assert TASK.scores(found, right).value > 0.97


@pytest.fixture(scope="module")
def tagged_onnx(tagger: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagger-onnx")
    assert export_onnx(tagger, folder, TASK).fused
    return folder


def test_padding_changes_nothing_and_every_form_gives_the_same_spans(
    tagger: Path, tagged_onnx: Path, entity_data: Any
) -> None:
    texts = [*entity_data.test.texts[:40], *ODD]
    names = entity_data.label_names
    reference, logits = answers_of("torch", tagger, texts, 1, names)
    for kind, folder, batch in (("torch", tagger, 7), ("onnxruntime", tagged_onnx, 1), ("onnxruntime", tagged_onnx, 7)):
        found, other = answers_of(kind, folder, texts, batch, names)
        assert found == reference
        assert other.shape == logits.shape
        assert np.abs(other - logits).max() < 1e-4
    for text, answer in zip(texts, reference, strict=True):
        for span in answer.spans:
            assert text[span.start : span.end] == text[span.start : span.end].strip() != ""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_encoder_is_exported_right(
    kind: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path, entity_data: Any
) -> None:
    layers = {"n_layers": 1} if kind == "distilbert" else {"num_hidden_layers": 1}
    names = entity_data.label_names
    folder = tiny_checkpoint(kind, head="TokenClassification", names=names, **layers)
    report = export_onnx(folder, tmp_path / "onnx", TASK)
    assert max(report.max_difference.values()) <= 1e-4
    texts = [*entity_data.test.texts[:8], *ODD]
    assert (
        answers_of("onnxruntime", tmp_path / "onnx", texts, 4, names)[0]
        == answers_of("torch", folder, texts, 1, names)[0]
    )


def test_int8_and_a_trimmed_vocabulary_keep_the_spans(
    tagger: Path, tagged_onnx: Path, entity_data: Any, tmp_path: Path
) -> None:
    test, names = entity_data.test, entity_data.label_names
    right = TASK.right_answers(test.labels, names)
    calibration = entity_data.train.texts[:64]
    for scheme in ("int8_static", "int8_dynamic"):
        variant = Variant(scheme, "fused")  # type: ignore[arg-type]
        quantize(tagged_onnx, tmp_path / scheme, variant, calibration=calibration)
        found, _ = answers_of("onnxruntime", tmp_path / scheme, test.texts, 1, names)
        assert TASK.scores(found, right).value > 0.97
    texts = [*entity_data.train.texts, *test.texts]
    assert trim_vocabulary(tagger, tmp_path / "trimmed", TASK, texts, commonest=0) is not None
    assert (
        answers_of("torch", tmp_path / "trimmed", test.texts, 8, names)[0]
        == answers_of("torch", tagger, test.texts, 8, names)[0]
    )


def test_a_pruned_tagger_learns_from_the_whole_token_by_token_and_int8_keeps_it(
    tagger: Path, entity_data: Any, tmp_path: Path
) -> None:
    """Pruning needs every token of the last layer, where a classifier's head reads only the first."""
    import torch

    model = TASK.load_model(tagger, dtype=torch.float32).eval()
    encoder = Encoder(tagger)
    batches = [
        {
            name: torch.from_numpy(values)
            for name, values in encoder.encode(entity_data.train.texts[start : start + 16]).items()
        }
        for start in range(0, 64, 16)
    ]
    with torch.inference_mode():
        expected = [model(**batch)["logits"] for batch in batches]
        padded = [model(**batch)["logits"] + 100 * (1 - batch["attention_mask"])[..., None] for batch in batches]
    assert divergence(model, batches, expected, TASK) == pytest.approx(0, abs=1e-6)
    assert divergence(model, batches, padded, TASK) == pytest.approx(0, abs=1e-6), "padding does not count"
    small, _ = pruned_copy(model, candidates(model, batches, heads=[2], columns=[32]), [(2, 32), None])
    save_model(small, tagger, tmp_path / "pruned", {})
    test, names = entity_data.test, entity_data.label_names
    finetune(
        tmp_path / "pruned",
        entity_data,
        Finetune(epochs=6, learning_rate=5e-3, freeze_embeddings=False, dropout=0.0),
        TASK,
        tmp_path / "recovered",
        workspace=tmp_path / "work",
        lesson=Lesson(tagger, unlabelled=ODD, copies=1),
        stage="prune",
    )
    teacher = np.load(tmp_path / "work" / "teacher-logits.npy")
    rows = json.loads((tmp_path / "work" / "teacher.json").read_text())
    assert rows["rows"]
    assert teacher.shape[1] == len(names)
    assert len(teacher) > 5 * len(entity_data.train)  # a row for each token
    right = TASK.right_answers(test.labels, names)
    whole = TASK.scores(answers_of("torch", tagger, test.texts, 16, names)[0], right).value
    recovered = TASK.scores(answers_of("torch", tmp_path / "recovered", test.texts, 16, names)[0], right).value
    assert recovered > whole - 0.02
    export_onnx(tmp_path / "recovered", tmp_path / "onnx", TASK)
    graph = onnx.load(tmp_path / "onnx" / "model.onnx").graph
    assert not any("first_token" in node.name for node in graph.node)
    quantize(
        tmp_path / "onnx", tmp_path / "int8", Variant("int8_static", "fused"), calibration=entity_data.train.texts[:64]
    )
    found, _ = answers_of("onnxruntime", tmp_path / "int8", test.texts, 1, names)
    assert TASK.scores(found, right).value > recovered - 0.02


def test_the_text_model_in_the_server_gives_the_same_spans(
    tagger: Path, entity_data: Any, served_entry: Callable[..., Any], triton: Any
) -> None:
    """With a stand-in for Triton's own module: messages of several requests, padded logits, a failed call."""
    import torch

    names, texts = entity_data.label_names, [*entity_data.test.texts[:6], *ODD]
    model = TASK.load_model(tagger, dtype=torch.float32).eval()
    fails: list[int] = []

    def logits_of(feeds: dict[str, Any]) -> Any:
        if feeds["input_ids"].shape[1] in fails:
            return triton.error("no")
        with torch.inference_mode():
            return model(**{name: torch.from_numpy(values) for name, values in feeds.items()})["logits"].numpy()

    said = {"labels": names, "inputs": ["input_ids", "attention_mask"], "max_length": 64, "pad_id": 0, "pad_type_id": 0}
    ask = served_entry(TASK, said, logits_of, tagger / "tokenizer.json")
    expected, logits = answers_of("torch", tagger, texts, 1, names)
    sent = [text.encode() for text in texts]
    together, none, *singly = ask((sent, {}), ((), {}), *(((each,), {}) for each in sent))
    assert "one message" in str(none.error)
    assert TASK.served_answers(together) == expected
    assert [TASK.served_answers(each)[0] for each in singly] == expected
    assert np.abs(together["logits"] - logits).max() < 1e-4
    assert singly[1]["logits"].shape == (1, len(Encoder(tagger).encode([texts[1]])["input_ids"][0]), len(names))
    fails.append(len(Encoder(tagger).encode([texts[0]])["input_ids"][0]))
    far = texts.index(ODD[3])  # so much longer that it goes in a call of its own
    failed, right = ask((sent[:1], {}), (sent[far : far + 1], {}))
    assert str(failed.error) == "no"
    assert TASK.served_answers(right) == [expected[far]]
