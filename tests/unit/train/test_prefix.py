"""Prefix tuning: only keys and values in front of every layer's own learn; loading, exporting and int8 keep them."""

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
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import deploykit
from deploykit.compress.quantize import Variant, quantize
from deploykit.compress.vocabulary import trim_vocabulary
from deploykit.errors import ModelError, TrainingError
from deploykit.export.graph import Graph, attribute
from deploykit.export.to_onnx import export_onnx
from deploykit.recipe import Finetune
from deploykit.runners import Target, infer_all, open_runner
from deploykit.tasks import find_task
from deploykit.tasks.prefixed import PREFIX, give_prefix
from deploykit.tasks.pruned import PREFIX_KEY, LayerPlan, PruningPlan, check_prunable, cut, encoder_layers
from deploykit.train.finetune import FinetuneResult, finetune
from deploykit.train.hidden_words import check_pretrainable
from deploykit.train.prefix import learn_prefix

TASK = find_task("text-classification")
KINDS = ("bert", "distilbert", "roberta", "xlm-roberta", "electra", "mpnet")
TEXTS = ["where is my parcel", "cancel", "please " * 80, "", "a password for my account — é 📦"]
SETTINGS = Finetune(epochs=1, batch_size=16, learning_rate=2e-2, strategy="prefix", prompt_tokens=5)


