"""An encoder learns to fill in hidden words; what is hidden, what is kept, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from deploykit.errors import ModelError, TrainingError
from deploykit.events import Progress
from deploykit.recipe import Pretrain, load_recipe
from deploykit.train.hidden_words import check_pretrainable, masking_collator
from deploykit.train.pretrain import pretrain
from deploykit.train.rows import NO_LABEL

SETTINGS = Pretrain(epochs=2, learning_rate=2e-3, freeze_embeddings=False)


@pytest.fixture(scope="module")
def pretrained(tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny BERT that has read the toy messages: where it was, where it is, and what was said."""
    folder = tmp_path_factory.mktemp("pretrained")
    start = tiny_checkpoint("bert", initializer_range=0.05)
    result = pretrain(
        start, toy_data.train.texts, toy_data.validation.texts, SETTINGS, folder / "out", workspace=folder / "work"
    )
    return start, folder / "out", result


def test_the_loss_of_hidden_words_falls(pretrained: Any) -> None:
    _, _, result = pretrained
    assert result.loss < result.loss_before - 0.3
    assert (result.steps, result.texts, result.resumed_from) == (32, 512, 0)


def test_the_encoder_is_kept_without_the_new_head_and_with_what_was_beside_it(pretrained: Any) -> None:
    start, out, _ = pretrained
    before, after = AutoModel.from_pretrained(start).state_dict(), AutoModel.from_pretrained(out).state_dict()
    assert before.keys() == after.keys()
    layer = "encoder.layer.0.intermediate.dense.weight"
    assert not torch.equal(before[layer], after[layer])
    assert torch.equal(before["pooler.dense.weight"], after["pooler.dense.weight"])
    assert not any("predictions" in name for name in load_file(out / "model.safetensors"))
    assert AutoTokenizer.from_pretrained(out).mask_token == "[MASK]"


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "electra", "mpnet"])
def test_every_encoder_of_the_bert_kind_can_be(kind: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    texts = ["cancel my parcel please", "the invoice is wrong", "hello, what now", "drop the van"] * 2
    folder = tiny_checkpoint(kind)
    result = pretrain(folder, texts, texts[:4], Pretrain(epochs=1), tmp_path / "out", workspace=tmp_path / "work")
    assert np.isfinite([result.loss, result.loss_before]).all()
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_it_computes_in_the_precision_that_is_asked_for(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any, dtype: Any
) -> None:
    forward, computed = torch.nn.Linear.forward, set()

    def watched(self: Any, values: torch.Tensor) -> torch.Tensor:
        found = forward(self, values)
        if self.training:
            computed.add(found.dtype)
        return found

    monkeypatch.setattr(torch.nn.Linear, "forward", watched)
    texts = ["cancel my parcel please", "the invoice is wrong", "hello, what now", "drop the van"]
    settings = Pretrain(epochs=1, precision=precision)
    result = pretrain(tiny_checkpoint("bert"), texts, texts, settings, tmp_path / "out", workspace=tmp_path / "work")
    assert result.precision == precision
    assert computed == {dtype}
    assert {each.dtype for each in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}


def test_whole_words_are_hidden_in_the_share_that_is_asked_for(tiny_checkpoint: Callable[..., Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint("bert"))
    encoded = tokenizer(["courier driver tracking package the parcel van please tell me about it again"] * 300)
    words = [-1 if word is None else word for word in encoded.word_ids(0)]
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids), "words": words} for ids in encoded["input_ids"]]
    assert max(words.count(word) for word in words) > 1  # some words are in pieces
    batch = masking_collator(tokenizer, 0.3, seed=1)(rows)
    hidden = (batch["labels"] != NO_LABEL).numpy()
    original = np.array(encoded["input_ids"])
    assert (batch["labels"].numpy()[hidden] == original[hidden]).all()
    assert not hidden[:, np.array(words) < 0].any()
    for word in set(words) - {-1}:
        own = hidden[:, np.array(words) == word]
        assert (own.all(axis=1) | ~own.any(axis=1)).all()
    first = [words.index(word) for word in sorted(set(words) - {-1})]
    assert hidden[:, first].mean() == pytest.approx(0.3, abs=0.04)
    shown = batch["input_ids"].numpy()[hidden]
    assert (shown == tokenizer.mask_token_id).mean() == pytest.approx(0.8, abs=0.06)
    assert (shown == original[hidden]).mean() == pytest.approx(0.1, abs=0.06)
    assert hidden.any(axis=1).all()
    again = masking_collator(tokenizer, 0.3, seed=1)(rows)
    assert torch.equal(again["input_ids"], batch["input_ids"])


