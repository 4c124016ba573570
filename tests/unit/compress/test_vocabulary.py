"""A trimmed tokenizer cuts messages as before, of every kind of tokenizer; what it does not know it cuts finer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from deploykit.compress.vocabulary import trim_tokenizer, trim_vocabulary
from deploykit.runners.tokenize import Encoder
from deploykit.tasks import find_task

TASK = find_task("text-classification")
TEXTS = [
    "the card was charged twice and the charge is still pending",
    "where is my parcel, it was sent on monday by the courier",
    "please cancel the transfer that I made yesterday",
    "café crème für 5 € — naïve 漢字 text",
    "reordering the reordered orders of an orderly orderer",
]
SEEN = TEXTS[:3]


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        TEXTS * 3, trainers.WordPieceTrainer(vocab_size=220, special_tokens=special, show_progress=False)
    )
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    return tokenizer


def byte_level_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        TEXTS * 3,
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        TEXTS * 20,
        trainers.UnigramTrainer(
            vocab_size=160, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {"WordPiece": wordpiece, "BPE": byte_level_bpe, "Unigram": unigram}


def trimmed(whole: Tokenizer, texts: Sequence[str], commonest: int = 0) -> tuple[Tokenizer, Any]:
    used = {number for text in texts for number in whole.encode(text).ids}
    found = trim_tokenizer(json.loads(whole.to_str()), used, commonest)
    assert found is not None
    return Tokenizer.from_str(json.dumps(found[0])), found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_texts_are_cut_as_before(kind: str) -> None:
    whole = KINDS[kind]()
    small, report = trimmed(whole, SEEN)
    assert small.get_vocab_size() == len(report.kept) < whole.get_vocab_size() == report.pieces
    for text in SEEN:
        before, after = whole.encode(text), small.encode(text)
        assert after.tokens == before.tokens
        assert [report.kept[number] for number in after.ids] == before.ids
    pair = SEEN[0], SEEN[1]
    assert small.encode(*pair).tokens == whole.encode(*pair).tokens


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_becomes_unknown_and_no_character_is_lost(kind: str) -> None:
    whole = KINDS[kind]()
    small, _ = trimmed(whole, SEEN[:1])
    for text in TEXTS:
        before, after = whole.encode(text), small.encode(text)
        for unknown in ("[UNK]", "<unk>"):
            assert after.tokens.count(unknown) == before.tokens.count(unknown)
        bare = ["".join(piece.removeprefix("##") for piece in found.tokens) for found in (before, after)]
        assert bare[0] == bare[1]
        assert len(after.ids) >= len(before.ids)


@pytest.mark.parametrize("kind", KINDS)
@given(words=st.lists(st.sampled_from(sorted({word for text in TEXTS for word in text.split()})), max_size=8))
@settings(max_examples=40, deadline=None)
def test_any_text_of_kept_pieces_is_cut_as_before(kind: str, words: list[str]) -> None:
    whole = KINDS[kind]()
    text = " ".join(words)
    small, report = trimmed(whole, [text])
    assert [report.kept[number] for number in small.encode(text).ids] == whole.encode(text).ids


@pytest.mark.parametrize("kind", KINDS)
def test_the_commonest_pieces_stay(kind: str) -> None:
    whole = KINDS[kind]()
    few, many = (trimmed(whole, SEEN[:1], commonest)[1] for commonest in (0, 80))
    assert len(few.kept) < len(many.kept)
    everything = trimmed(whole, [], 10_000)[0]
    unused = int(whole.token_to_id("[unused1]") is not None)
    assert everything.get_vocab_size() >= whole.get_vocab_size() - unused
    assert everything.encode(TEXTS[3]).tokens == whole.encode(TEXTS[3]).tokens


def test_a_tokenizer_without_pieces_is_left_alone() -> None:
    whole = Tokenizer(models.WordLevel({"[UNK]": 0, "card": 1}, unk_token="[UNK]"))
    assert trim_tokenizer(json.loads(whole.to_str()), {1}, 0) is None


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "xlm-roberta", "electra", "mpnet"])
def test_a_trimmed_model_answers_as_before(kind: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny_checkpoint(kind)
    messages = ["where is my parcel", "cancel my order", "zzz ?"]
    report = trim_vocabulary(source, tmp_path / "small", TASK, messages, commonest=10)
    assert report is not None

    def logits(folder: Path) -> np.ndarray:
        batch = {name: torch.from_numpy(values) for name, values in Encoder(folder).encode(messages).items()}
        with torch.inference_mode():
            return np.asarray(TASK.load_model(folder).eval()(**batch).logits.numpy())

    assert np.allclose(logits(tmp_path / "small"), logits(source), atol=1e-6)
    model = TASK.load_model(tmp_path / "small")
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == len(report.kept)
    assert model.config.vocab_size < TASK.load_model(source).config.vocab_size
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path / "small")(messages)["input_ids"]
    assert theirs == [Encoder(tmp_path / "small").encode([message])["input_ids"][0].tolist() for message in messages]


def test_a_vocabulary_that_is_all_used_is_not_written(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = shutil.copytree(tiny_checkpoint("bert"), tmp_path / "whole")
    assert trim_vocabulary(source, tmp_path / "small", TASK, ["cancel"], commonest=100_000) is None
    assert not (tmp_path / "small").exists()