@pytest.fixture(scope="module")
def biased(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model whose biases are not zero, as a trained one's."""
    made: dict[str, Path] = {}

    def call(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(f"biased-{kind}") / "model"
            shutil.copytree(tiny_checkpoint(kind), made[kind])
            random = np.random.default_rng(0)
            weights = load_file(made[kind] / "model.safetensors")
            for name in sorted(weights):
                if name.endswith("bias"):
                    weights[name] = random.normal(0, 0.3, weights[name].shape).astype(np.float32)
            save_file(weights, made[kind] / "model.safetensors", metadata={"format": "pt"})
        return made[kind]

    return call


@pytest.fixture(scope="module")
def tuned(
    biased: Callable[[str], Path], toy_data: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[FinetuneResult, Path, Path]]:
    """A tiny model tuned with a prefix of five: the result, where it came from, and where it lies."""
    made: dict[str, tuple[FinetuneResult, Path, Path]] = {}

    def call(kind: str = "bert") -> tuple[FinetuneResult, Path, Path]:
        if kind not in made:
            validation = toy_data.validation.take(range(32))
            data = replace(toy_data, train=toy_data.train.take(range(64)), validation=validation, test=validation)
            folder = tmp_path_factory.mktemp("prefix")
            result = finetune(biased(kind), data, SETTINGS, TASK, folder / "out", workspace=folder / "work")
            made[kind] = result, biased(kind), folder / "out"
        return made[kind]

    return call


def answers(folder: Path, kind: Any = "torch", size: int = len(TEXTS)) -> Any:
    """The logits of all texts, in batches of that size."""
    every = range(len(TEXTS))
    with open_runner(Target(kind, str(folder))) as runner:
        return infer_all(runner, TEXTS, [list(every[start : start + size]) for start in every[::size]])["logits"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masks", ["added", "true or false", "none"])
def test_a_prefix_is_what_other_tokens_in_front_would_be(kind: str, masks: str, biased: Callable[[str], Path]) -> None:
    """The definition: attention over [others; message], read at the message, where the prefix is what others give."""
    torch.manual_seed(0)
    implementation = "sdpa" if masks == "true or false" and kind != "mpnet" else "eager"
    model = TASK.load_model(biased(kind), attn_implementation=implementation).eval()
    layer = encoder_layers(model)[1]
    attention: Any = layer.module.get_submodule(layer.attention)
    others, message = torch.randn(1, 3, 32), torch.randn(2, 6, 32)
    together = torch.cat([others.expand(2, -1, -1), message], dim=1)
    seen = torch.ones(2, 1, 9, 9, dtype=torch.bool)
    seen[1, ..., 5:] = masks == "none"
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    mask = {"added": added, "true or false": seen if kind != "mpnet" else added, "none": None}[masks]
    bias = {}
    if kind == "mpnet":
        bias["position_bias"] = torch.randn(2, 4, 9, 9)
        bias["position_bias"][..., :3] = 0  # a prefix has no position
    with torch.inference_mode():
        expected = attention(together, attention_mask=mask, **bias)[0][:, 3:]
        start = [layer.linear(name)(others)[0] for name in layer.inputs[1:]]
        give_prefix(model, 3)
        for name, value in zip(PREFIX, start, strict=True):
            getattr(attention, name).copy_(value)
        found = attention(
            message,
            attention_mask=None if mask is None else mask[..., 3:, 3:],
            **{name: value[..., 3:, 3:] for name, value in bias.items()},
        )[0]
    assert (found - expected).abs().max() < 1e-5
    assert (attention(message + 0.1)[0] - found).abs().max() > 1e-3, "a comparison that can fail"


def test_only_the_prefix_and_the_head_learn(tuned: Callable[..., Any], toy_data: Any) -> None:
    result, source, out = tuned()
    before, after = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    learned = {f"bert.encoder.layer.{number}.attention.self.{name}" for number in range(2) for name in PREFIX}
    assert set(after) - set(before) == learned
    assert set(before) <= set(after)
    assert {name for name in before if (before[name] != after[name]).any()} == {"classifier.weight", "classifier.bias"}
    head = sum(after[f"classifier.{each}"].size for each in ("weight", "bias"))
    assert result.trainable == 2 * 2 * 5 * 32 + head
    model, tokenizer = TASK.load_model(source), AutoTokenizer.from_pretrained(source)
    learn_prefix(model, tokenizer, SETTINGS, toy_data.label_names, 64)
    for name in learned:
        start = model.get_parameter(name).detach().numpy()
        assert start.shape == after[name].shape == (5, 32)
        assert len(np.unique(start, axis=0)) == 5, "equal ones would stay equal"
        assert (np.abs(start - after[name]).max(axis=1) > 1e-4).all(), name


def test_it_begins_as_the_keys_and_values_of_the_labels_names(biased: Callable[[str], Path], toy_data: Any) -> None:
    source = biased("bert")
    model, tokenizer = TASK.load_model(source), AutoTokenizer.from_pretrained(source)
    words = tokenizer(" ".join(toy_data.label_names), add_special_tokens=False, return_tensors="pt")["input_ids"]
    settings = SETTINGS.model_copy(update={"prompt_tokens": words.shape[1]})
    with torch.inference_mode():
        entering = model.bert(input_ids=words, output_hidden_states=True).hidden_states[1]
        expected = model.bert.encoder.layer[1].attention.self.value(entering)[0]
    model.train()
    learn_prefix(model, tokenizer, settings, toy_data.label_names, 64)
    assert model.training
    found = model.bert.encoder.layer[1].attention.self.prefix_values
    assert found.requires_grad
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_answers_alike_alone_in_a_padded_batch_and_in_every_implementation(
    kind: str, tuned: Callable[..., Any], tmp_path: Path
) -> None:
    _, _, out = tuned(kind)
    together = answers(out)
    assert np.abs(answers(out, size=1) - together).max() < 1e-4
    batch = AutoTokenizer.from_pretrained(out)(TEXTS, padding=True, truncation=True, return_tensors="pt")
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert batch["input_ids"].shape[1] == 64, "a prefix takes no place of a message"

    def logits(model: Any) -> Any:
        with torch.inference_mode():
            return model.eval()(**batch).logits.numpy()

    for implementation in ("eager", "sdpa"):
        model = deploykit.load(out, attn_implementation=implementation)
        assert np.abs(logits(model) - together).max() < 1e-4
    assert np.abs(logits(AutoModelForSequenceClassification.from_pretrained(out)) - together).max() > 1e-2
    model.save_pretrained(tmp_path / "again")
    assert np.abs(logits(deploykit.load(tmp_path / "again")) - together).max() < 1e-5
    assert json.loads((tmp_path / "again" / "config.json").read_text())[PREFIX_KEY] == 5


def test_what_was_learned_is_what_lies_on_disk(
    tuned: Callable[..., Any], toy_data: Any, accuracy_on_disk: Callable[..., float]
) -> None:
    result, _, out = tuned()
    found = accuracy_on_disk(out, toy_data.validation.take(range(32)), toy_data.label_names)
    assert found == pytest.approx(result.metrics["accuracy"])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_prefix_learns_what_the_head_can_not(
    checkpointing: bool, trained: Path, toy_data: Any, tmp_path: Path
) -> None:
    """A model that knows the four kinds apart is to answer all messages of two of them alike."""
    two = {"cancel": "stay", "delivery": "go", "invoice": "stay", "login": "go"}
    parts = {
        name: replace(table, labels=tuple(two[label] for label in table.labels))
        for name, table in (("train", toy_data.train.take(range(256))), ("validation", toy_data.validation))
    }
    data = replace(toy_data, **parts, test=parts["validation"], label_names=("go", "stay"))
    settings = SETTINGS.model_copy(update={"epochs": 4.0, "gradient_checkpointing": checkpointing})
    result = finetune(trained, data, settings, TASK, tmp_path / "out", workspace=tmp_path / "work")
    assert result.metrics["accuracy"] > 0.9
    assert result.trainable < result.parameters / 20


@pytest.mark.parametrize("kind", ["bert", "distilbert", "mpnet"])
def test_what_is_exported_and_rounded_answers_as_pytorch_does(
    kind: str, tuned: Callable[..., Any], toy_data: Any, tmp_path: Path
) -> None:
    _, _, out = tuned(kind)
    report = export_onnx(out, tmp_path / "onnx", TASK, messages=TEXTS)
    assert report.fused
    assert report.operators["MultiHeadAttention"] == 2
    graph = Graph(load_graph(tmp_path / "onnx"))
    for node in graph.of_type("MultiHeadAttention"):
        assert node.input[5].endswith("_of_4_heads"), "what all heads share, old versions of onnxruntime get wrong"
    expected = answers(out)
    for folder in ("model.onnx", "plain.onnx"):
        assert np.abs(answers(tmp_path / "onnx" / folder, "onnxruntime") - expected).max() < 1e-4
        assert np.abs(answers(tmp_path / "onnx" / folder, "onnxruntime", 1) - expected).max() < 1e-4
    for variant in (Variant("int8_static", "fused"), Variant("int8_dynamic", "split")):
        rounded = tmp_path / variant.name
        made = quantize(tmp_path / "onnx", rounded, variant, calibration=toy_data.train.texts[:100])
        assert sum(made.products.values()) >= 13, "six products of each layer, and the head"
        assert made.float_products == 0
        found = answers(rounded, "onnxruntime", 1)
        assert np.abs(found - expected).max() < np.abs(expected).max() / 5
        assert (found.argmax(-1) == expected.argmax(-1)).all()


def load_graph(folder: Path) -> Any:
    import onnx

    return onnx.load(folder / "model.onnx")


def test_a_pruned_model_takes_a_prefix(biased: Callable[[str], Path], toy_data: Any, tmp_path: Path) -> None:
    shutil.copytree(biased("bert"), tmp_path / "small")
    small = TASK.load_model(biased("bert"))
    cut(small, PruningPlan((LayerPlan(0, (1, 2, 3), tuple(range(40))), LayerPlan(1, (0,), (3, 5)))))
    small.save_pretrained(tmp_path / "small")
    validation = toy_data.validation.take(range(16))
    data = replace(toy_data, train=toy_data.train.take(range(32)), validation=validation, test=validation)
    finetune(tmp_path / "small", data, SETTINGS, TASK, tmp_path / "out", workspace=tmp_path / "work")
    sizes = [layer.linear(layer.inputs[1]).out_features for layer in encoder_layers(TASK.load_model(tmp_path / "out"))]
    assert sizes == [24, 8]
    export_onnx(tmp_path / "out", tmp_path / "onnx", TASK, messages=TEXTS)
    assert np.abs(answers(tmp_path / "onnx", "onnxruntime") - answers(tmp_path / "out")).max() < 1e-4
    heads = [attribute(n, "num_heads", 0) for n in Graph(load_graph(tmp_path / "onnx")).of_type("MultiHeadAttention")]
    assert heads == [3, 1]


def test_a_trimmed_vocabulary_keeps_the_prefix(tuned: Callable[..., Any], tmp_path: Path) -> None:
    _, _, out = tuned()
    assert trim_vocabulary(out, tmp_path / "small", TASK, TEXTS, commonest=10) is not None
    assert np.abs(answers(tmp_path / "small") - answers(out)).max() < 1e-5


def test_an_interrupted_training_goes_on_with_its_prefix(
    tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path: Path
) -> None:
    """The Trainer's checkpoints hold the prefix: going on ends where an unbroken run does (FAULTS 25)."""
    validation = toy_data.validation.take(range(16))
    data = replace(toy_data, train=toy_data.train.take(range(32)), validation=validation, test=validation)
    settings = SETTINGS.model_copy(update={"epochs": 2.0})

    def run(name: str) -> FinetuneResult:
        source = tiny_checkpoint("bert")
        return finetune(source, data, settings, TASK, tmp_path / name, workspace=tmp_path / "work")

    assert run("first").resumed_from == 0
    newest = max((tmp_path / "work").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    shutil.rmtree(newest)
    assert run("second").resumed_from == 2
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert set(one) == set(two)
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_a_new_head_keeps_the_prefix(tuned: Callable[..., Any]) -> None:
    """What follows a prefix trains the model with it: as labels change, or with another strategy."""
    _, _, out = tuned()
    after = load_file(out / "model.safetensors")
    model = TASK.load_model(out, ("yes", "no"))
    for name in [name for name in after if "prefix" in name]:
        assert np.array_equal(model.get_parameter(name).detach().numpy(), after[name])


# --- what is refused ---


def test_a_prefix_that_can_not_be_is_refused(tuned: Callable[..., Any], tmp_path: Path) -> None:
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    _, source, out = tuned()
    tokenizer = AutoTokenizer.from_pretrained(out)
    with pytest.raises(TrainingError, match="has a prefix already"):
        learn_prefix(TASK.load_model(out), tokenizer, SETTINGS, ["a"], 64)
    with pytest.raises(TrainingError, match="prompt_tokens=65 is more than the 64 tokens"):
        learn_prefix(TASK.load_model(source), tokenizer, Finetune(strategy="prefix", prompt_tokens=65), ["a"], 64)
    config = ModernBertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
                              vocab_size=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1,
                              sep_token_id=2)  # fmt: skip
    with pytest.raises(TrainingError, match="modernbert takes no prefix"):
        learn_prefix(ModernBertForSequenceClassification(config), tokenizer, SETTINGS, ["a"], 64)


def test_pruning_and_pretraining_refuse_a_prefix(tuned: Callable[..., Any]) -> None:
    _, _, out = tuned()
    with pytest.raises(ModelError, match="has a prefix, which pruning does not cut"):
        check_prunable(out)
    with pytest.raises(ModelError, match="has a prefix, and pretraining"):
        check_pretrainable(out)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [*((each, f"{PREFIX_KEY} is damaged") for each in ("five", 0, -1, True)), (6, "can't load .* for text-class")],
)
def test_a_damaged_length_is_said(damage: object, reason: str, tuned: Callable[..., Any], tmp_path: Path) -> None:
    _, _, out = tuned()
    shutil.copytree(out, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {PREFIX_KEY: damage}))
    with pytest.raises(ModelError, match=reason):
        TASK.load_model(tmp_path / "model")


@pytest.mark.parametrize("labels", [None, ("yes", "no")])
def test_a_prefix_that_is_not_there_is_said(labels: Any, tuned: Callable[..., Any], tmp_path: Path) -> None:
    _, _, out = tuned()
    shutil.copytree(out, tmp_path / "model")
    weights = load_file(out / "model.safetensors")
    del weights["bert.encoder.layer.1.attention.self.prefix_keys"]
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no weights for .*layer\.1\.attention\.self\.prefix_keys"):
        TASK.load_model(tmp_path / "model", labels)
