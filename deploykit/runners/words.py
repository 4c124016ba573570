"""A table of words for tokenizers of the BERT kind: what a word is cut into is looked up, not computed again.

For a short message the library takes longer than some pruned models' layers do, most of it for normalizing text that is
plain already and for positions that nobody asks for.
"""

from __future__ import annotations

__all__ = ["WordTable"]

import re
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from typing import Self  # packages carry this module to Python 3.10 too

_MOST_WORDS = 50_000
_LONGEST_WORD = 64
"""Characters of a word that is remembered: of such as nobody writes twice the table could fill the memory."""


class WordTable:
    """Token ids of messages in printable ASCII; anything else is left to the library.

    Use `of` to make one.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int, *, lowercase: bool, foreign: str) -> None:
        self._tokenizer, self._lowercase = tokenizer, lowercase
        self._foreign = re.compile(foreign)
        self._words = re.compile(r"[0-9A-Za-z]+|[!-/:-@\[-`{-~]")
        self._table: dict[str, list[int]] = {}
        *self._start, self._end = tokenizer.encode("").ids
        self._room = max_length - 1

    @classmethod
    def of(cls, tokenizer: Tokenizer, spec: dict[str, Any], max_length: int) -> Self | None:
        """A table for a tokenizer whose words don't depend on each other; None for another kind.

        Args:
            tokenizer: truncates to `max_length` on the right, and does not pad.
            spec: the content of its `tokenizer.json`.
            max_length: in tokens, with the special ones.
        """
        parts = [(spec.get(name) or {}).get("type") for name in ("normalizer", "pre_tokenizer", "model")]
        normalizer = spec.get("normalizer") or {}
        ends = {token["content"][:1] for token in spec.get("added_tokens", ())}
        ordinary = any(end.isalnum() or end.isspace() or not end for end in ends)
        empty, probe = tokenizer.encode("").ids, tokenizer.encode("a")
        if parts != ["BertNormalizer", "BertPreTokenizer", "WordPiece"] or ordinary or max_length <= len(empty):
            return None
        if any(probe.type_ids) or not empty or probe.ids != [*empty[:-1], *_plain(tokenizer, "a"), empty[-1]]:
            return None
        starts = "".join(re.escape(end) for end in ends)
        foreign = f"[^ -~]|[{starts}]" if starts else "[^ -~]"
        return cls(tokenizer, max_length, lowercase=bool(normalizer.get("lowercase")), foreign=foreign)

    def ids(self, message: str) -> list[int] | None:
        """The message's token ids, special ones included and truncated; None where the library must be asked."""
        if self._foreign.search(message):
            return None
        ids = list(self._start)
        for word in self._words.findall(message.lower() if self._lowercase else message):
            ids += self._table.get(word) or self._learned(word)
        del ids[self._room :]
        ids.append(self._end)
        return ids

    def _learned(self, word: str) -> list[int]:
        ids = _plain(self._tokenizer, word)
        if len(self._table) < _MOST_WORDS and len(word) <= _LONGEST_WORD:
            self._table[word] = ids
        return ids


def _plain(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids
