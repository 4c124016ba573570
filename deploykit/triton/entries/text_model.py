"""What the text models of a package have in common: text in, tokens to the model of the logits, its logits back.

It is copied into a package beside `model.py` and needs numpy only: the package `tokenizers` lies beside it in `site/`,
the vocabulary in `tokenizer.json`, what else it must know in `entry.json`: `model` (which computes the logits),
`labels` in the order of the logits, `inputs` (which of `input_ids`, `attention_mask`, `token_type_ids` that model
takes), `max_length` in tokens, `pad_id`, `pad_type_id`, and `pairs`
where messages are a question and its context. NVIDIA runs it in Python 3.10 or 3.12.
"""

from __future__ import annotations

__all__ = ["TextModel", "groups_by_length", "padded_logits"]

import abc
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE / "site")]
# Messages are short: a pool of threads costs more than it gives, and would take cores from onnxruntime.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from logits_model import Failure, logits_model  # type: ignore[import-not-found, unused-ignore]  # noqa: E402
from message_model import MessageModel  # type: ignore[import-not-found, unused-ignore]  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from words import WordTable  # type: ignore[import-not-found, unused-ignore]  # noqa: E402

# Tokenizing 64 KiB takes 0.1 s, in which this instance answers nobody else.
_MAX_TEXT_BYTES = 1 << 16
# What another call of the model costs, in tokens of padding. int8 MiniLM-L6 with two threads (AVX512-VNNI) takes 2.6 ms
# for 16 tokens, 4.2 for 32, 7.0 for 64, so 1.1 a call and 0.09 a token: 12 tokens where it is held here; 23 where the
# server is asked, which takes a millisecond more. This is between them.
_CALL_TOKENS = 16
_WARMUP_SHAPES = ((1, 8), (1, 16), (1, 32), (8, 16))


