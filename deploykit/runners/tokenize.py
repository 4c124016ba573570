"""Messages to token tensors, with the tokenizer of a model folder and nothing of transformers."""

from __future__ import annotations

__all__ = ["Encoder", "max_length_from_folder", "reads_pairs", "refuse_surrogates"]

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from deploykit.errors import DataError, ModelError
from deploykit.runners.padding import padded_rows
from deploykit.runners.words import WordTable
from deploykit.tasks.spans import PAIRS_KEY, token_words, tokenizer_input

_UNSET_LENGTH = 1_000_000
"""transformers writes an absurd `model_max_length` (1e30) where a tokenizer has none."""
_POSITIONS_BEHIND_PADDING = {
    "camembert", "data2vec-text", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
"""Models whose position ids begin behind the padding token's id."""


class Encoder:
    """Tokenizes as the served model does: truncated to the model's length, a batch padded on the right to its longest.

    Where the model's messages are pairs, a question and its context, the longer part is cut first, and token types are
    0 in both.

    Args:
        folder: a model folder with `tokenizer.json` and, for the length, `tokenizer_config.json`.

    Raises:
        ModelError: no tokenizer there, or one that can't be read.
    """

    outputs = ("input_ids", "attention_mask", "token_type_ids")

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError(
                f"{folder} has no tokenizer.json",
                "save the model's fast tokenizer there: AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)",
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            if type(error) is not Exception:  # the Rust library raises nothing more special than that
                raise
            raise ModelError(f"{path} is no tokenizer: {error}", "save it again from the model it belongs to") from None
        self.max_length = max_length_from_folder(folder)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_length)
        self.pad_id = pad_id_from_folder(folder, self._tokenizer)
        self._pairs = reads_pairs(folder)
        self._words = None if self._pairs else WordTable.of(self._tokenizer, _json(path), self.max_length)

    def encode(self, messages: Sequence[str], *, words: bool = False) -> dict[str, NDArray[np.int64]]:
        """`input_ids`, `attention_mask` and `token_type_ids`, each int64 [messages, longest].

        Args:
            messages: the texts.
            words: give `words` too, int64 [messages, longest, 2]: the part of the text that each token decides on.

        Raises:
            DataError: a message has a lone surrogate.
        """
        try:
            return self._encode_words(messages) if words else self._encode(messages)
        except TypeError:  # what tokenizers says of a string that has no UTF-8
            refuse_surrogates(messages)
            raise

    def _encode(self, messages: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        if len(messages) == 1:
            known = self._words.ids(messages[0]) if self._words else None
            if known is not None:
                mask, types = _one_text(len(known))
                return {
                    "input_ids": np.array([known], dtype=np.int64),
                    "attention_mask": mask,
                    "token_type_ids": types,
                }
            (encoding,) = self._encodings(messages)
            ids = np.array([encoding.ids], dtype=np.int64)
            return {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "token_type_ids": np.array([encoding.type_ids], dtype=np.int64) * (not self._pairs),
            }
        return self._padded(self._encodings(messages))

    def _encodings(self, messages: Sequence[str]) -> list[Encoding]:
        given = tokenizer_input(messages, pairs=self._pairs)
        if len(given) > 1:
            return list(self._tokenizer.encode_batch(given))
        first = given[0]  # a batch of one costs more
        return [self._tokenizer.encode(first) if isinstance(first, str) else self._tokenizer.encode(*first)]

    def _encode_words(self, messages: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        encodings = self._encodings(messages)
        tensors = self._padded(encodings)
        decided = [token_words(*each, pairs=self._pairs) for each in zip(messages, encodings, strict=True)]
        return tensors | {"words": padded_rows(decided)}

    def _padded(self, encodings: Sequence[Encoding]) -> dict[str, NDArray[np.int64]]:
        shape = (len(encodings), max(len(encoding) for encoding in encodings))
        ids, mask, types = np.full(shape, self.pad_id, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, encoding in enumerate(encodings):
            length = len(encoding)
            ids[row, :length] = encoding.ids
            mask[row, :length] = 1
            types[row, :length] = 0 if self._pairs else encoding.type_ids
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The pieces that ids stand for."""
        return [str(self._tokenizer.id_to_token(number)) for number in ids]

    @property
    def inner_prefix(self) -> str:
        """What marks a piece within a word; empty where the beginning of a word is marked."""
        return str(getattr(self._tokenizer.model, "continuing_subword_prefix", None) or "")

    def lengths(self, messages: Sequence[str]) -> NDArray[np.int64]:
        """Tokens of each message, special ones included and truncated: int64 [messages]."""
        return np.array([len(encoding) for encoding in self._encodings(messages)], dtype=np.int64)


@functools.cache
def _one_text(length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The mask and the token types of one text alone, read-only."""
    mask, types = np.ones((1, length), np.int64), np.zeros((1, length), np.int64)
    mask.flags.writeable = types.flags.writeable = False
    return mask, types


def refuse_surrogates(messages: Sequence[str]) -> None:
    """Refuse messages that no tokenizer takes.

    Raises:
        DataError: a message has a lone surrogate.
    """
    for number, message in enumerate(messages, 1):
        try:
            message.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"message {number} is not valid Unicode: a lone surrogate at character {error.start}",
                "decode the text as UTF-8 where it enters",
            ) from None


def reads_pairs(folder: Path) -> bool:
    """Whether the messages of a model folder, or of a text entry in a package, are a question and its context."""
    return bool(_json(folder / "config.json").get(PAIRS_KEY) or _json(folder / "entry.json").get("pairs"))


def max_length_from_folder(folder: Path) -> int:
    """The length to truncate to: the tokenizer's `model_max_length` or the model's positions, whichever is less.

    A text entry in a Triton package has it in its `entry.json`.
    """
    packaged = _json(folder / "entry.json").get("max_length")
    if packaged is not None:
        return int(packaged)
    length = int(_json(folder / "tokenizer_config.json").get("model_max_length") or _UNSET_LENGTH)
    config = _json(folder / "config.json")
    positions = int(config.get("max_position_embeddings") or (512 if length >= _UNSET_LENGTH else length))
    if config.get("model_type") in _POSITIONS_BEHIND_PADDING:
        pad_id = config.get("pad_token_id")
        positions -= (1 if pad_id is None else int(pad_id)) + 1
    return min(length, positions)


def pad_id_from_folder(folder: Path, tokenizer: Tokenizer) -> int:
    """The padding token's id."""
    pad_id = _json(folder / "config.json").get("pad_token_id", _json(folder / "entry.json").get("pad_id"))
    if pad_id is not None:
        return int(pad_id)
    token = _json(folder / "tokenizer_config.json").get("pad_token")
    token = token.get("content") if isinstance(token, dict) else token
    found = tokenizer.token_to_id(token) if token else None
    return 0 if found is None else int(found)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}", "save the model folder again") from None
    return value if isinstance(value, dict) else {}
