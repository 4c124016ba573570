"""Back-translation: any model that turns text into text, kept as it goes, in other words for each copy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoTokenizer, MarianConfig, MarianMTModel, T5Config, T5ForConditionalGeneration

from deploykit.errors import ModelError, TrainingError
from deploykit.events import Progress
from deploykit.recipe import Finetune
from deploykit.tasks import find_task
from deploykit.train import translate
from deploykit.train.finetune import finetune
from deploykit.train.translate import back_translated

TEXTS = tuple(f"where is my parcel number {number}" for number in range(40))


@pytest.fixture(scope="module")
def translators(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny random T5 and a tiny random Marian, with the toy messages' tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint("bert"))
    size = len(tokenizer)
    ends = {"pad_token_id": 0, "eos_token_id": tokenizer.sep_token_id, "decoder_start_token_id": 0}
    torch.manual_seed(0)
    models = (
        T5ForConditionalGeneration(
            T5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, **ends)
        ),
        MarianMTModel(
            MarianConfig(
                vocab_size=size, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=24,
                forced_eos_token_id=None, **ends,
            )
        ),
    )  # fmt: skip
    folders = []
    for model in models:
        folders.append(tmp_path_factory.mktemp("translator"))
        model.save_pretrained(folders[-1])
        tokenizer.save_pretrained(folders[-1])
    return folders[0], folders[1]


@pytest.fixture
def settings(translators: tuple[Path, Path]) -> Finetune:
    there, back = translators
    return Finetune(augment=("back_translation",), translator=str(there), translator_back=str(back), epochs=1)


def call(settings: Finetune, workspace: Path, copy: int = 0, heard: list[Any] | None = None, **more: Any) -> list[str]:
    listener = (heard if heard is not None else []).append
    workspace.mkdir(exist_ok=True)
    chosen = {"texts": TEXTS, "seed": 1, **more}
    texts = chosen.pop("texts")
    return list(back_translated(texts, settings, copy, workspace=workspace, listener=listener, **chosen))


def test_each_copy_says_it_in_other_words(settings: Finetune, tmp_path: Path) -> None:
    heard: list[Any] = []
    found = call(settings, tmp_path / "a", heard=heard)
    assert len(found) == len(TEXTS)
    assert all(text.strip() for text in found)
    assert sum(new != old for new, old in zip(found, TEXTS, strict=True)) > 30
    assert [(each.done, each.total) for each in heard if isinstance(each, Progress)] == [(32, 40), (40, 40)]
    assert call(settings, tmp_path / "b") == found
    assert call(settings, tmp_path / "a", copy=1) != found
    assert call(settings, tmp_path / "b", seed=2) != found, "what was kept is of another seed"
    alone = settings.model_copy(update={"translator_back": None})
    assert call(alone, tmp_path / "c") != found


def test_what_was_done_is_kept_and_what_was_torn_is_done_again(
    settings: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = call(settings, tmp_path / "a")
    path = tmp_path / "a" / "translated-0.jsonl"
    whole = path.read_bytes()
    heard: list[Any] = []
    for kept, batches in ((whole[:-3], 1), (b"\n".join(whole.splitlines()[:35]) + b"\n", 1), (whole[:100], 2)):
        path.write_bytes(kept)
        heard.clear()
        assert call(settings, tmp_path / "a", heard=heard) == found
        assert path.read_bytes() == whole
        assert len(heard) == batches
    monkeypatch.setattr(translate, "_translator", None)
    assert call(settings, tmp_path / "a") == found, "all of it is there: no model is loaded"


def test_a_text_that_comes_back_empty_stays(
    settings: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translate, "_translator", lambda folder: lambda texts: [" "] * len(texts))
    assert call(settings, tmp_path / "a") == list(TEXTS)


def test_a_model_is_trained_on_the_translations(
    settings: Finetune, tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path: Path
) -> None:
    validation = toy_data.validation.take(range(16))
    data = replace(toy_data, train=toy_data.train.take(range(32)), validation=validation, test=validation)
    chosen = settings.model_copy(update={"augment": ("back_translation", "typos"), "augment_copies": 2})
    task = find_task("text-classification")
    result = finetune(tiny_checkpoint("bert"), data, chosen, task, tmp_path / "out", workspace=tmp_path / "work")
    assert result.steps == 3  # 32 rows and twice as many copies, 32 a batch
    assert len({(tmp_path / "work" / f"translated-{copy}.jsonl").read_text() for copy in range(2)}) == 2


def test_labels_by_token_are_refused(
    settings: Finetune, tiny_checkpoint: Callable[..., Path], entity_data: Any, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="moves the words"):
        finetune(
            tiny_checkpoint("bert"), entity_data, settings, find_task("token-classification"), tmp_path / "out",
            workspace=tmp_path / "work",
        )  # fmt: skip


def test_a_model_that_can_not_translate_is_refused(
    settings: Finetune, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    encoder = settings.model_copy(update={"translator": str(tiny_checkpoint("bert"))})
    with pytest.raises(ModelError, match="can't translate"):
        call(encoder, tmp_path / "a")


def test_a_model_that_has_to_be_told_its_languages_is_refused(
    settings: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = AutoTokenizer.from_pretrained

    def multilingual(folder: Path, **more: Any) -> Any:
        tokenizer = known(folder, **more)
        tokenizer.src_lang = "en_XX"
        return tokenizer

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", multilingual)
    with pytest.raises(ModelError, match="told its languages"):
        call(settings, tmp_path / "a")


@pytest.mark.parametrize(
    "wrong",
    [{"augment": ("back_translation",)}, {"translator": "a"}, {"translator_back": "a"}],
    ids=json.dumps,
)
def test_the_augmentation_and_its_models_are_named_together(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="name both, or none"):
        Finetune(**wrong)
