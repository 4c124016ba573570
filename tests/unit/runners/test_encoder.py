"""The encoder against the transformers tokenizer of the same folder, on messages good and strange."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.errors import DataError, ModelError
from deploykit.runners.tokenize import Encoder, max_length_from_folder

STRANGE = {
    "empty": "",
    "blank": " \t\r\n\u00a0\u2003",
    "emoji": "where is my 📦 👩\u200d👩\u200d👧🏽 ?",
    "right to left": "أين طلبي؟ שלום\u200f",
    "NUL": "where\0is\0my parcel",
    "controls": "\x01\x02\x7f\u200b\ufeff parcel",
    "combining": "e\u0301\u0301\u0301 ﬁ ẛ̣",
    "chinese": "我的包裹在哪里",
    "special tokens": "[CLS] hello [SEP] [MASK] </s> <pad>",
    "one word": "a" * 5_000,
    "1 MB": "where is my parcel " * 55_000,
    "private use": "\ue000\U0010ffff",
}


def reference(folder: Path, messages: list[str], length: int) -> dict[str, Any]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = tokenizer(messages, truncation=True, max_length=length, padding=True, return_tensors="np")
    return dict(found)


def copy(source: Path, folder: Path, name: str, **changes: Any) -> Path:
    """A copy of a checkpoint folder with keys of one of its JSON files changed; None removes a key."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    values = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("name", STRANGE)
def test_row_54_strange_texts_are_tokenized_as_transformers_does(
    name: str, kind: str, tiny_checkpoint: Callable[..., Path]
) -> None:
    folder = tiny_checkpoint(kind)
    found = Encoder(folder).encode([STRANGE[name]])
    expected = reference(folder, [STRANGE[name]], 64)
    np.testing.assert_array_equal(found["input_ids"], expected["input_ids"])
    np.testing.assert_array_equal(found["attention_mask"], expected["attention_mask"])
    assert found["input_ids"].dtype == np.int64
    assert 2 <= found["input_ids"].shape[1] <= 64


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_row_54_strange_texts_share_a_batch(kind: str, tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint(kind)
    messages = [text for name, text in STRANGE.items() if name != "1 MB"] + ["where is my parcel"]
    encoder = Encoder(folder)
    found, expected = encoder.encode(messages), reference(folder, messages, 64)
    np.testing.assert_array_equal(found["input_ids"], expected["input_ids"])
    np.testing.assert_array_equal(found["attention_mask"], expected["attention_mask"])
    assert not found["token_type_ids"].any()
    np.testing.assert_array_equal(encoder.lengths(messages), found["attention_mask"].sum(axis=1))


@pytest.mark.parametrize("messages", [["\ud800"], ["hello", "half \udc00 of a character"]])
def test_row_54_a_lone_surrogate_is_refused_with_its_place(
    messages: list[str], tiny_checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(DataError, match=rf"message {len(messages)} is not valid Unicode: a lone surrogate") as caught:
        Encoder(tiny_checkpoint("bert")).encode(messages)
    assert caught.value.hint


def test_a_message_has_the_same_tokens_alone_and_in_a_batch(tiny_checkpoint: Callable[..., Path]) -> None:
    encoder = Encoder(tiny_checkpoint("bert"))
    messages = ["where is my parcel", "cancel", "please tell me about the invoice of last week"]
    together = encoder.encode(messages)
    for row, message in enumerate(messages):
        alone = encoder.encode([message])["input_ids"][0]
        length = together["attention_mask"][row].sum()
        np.testing.assert_array_equal(together["input_ids"][row, :length], alone)
        assert (together["input_ids"][row, length:] == encoder.pad_id).all()


@pytest.mark.parametrize(
    ("kind", "max_length", "changes", "length"),
    [
        ("bert", 64, {}, 64),
        ("bert", 16, {}, 16),
        ("bert", None, {}, 64),  # the positions
        ("bert", 1000, {}, 64),  # more than the model has
        ("roberta", None, {}, 64),  # 66 positions, of which two lie before the first token's
        ("roberta", 512, {}, 64),
        ("roberta", None, {"pad_token_id": None}, 64),
        ("bert", 40, {"max_position_embeddings": None}, 40),  # positions that have no end
        ("bert", None, {"max_position_embeddings": None}, 512),
    ],
)
def test_length_is_the_tokenizers_or_the_models_whichever_is_less(
    kind: str,
    max_length: int | None,
    changes: dict[str, Any],
    length: int,
    tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder = copy(tiny_checkpoint(kind, max_length=max_length), tmp_path, "config.json", **changes)
    assert max_length_from_folder(folder) == length
    assert Encoder(folder).encode(["parcel " * 600])["input_ids"].shape == (1, length)


def test_padding_is_the_models_else_the_tokenizers(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    assert Encoder(tiny_checkpoint("bert")).pad_id == 0
    assert Encoder(tiny_checkpoint("roberta")).pad_id == 1
    without = copy(tiny_checkpoint("roberta"), tmp_path, "config.json", pad_token_id=None)
    assert Encoder(without).pad_id == 1
    (without / "tokenizer_config.json").unlink()
    assert Encoder(without).pad_id == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer.json", b"", "is no tokenizer"),
        ("tokenizer.json", b'{"version": "1.0"}', "is no tokenizer"),
        ("tokenizer_config.json", b"{", "not valid JSON"),
    ],
)
def test_a_folder_without_a_readable_tokenizer_is_refused(
    name: str, content: bytes | None, message: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy(tiny_checkpoint("bert"), tmp_path, "config.json")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        Encoder(folder)
    assert caught.value.hint