def test_single_tokens_are_hidden_where_words_need_not_be_whole(tiny_checkpoint: Callable[..., Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint("bert"))
    encoded = tokenizer(["courier driver tracking package"] * 50)
    words = [-1 if word is None else word for word in encoded.word_ids(0)]
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids), "words": words} for ids in encoded["input_ids"]]
    hidden = (masking_collator(tokenizer, 0.4, seed=1, whole_words=False)(rows)["labels"] != NO_LABEL).numpy()
    parts = [hidden[:, np.array(words) == word] for word in set(words) - {-1} if words.count(word) > 1]
    assert any((part.any(axis=1) & ~part.all(axis=1)).any() for part in parts)


def test_an_interrupted_one_goes_on(tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path: Path) -> None:
    """FAULTS 25, 29."""
    import os
    import signal

    start, texts = tiny_checkpoint("bert", initializer_range=0.05), toy_data.train.texts[:128]

    def stop(event: object) -> None:
        if isinstance(event, Progress) and event.done == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        pretrain(start, texts, texts[:8], SETTINGS, tmp_path / "out", workspace=tmp_path / "work", listener=stop)
    assert not (tmp_path / "out").exists()
    result = pretrain(start, texts, texts[:8], SETTINGS, tmp_path / "out", workspace=tmp_path / "work")
    assert (result.resumed_from, result.steps) == (5, 8)


