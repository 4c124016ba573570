"""Words and spans: offsets in the text are right whatever the tokenizer does to it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from deploykit.data.labels import Span
from deploykit.tasks import find_task
from deploykit.tasks.spans import Found, spans_of_labels, tag_parts, word_spans

TASK = find_task("token-classification")
NAMES = ("O", "B-x", "I-x", "B-y", "I-y")


def wordpiece() -> Tokenizer:
    """Lower-cases and strips accents; words are cut to letters."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), *"-.,#€$@!?", "in"]
    tokenizer = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def byte_level() -> Tokenizer:
    """As RoBERTa's: bytes, a leading space belongs to the word; offsets with or without it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        piece: number for number, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *alphabet, "Ġi", "Ġin"])
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "i"), ("Ġi", "n")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=False, add_prefix_space=False
    )
    return tokenizer


def unigram() -> Tokenizer:
    """As XLM-R's: pieces of sentencepiece, some over the border of two words."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁in", ").", "in", *"abcdefghijklmnopqrstuvwxyz0123456789-.,"]
    vocabulary = [(piece, 0.0 if number < 4 else -float(number)) for number, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


TOKENIZERS: dict[str, Tokenizer] = {"wordpiece": wordpiece(), "byte level": byte_level(), "unigram": unigram()}
kinds = pytest.mark.parametrize("kind", TOKENIZERS)


def decided(kind: str, text: str) -> np.ndarray:
    return word_spans(text, TOKENIZERS[kind].encode(text).offsets)


def covered(kind: str, text: str) -> list[str]:
    return [text[start:end] for start, end in decided(kind, text).tolist() if end]


@kinds
def test_words_are_the_same_for_every_tokenizer(kind: str) -> None:
    text = "Send ORD-123 to Zoë  in Kraków, for 12,50 € 👍🏽 now!"
    expected = "Send|ORD|-|123|to|Zoë|in|Kraków|,|for|12|,|50|€|👍🏽|now|!"
    assert covered(kind, text) == expected.split("|")


@kinds
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Zoe\u0308 Bjo\u0308rn", ["Zoe\u0308", "Bjo\u0308rn"]),  # accents as characters of their own
        ("👨\u200d👩\u200d👧 hi", None),
        ("请取消 ok", ["请", "取", "消", "ok"]),
        ("שלום עולם", ["שלום", "עולם"]),
        ("\u200bhi", ["hi"]),
        ("  \t\n ", []),
        ("", []),
        ("a_b", ["a_b"]),
    ],
)
def test_words_of_any_script(kind: str, text: str, words: list[str] | None) -> None:
    found = covered(kind, text)
    if words is None:
        assert "".join(found).replace("\u200d", "") == text.replace("\u200d", "").replace(" ", "")
    elif "请" in text and kind == "unigram":  # characters unknown to it are one token
        assert "".join(found) == "".join(words)
    else:
        assert found == words


def test_a_token_over_the_border_of_two_words_makes_them_one() -> None:
    assert covered("unigram", "go (in).") == ["go", "(", "in", ")."]


texts = st.text(
    st.sampled_from("ab Zé\u0308ö1-,.€👍\u200d🏽请ש\u200b\n\t_I") | st.characters(exclude_categories=["Cs"]),
    max_size=40,
)


@kinds
@given(text=texts)
@settings(max_examples=150, deadline=None)
def test_decided_parts_are_in_order_apart_and_hold_no_space(kind: str, text: str) -> None:
    found = [(start, end) for start, end in decided(kind, text).tolist() if end]
    for (_, end), (start, _) in itertools.pairwise(found):
        assert end <= start
    for start, end in found:
        assert 0 <= start < end <= len(text)
        assert not text[start].isspace()
        assert not text[end - 1].isspace()


@kinds
@given(data=st.data(), text=texts)
@settings(max_examples=150, deadline=None)
def test_spans_of_whole_words_come_back_as_they_were(kind: str, data: st.DataObject, text: str) -> None:
    words = decided(kind, text)
    parts = [(start, end) for start, end in words.tolist() if end]
    spans, place = [], 0
    while place < len(parts):
        length = data.draw(st.integers(1, 3))
        run = parts[place : place + length]
        if data.draw(st.booleans()):
            spans.append(Span(run[0][0], run[-1][1], data.draw(st.sampled_from("xy"))))
        place += length
    (tags,) = TASK.targets([tuple(spans)], NAMES, [words])
    assert len(tags) == len(words)
    assert [tag == -100 for tag in tags] == [end == 0 for end in words[:, 1]]
    logits = np.zeros((1, len(tags), len(NAMES)), np.float32)
    for token, tag in enumerate(tags):
        logits[0, token, max(tag, 0)] = 5
    (answer,) = TASK.answers({"logits": logits, "words": words[None]}, NAMES)
    assert answer == TASK.right_answers([tuple(spans)], NAMES)[0]


def spans(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    names = sorted(set(tags))
    count = np.arange(len(tags))
    words, chosen = np.stack([count, count + 1], axis=1), np.array([names.index(tag) for tag in tags])
    return [each[:3] for each in spans_of_labels(words, chosen, np.ones(len(tags)), [tag_parts(n) for n in names])]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["B-x", "I-x", "O", "I-x"], [(0, 2, "x"), (3, 4, "x")]),
        (["B-x", "B-x", "I-y"], [(0, 1, "x"), (1, 2, "x"), (2, 3, "y")]),
        (["B-x", "E-x", "I-x", "S-x", "I-x"], [(0, 2, "x"), (2, 3, "x"), (3, 4, "x"), (4, 5, "x")]),
        (["x", "x", "y", "O", "no-x"], [(0, 2, "x"), (2, 3, "y"), (4, 5, "no-x")]),
        (["O", "O"], []),
    ],
)
def test_tags_of_any_scheme_make_spans(tags: list[str], expected: list[tuple[int, int, str]]) -> None:
    assert spans(tags) == expected


def test_a_score_is_the_mean_of_its_words() -> None:
    found = spans_of_labels(
        np.array([[0, 1], [2, 5]]), np.array([1, 2]), np.array([0.5, 1.0]), [tag_parts(n) for n in NAMES]
    )
    assert found == [Found(0, 5, "x", 0.75)]


@pytest.mark.parametrize(
    ("names", "tags"), [(("O", "B-x", "I-x", "E-x", "S-x"), [4, 0, 1, 2, 3]), (("x", "O"), [0, 1, 0, 0, 0])]
)
def test_targets_in_the_models_own_scheme(names: tuple[str, ...], tags: list[int]) -> None:
    words = word_spans("a b c d e", [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)])
    assert TASK.targets([(Span(0, 1, "x"), Span(4, 9, "x"))], names, [words]) == [tags]
