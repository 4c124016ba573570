"""Prompt tuning: only virtual tokens and the head learn, and what is saved is a plain checkpoint that has them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from deploykit.compress.vocabulary import trim_vocabulary
from deploykit.errors import TrainingError
from deploykit.export.to_onnx import export_onnx
from deploykit.recipe import Finetune
from deploykit.runners import Target, infer_all, open_runner
from deploykit.runners.tokenize import Encoder
from deploykit.tasks import find_task
from deploykit.train.finetune import FinetuneResult, finetune
from deploykit.train.prompt import learn_prompt

TASK = find_task("text-classification")
WORDS = "embeddings.word_embeddings.weight"
TEXTS = ["where is my parcel", "cancel", "please " * 80, "", "a password for my account — é 📦"]


@pytest.fixture(scope="module")
def tuned(
    tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[FinetuneResult, Path, Path]]:
    """A tiny model tuned with five virtual tokens: the result, where it came from, and where it lies."""
    made: dict[str, tuple[FinetuneResult, Path, Path]] = {}

    def call(kind: str = "bert", strategy: str = "prompt", **settings: Any) -> tuple[FinetuneResult, Path, Path]:
        key = f"{kind} {strategy} {settings}"
        if key not in made:
            rows, validation = toy_data.train.take(range(64)), toy_data.validation.take(range(32))
            data = replace(toy_data, train=rows, validation=validation, test=validation)
            chosen = Finetune(**{
                "epochs": 2, "batch_size": 16, "learning_rate": 2e-2, "strategy": strategy, "prompt_tokens": 5,
                **settings,
            })  # fmt: skip
            folder = tmp_path_factory.mktemp("prompt")
            source = tiny_checkpoint(kind)
            result = finetune(source, data, chosen, TASK, folder / "out", workspace=folder / "work")
            made[key] = result, source, folder / "out"
        return made[key]

    return call


@pytest.mark.parametrize("name", ["prompt", "p_tuning"])
def test_only_the_virtual_tokens_and_the_head_learn(name: str, tuned: Callable[..., Any]) -> None:
    result, source, out = tuned(strategy=name)
    before, after = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    assert set(before) == set(after), "nothing is left of the training"
    changed = {
        each for each in before if before[each].shape != after[each].shape or (before[each] != after[each]).any()
    }
    assert changed == {f"bert.{WORDS}", "classifier.weight", "classifier.bias"}
    pieces = len(before[f"bert.{WORDS}"])
    assert len(after[f"bert.{WORDS}"]) == pieces + 5
    assert np.array_equal(after[f"bert.{WORDS}"][:pieces], before[f"bert.{WORDS}"])
    learned = after[f"bert.{WORDS}"][pieces:]
    distances = np.linalg.norm(learned[:, None] - before[f"bert.{WORDS}"], axis=-1).min(axis=1)
    assert (distances > 0).all(), "they began as pieces, and moved"
    width = before[f"bert.{WORDS}"].shape[1]
    network = 0 if name == "prompt" else 2 * (width * width + width)
    assert result.trainable == 5 * width + network + sum(
        after[f"classifier.{each}"].size for each in ("weight", "bias")
    )


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "electra", "mpnet"])
def test_what_is_saved_answers_alike_alone_in_a_padded_batch_and_in_transformers(
    kind: str, tuned: Callable[..., Any]
) -> None:
    _, _, out = tuned(kind, epochs=1)
    every = list(range(len(TEXTS)))
    with open_runner(Target("torch", str(out))) as runner:
        alone = infer_all(runner, TEXTS, [[index] for index in every])["logits"]
        together = infer_all(runner, TEXTS, [every])["logits"]
    assert np.abs(alone - together).max() < 1e-4
    batch = AutoTokenizer.from_pretrained(out)(TEXTS, padding=True, truncation=True, return_tensors="pt")
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    ids = real_ids(**batch)
    encoder = Encoder(out)
    served = encoder.encode(TEXTS)
    assert ids == real_ids(served["input_ids"], served["attention_mask"])
    assert ids == [encoder.encode([text])["input_ids"][0].tolist() for text in TEXTS], "and from the table of words"
    assert all(encoder.pieces(row)[1:6] == [f"[prompt {number}]" for number in range(5)] for row in ids)
    assert max(map(len, ids)) == 64
    plain = AutoModelForSequenceClassification.from_pretrained(out).eval()
    with torch.inference_mode():
        assert np.abs(plain(**batch).logits.numpy() - together).max() < 1e-4


def real_ids(input_ids: Any, attention_mask: Any) -> list[list[int]]:
    """The ids of each message, without its padding."""
    return [row[mask > 0].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]


@pytest.mark.parametrize("name", ["prompt", "p_tuning"])
def test_what_was_learned_is_what_lies_on_disk(
    name: str, tuned: Callable[..., Any], toy_data: Any, accuracy_on_disk: Callable[..., float]
) -> None:
    result, _, out = tuned(strategy=name)
    found = accuracy_on_disk(out, toy_data.validation.take(range(32)), toy_data.label_names)
    assert found == pytest.approx(result.metrics["accuracy"])


def test_the_virtual_tokens_learn_what_the_head_can_not(trained: Path, toy_data: Any, tmp_path: Path) -> None:
    """A model that knows the four kinds apart is to answer all messages of two of them alike."""
    two = {"cancel": "stay", "delivery": "go", "invoice": "stay", "login": "go"}
    parts = {
        name: replace(table, labels=tuple(two[label] for label in table.labels))
        for name, table in (("train", toy_data.train.take(range(256))), ("validation", toy_data.validation))
    }
    data = replace(toy_data, **parts, test=parts["validation"], label_names=("go", "stay"))
    settings = Finetune(epochs=4, batch_size=16, learning_rate=2e-2, strategy="prompt", prompt_tokens=4)
    result = finetune(trained, data, settings, TASK, tmp_path / "out", workspace=tmp_path / "work")
    assert result.metrics["accuracy"] > 0.9
    assert result.trainable < result.parameters / 30


def test_what_is_exported_answers_as_pytorch_does(tuned: Callable[..., Any], tmp_path: Path) -> None:
    _, _, out = tuned("bert", epochs=1)
    export_onnx(out, tmp_path / "onnx", TASK, messages=TEXTS)
    answers = []
    for target in (Target("torch", str(out)), Target("onnxruntime", str(tmp_path / "onnx"))):
        with open_runner(target) as runner:
            answers.append(infer_all(runner, TEXTS, [list(range(len(TEXTS)))])["logits"])
    assert np.abs(answers[0] - answers[1]).max() < 1e-4


def test_messages_have_the_room_that_they_had(tuned: Callable[..., Any]) -> None:
    _, _, out = tuned("bert", epochs=1, max_length=12)
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == 17
    assert len(Encoder(out).encode([TEXTS[2]])["input_ids"][0]) == 17


def test_a_tokenizer_whose_class_writes_its_own_tokens_keeps_the_prompt(
    tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path: Path
) -> None:
    """BERT's class forgets what its file says of the tokens around a text."""
    shutil.copytree(tiny_checkpoint("bert"), tmp_path / "source")
    path = tmp_path / "source" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "BertTokenizer"}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "source")
    assert type(tokenizer).__name__ == "BertTokenizer"
    model = TASK.load_model(tmp_path / "source")
    settings = Finetune(strategy="prompt", prompt_tokens=2)
    learn_prompt(model, tokenizer, settings, toy_data.label_names, 64).save_pretrained(tmp_path / "out")
    written = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert written.convert_ids_to_tokens(written("cancel")["input_ids"])[:3] == ["[CLS]", "[prompt 0]", "[prompt 1]"]
    assert Encoder(tmp_path / "out").encode(["cancel"])["input_ids"].tolist() == [written("cancel")["input_ids"]]


