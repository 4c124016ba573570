"""The table of words gives what the library gives, for any message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from deploykit.runners.tokenize import Encoder
from deploykit.runners.words import WordTable

MESSAGES = st.one_of(
    st.text(max_size=80),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80),
    st.lists(
        st.sampled_from(
            ["parcel", "Cancel", "it's", "[SEP]", "[UNK]", "don't", "42nd", "a_b", "x" * 120, "é", "\t", ""]
        ),
        max_size=30,
    ).map(" ".join),
)


def pair(folder: Path, **changes: Any) -> tuple[Tokenizer, WordTable | None]:
    spec = json.loads((folder / "tokenizer.json").read_text())
    for name, value in changes.items():
        spec[name] = spec[name] | value if isinstance(value, dict) else value
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.no_padding()
    tokenizer.enable_truncation(16)
    return tokenizer, WordTable.of(tokenizer, spec, 16)


@pytest.fixture(scope="module")
def tables(tiny_checkpoint: Callable[..., Path]) -> list[tuple[Tokenizer, WordTable]]:
    found = [pair(tiny_checkpoint("bert")), pair(tiny_checkpoint("roberta"))]
    found.append(pair(tiny_checkpoint("bert"), normalizer={"lowercase": False}))
    assert all(table is not None for _, table in found)
    return found  # type: ignore[return-value]


@given(message=MESSAGES)
@settings(max_examples=300, deadline=None)
def test_the_ids_are_those_of_the_library(message: str, tables: list[tuple[Tokenizer, WordTable]]) -> None:
    for tokenizer, table in tables:
        found = table.ids(message)
        assert found is None or found == tokenizer.encode(message).ids
        assert table.ids(message) == found, "and again, from the table"


def test_long_words_are_not_remembered(tiny_checkpoint: Callable[..., Path]) -> None:
    """A client that sends ever new ones, 64 KiB each, would fill the server's memory."""
    tokenizer, table = pair(tiny_checkpoint("bert"))
    assert table is not None
    for letter in "abcdef":
        assert table.ids(f"parcel {letter * 5000}") == tokenizer.encode(f"parcel {letter * 5000}").ids
    assert set(table._table) == {"parcel"}


def test_plain_messages_are_looked_up_and_others_are_not(tables: list[tuple[Tokenizer, WordTable]]) -> None:
    (_, table), *_ = tables
    assert table.ids("Where is my parcel?") is not None
    assert table.ids("") is not None
    for message in ("café", "two\nlines", "[SEP] cancel", "a\x00b", "\ud800"):
        assert table.ids(message) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": None},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"added_tokens": [{"id": 0, "content": "parcel", "special": False}]},
    ],
)
def test_other_tokenizers_have_no_table(changes: dict[str, Any], tiny_checkpoint: Callable[..., Path]) -> None:
    spec = json.loads((tiny_checkpoint("bert") / "tokenizer.json").read_text()) | changes
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint("bert") / "tokenizer.json"))
    assert WordTable.of(tokenizer, spec, 16) is None


def test_an_encoder_gives_the_same_with_and_without(tiny_checkpoint: Callable[..., Path]) -> None:
    with_table, without = Encoder(tiny_checkpoint("bert")), Encoder(tiny_checkpoint("bert"))
    without._words = None
    for message in ("where is my parcel", "", "x" * 500, "cancel " * 100):
        ours, theirs = with_table.encode([message]), without.encode([message])
        assert {name: values.tolist() for name, values in ours.items()} == {
            name: values.tolist() for name, values in theirs.items()
        }
        assert all(ours[name].dtype == theirs[name].dtype for name in ours)