class TextModel(MessageModel):  # type: ignore[misc, unused-ignore]
    """One instance: a tokenizer, and the model that computes the logits.

    A task's own model derives from it and says how logits become outputs.
    """

    with_offsets = False  # where the tokens are in the text, which costs time

    def initialize(self, args: dict[str, str]) -> None:
        """Reads what lies beside this file."""
        super().initialize(args)
        entry = self.entry
        columns = {
            "input_ids": ("ids", entry["pad_id"]),
            "attention_mask": ("attention_mask", 0),
            "token_type_ids": ("type_ids", entry["pad_type_id"]),
        }
        self._columns: dict[str, tuple[str, int]] = {name: columns[name] for name in entry["inputs"]}
        warmups = [
            {name: np.full(shape, "mask" in name, dtype=np.int64) for name in self._columns} for shape in _WARMUP_SHAPES
        ]
        self._model = logits_model(args, entry["model"], warmups)
        self._tokenizer = Tokenizer.from_file(str(_HERE / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(entry["max_length"])
        spec = json.loads((_HERE / "tokenizer.json").read_text(encoding="utf-8"))
        self._pairs = bool(entry.get("pairs"))  # a question and, behind the first line break, its context
        self._words = None if self.with_offsets else WordTable.of(self._tokenizer, spec, entry["max_length"])

    @abc.abstractmethod
    def outputs(
        self,
        messages: list[str],
        encodings: list[Any],
        logits: list[NDArray[np.float32]],
        asked: list[tuple[slice, Any]],
    ) -> list[dict[str, NDArray[Any]]]:
        """Every output for each request.

        Args:
            messages: of all requests.
            encodings: of the messages.
            logits: of the messages, [labels] or [tokens, labels].
            asked: of each request, which messages are its own, and what `asked` said.
        """

    def read(self, request: Any) -> list[str]:
        """The texts of a request; ValueError says which can't be read and why."""
        return _texts(request)

    def answered(
        self, messages: list[str], asked: list[tuple[slice, Any]]
    ) -> tuple[list[dict[str, NDArray[Any]]], dict[int, Any]]:
        """Every output for each request, and the errors of the messages that have no logits."""
        encodings = self._encodings(messages)
        logits, failures = self._logits(encodings)
        return self.outputs(messages, encodings, logits, asked), failures

    def _encodings(self, messages: list[str]) -> list[Any]:
        """The tokens of each message: of words that were seen before, from a table; of the others, by the library."""
        if self._pairs:
            return list(self._tokenizer.encode_batch([message.partition("\n")[::2] for message in messages]))
        if self.with_offsets:
            return list(self._tokenizer.encode_batch(messages))
        if self._words is None:
            return list(self._tokenizer.encode_batch_fast(messages))
        known = [self._words.ids(message) for message in messages]
        strange = [message for message, ids in zip(messages, known, strict=True) if ids is None]
        others = iter(self._tokenizer.encode_batch_fast(strange) if strange else ())
        return [next(others) if ids is None else _Tokens(ids) for ids in known]

    def _logits(self, encodings: list[Any]) -> tuple[list[NDArray[np.float32]], dict[int, Any]]:
        """The logits of each message, without padding, and the errors of those that have none."""
        lengths = list(map(len, encodings))
        logits = [np.zeros(len(self.labels), dtype=np.float32)] * len(encodings)
        failures: dict[int, Any] = {}
        for rows in groups_by_length(lengths, _CALL_TOKENS):
            try:
                found = self._model.logits(self._feeds([encodings[row] for row in rows]))
            except Failure as failure:
                failures.update(dict.fromkeys(rows, failure.error))
                continue
            for row, values in zip(rows, found, strict=True):
                logits[row] = values[: lengths[row]] if values.ndim == 2 else values
        return logits, failures

    def _feeds(self, encodings: list[Any]) -> dict[str, NDArray[np.int64]]:
        """The inputs of the model, [messages, longest], padded on the right."""
        longest = max(map(len, encodings))
        feeds = {}
        for name, (column, padding) in self._columns.items():
            rows = [getattr(encoding, column) for encoding in encodings]
            if self._pairs and column == "type_ids":
                rows = [[0] * len(row) for row in rows]  # as it was trained
            feeds[name] = np.array([row + [padding] * (longest - len(row)) for row in rows], dtype=np.int64)
        return feeds


class _Tokens:
    """One message's tokens as the library's encoding has them."""

    def __init__(self, ids: list[int]) -> None:
        self.ids, self.attention_mask, self.type_ids = ids, [1] * len(ids), [0] * len(ids)

    def __len__(self) -> int:
        return len(self.ids)


def groups_by_length(lengths: Sequence[int], waste: int) -> list[list[int]]:
    """The numbers of the messages to compute together: of like length, so that little is computed for padding.

    A message joins the next shorter ones while their padding up to its length stays within `waste` tokens in all.
    """
    groups: list[list[int]] = []
    padding = 0
    previous = 0
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        padding += (lengths[number] - previous) * len(groups[-1]) if groups else 0
        previous = lengths[number]
        if groups and padding <= waste:
            groups[-1].append(number)
        else:
            groups.append([number])
            padding = 0
    return groups


def padded_logits(rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The logits of messages, [messages, longest, labels]; zeros behind their ends and for a message that failed."""
    padded = np.zeros((len(rows), max(map(len, rows)), rows[0].shape[-1]), dtype=np.float32)
    for place, values in enumerate(rows):
        if values.ndim == 2:
            padded[place, : len(values)] = values
    return padded


def _texts(request: Any) -> list[str]:
    """The messages of a request; ValueError says which can't be read and why."""
    texts = []
    for number, value in enumerate(request.inputs()[0].as_numpy().ravel()):
        if len(value) > _MAX_TEXT_BYTES:
            raise ValueError(f"text {number} has {len(value)} bytes, at most {_MAX_TEXT_BYTES} are taken")
        try:
            texts.append(value.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"text {number} is not UTF-8: {error.reason} at byte {error.start}") from error
    return texts