def test_a_trimmed_vocabulary_keeps_the_prompt(tuned: Callable[..., Any], tmp_path: Path) -> None:
    _, _, out = tuned("bert", epochs=1)
    assert trim_vocabulary(out, tmp_path / "small", TASK, TEXTS[:2], commonest=10) is not None
    with (
        open_runner(Target("torch", str(out))) as whole,
        open_runner(Target("torch", str(tmp_path / "small"))) as small,
    ):
        expected, found = (infer_all(each, TEXTS[:2], [[0], [1]])["logits"] for each in (whole, small))
    assert np.abs(expected - found).max() < 1e-5


def test_an_interrupted_training_goes_on_with_its_prompt(
    tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path: Path
) -> None:
    """The Trainer's checkpoints hold the virtual tokens: going on ends where an unbroken run does (FAULTS 25)."""
    validation = toy_data.validation.take(range(16))
    data = replace(toy_data, train=toy_data.train.take(range(32)), validation=validation, test=validation)
    settings = Finetune(epochs=2, batch_size=16, learning_rate=1e-2, strategy="prompt", prompt_tokens=3)

    def run(name: str) -> FinetuneResult:
        source = tiny_checkpoint("bert")
        return finetune(source, data, settings, TASK, tmp_path / name, workspace=tmp_path / "work")

    first = run("first")
    assert first.resumed_from == 0
    newest = max((tmp_path / "work").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in sorted(newest.rglob("*"), reverse=True):
        path.unlink()
    newest.rmdir()
    second = run("second")
    assert second.resumed_from == 2
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"prompt_tokens": 62}, "leaves no room"), ({"prompt_tokens": 500}, "leaves no room")],
)
def test_a_prompt_without_room_is_refused(changes: dict[str, Any], reason: str, tuned: Callable[..., Any]) -> None:
    with pytest.raises(TrainingError, match=reason):
        tuned("bert", **changes)


def test_a_second_prompt_is_refused(tuned: Callable[..., Any], toy_data: Any) -> None:
    _, _, out = tuned("bert", epochs=1)
    model, tokenizer = TASK.load_model(out), AutoTokenizer.from_pretrained(out)
    with pytest.raises(TrainingError, match="has a prompt already"):
        learn_prompt(model, tokenizer, Finetune(strategy="prompt"), toy_data.label_names, 64)


def test_a_tokenizer_that_writes_no_tokens_is_refused(tiny_checkpoint: Callable[..., Path], toy_data: Any) -> None:
    source = tiny_checkpoint("bert")
    model, tokenizer = TASK.load_model(source), AutoTokenizer.from_pretrained(source)
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    with pytest.raises(TrainingError, match="leaves no place for a prompt"):
        learn_prompt(model, tokenizer, Finetune(strategy="prompt"), toy_data.label_names, 64)


def test_a_teacher_does_not_know_the_prompt() -> None:
    with pytest.raises(ValidationError, match="virtual tokens"):
        Finetune(strategy="prompt", teacher="larger")