def test_what_can_not_be_is_refused_with_the_reason(
    tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path: Path
) -> None:
    start = tiny_checkpoint("bert")
    with pytest.raises(TrainingError, match="1 messages are too few"):
        pretrain(start, ["one"], ["two"], SETTINGS, tmp_path / "out", workspace=tmp_path / "work")
    sounds: Any = SimpleNamespace(name="sound", beside=())
    with pytest.raises(TrainingError, match="of kind sound"):
        pretrain(start, ["a"] * 9, ["b"], SETTINGS, tmp_path / "out", workspace=tmp_path / "work", medium=sounds)
    with pytest.raises(TrainingError, match="epochs is 0"):
        pretrain(start, ["one", "two"], ["three"], Pretrain(), tmp_path / "out", workspace=tmp_path / "work")
    other = tmp_path / "other"
    shutil.copytree(start, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"deploykit_plan": {"layers": []}}))
    with pytest.raises(ModelError, match="is pruned"):
        check_pretrainable(other)
    for kind in ("vit", "t5"):
        (other / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(ModelError, match=f"no masked-language head for an encoder of kind {kind}"):
            check_pretrainable(other)
    settings = json.loads((start / "tokenizer_config.json").read_text())
    bare = tmp_path / "bare"
    shutil.copytree(start, bare)
    settings.pop("mask_token")
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    for name in ("special_tokens_map.json",):
        (bare / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="has no mask token"):
        pretrain(bare, toy_data.train.texts, ["a"], SETTINGS, tmp_path / "out", workspace=tmp_path / "work2")


def test_a_fine_tuning_goes_on_from_it_and_a_second_one_finds_it(
    tiny_checkpoint: Callable[..., Path], toy_data: Any, write_csv: Callable[..., Path], tmp_path: Path
) -> None:
    from deploykit.pipeline.plan import make_plan, step_states
    from deploykit.pipeline.run import run_recipe

    train = write_csv(tmp_path / "train.csv", toy_data.validation)
    recipe, work = tmp_path / "recipe.yaml", tmp_path / "work"
    recipe.write_text(
        f"version: 1\nname: toy\ntask: text-classification\nmodel: {tiny_checkpoint('bert')}\n"
        f"data: {{train: {train}, test: 0.2, validation: 0.2}}\npretrain: {{epochs: 1}}\nfinetune: {{epochs: 1}}\n"
    )
    run_recipe(load_recipe(recipe), workspace=work, until="finetune")
    (read,), (tuned,) = ((work / "store" / stage).iterdir() for stage in ("pretrain", "finetune"))
    table = "embeddings.word_embeddings.weight"  # frozen in both
    first, second = load_file(read / "model.safetensors"), load_file(tuned / "model.safetensors")
    assert torch.equal(first[table], second[f"bert.{table}"])
    states = step_states(make_plan(load_recipe(recipe, ["finetune.learning_rate=0.002"]), Path()), work)
    assert [(each.stage, each.state) for each in states[:3]] == [
        ("data", "cached"), ("pretrain", "cached"), ("finetune", "to do")
    ]  # fmt: skip
    plain = make_plan(load_recipe(recipe, ["pretrain.epochs=0"]), Path())
    assert "pretrain" not in [step.stage for step in plain.steps]
    assert "pretrain" not in plain.step("finetune").parents


def test_patches_of_images_are_hidden_and_painted_and_the_encoder_is_fine_tuned(tmp_path: Path) -> None:
    from deploykit.data.dataset import LabelledData
    from deploykit.data.png import data_url, png_of
    from deploykit.data.table import Table
    from deploykit.recipe import Finetune
    from deploykit.runners.checkpoint import resolve_or_error
    from deploykit.tasks import find_task
    from deploykit.tasks.images import IMAGES
    from deploykit.train.finetune import finetune

    rng = np.random.default_rng(0)
    slopes = rng.integers(0, 30, (48, 2))
    images = tuple(
        data_url(png_of(np.add.outer(np.arange(8) * down, np.arange(8) * right).clip(0, 255).astype(np.uint8)))
        for down, right in slopes
    )
    start = resolve_or_error("sample:digits_vit", tmp_path)
    settings = Pretrain(epochs=4, learning_rate=2e-3, masked=0.5, batch_size=16)
    result = pretrain(
        start, images[:40], images[40:], settings, tmp_path / "out", workspace=tmp_path / "work", medium=IMAGES
    )
    assert result.loss < 0.8 * result.loss_before
    read = load_file(tmp_path / "out" / "model.safetensors")
    assert not any("decoder" in name for name in read)
    labels = tuple("steep" if down > right else "flat" for down, right in slopes)
    table = Table("toy", images, labels, tuple(range(48)))
    tuned = tmp_path / "tuned"
    data = LabelledData(table, table, table, ("flat", "steep"))
    head = Finetune(epochs=1, strategy="head")
    finetune(tmp_path / "out", data, head, find_task("image-classification"), tuned, workspace=tmp_path / "tuning")
    kept = load_file(tuned / "model.safetensors")
    shared = [name for name in kept if name.startswith("vit.")]
    assert len(shared) > 20
    assert all(torch.equal(kept[name], read[name.removeprefix("vit.")]) for name in shared)


def test_as_many_patches_are_hidden_as_asked_for_and_the_same_ones_by_a_seed() -> None:
    from deploykit.train.hidden_patches import hiding_collator

    rows = [{"pixel_values": np.zeros((3, 8, 8), np.float32)} for _ in range(200)]
    hidden = hiding_collator(16, 0.6, seed=3)(rows)["labels"]
    assert (hidden.sum(dim=1) == 10).all()
    assert hidden.float().mean(dim=0).numpy() == pytest.approx(np.full(16, 10 / 16), abs=0.15)
    assert torch.equal(hidden, hiding_collator(16, 0.6, seed=3)(rows)["labels"])
    assert (hiding_collator(4, 0.99, seed=3)(rows)["labels"].sum(dim=1) == 3).all()


def test_an_encoder_that_sees_no_patches_is_refused(tmp_path: Path) -> None:
    from deploykit.runners.checkpoint import resolve_or_error
    from deploykit.tasks.images import IMAGES

    start = resolve_or_error("sample:digits_resnet", tmp_path)
    with pytest.raises(ModelError, match="no masked autoencoder is known for a model of kind resnet"):
        pretrain(start, ["a", "b"], ["c"], SETTINGS, tmp_path / "out", workspace=tmp_path / "work", medium=IMAGES)
