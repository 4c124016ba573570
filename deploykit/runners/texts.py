"""Texts as messages: what a task's messages are unless it says otherwise."""

from __future__ import annotations

__all__ = ["TEXTS", "Texts", "fast_tokenizer"]

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import RequestError
from deploykit.runners.hard_texts import HARD_TEXTS, UNENCODABLE, text_of_length
from deploykit.runners.tokenize import Encoder, max_length_from_folder, reads_pairs, refuse_surrogates
from deploykit.tasks.medium import Encoder as AnyEncoder
from deploykit.tasks.medium import Hard, TensorInput, Traced
from deploykit.tasks.spans import token_words, tokenizer_input

_LONGEST = 2048
"""Tokens up to which lengths are tried: attention beyond costs minutes."""
_UNKNOWN_LONGEST = 512
_LENGTHS = (2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 127, 128, 129, 256, 512, 1024, 2048)
_LONG_NEIGHBOUR = 128
_EXPORTED = ("input_ids", "attention_mask")


class Texts:
    """Texts; the graph takes their tokens."""

    name = "text"
    textual = True
    beside = ("tokenizer.json",)
    served_files = ("tokenizer.json",)
    libraries: tuple[str, ...] = ("tokenizers",)
    tensors: Mapping[str, TensorInput] = {
        name: TensorInput("INT64", (-1,), ("length",), needed=name in _EXPORTED) for name in Encoder.outputs
    }
    neighbour = "where is my card " * (_LONG_NEIGHBOUR // 4)
    refused = UNENCODABLE

    def read(self, value: str, folder: Path) -> str:
        """The text itself."""
        return value

    def sent(self, messages: Sequence[str]) -> list[bytes]:
        """UTF-8.

        Raises:
            RequestError: a message has a lone surrogate, which UTF-8 can't carry.
        """
        encoded = []
        for number, text in enumerate(messages):
            try:
                encoded.append(text.encode("utf-8"))
            except UnicodeEncodeError as error:
                raise RequestError(
                    f"message {number} is not valid Unicode: a lone surrogate at character {error.start}",
                    hint="read the text with its right encoding, or with errors='replace'",
                    status=400,
                ) from error
        return encoded

    def groups(self, messages: Sequence[str]) -> list[list[int]]:
        """All: the shorter ones are padded."""
        return [list(range(len(messages)))]

    def encoder(self, folder: Path) -> Encoder:
        """The folder's tokenizer."""
        return Encoder(folder)

    def hard(self, encoder: AnyEncoder | None) -> list[Hard]:
        """The hard texts, and a text of each length up to the longest that the model takes.

        Without a tokenizer lengths are counted in words.
        """
        tokens = encoder if isinstance(encoder, Encoder) else None
        longest = _UNKNOWN_LONGEST if tokens is None else min(tokens.max_length, _LONGEST)

        def count(text: str) -> int:
            return len(text.split()) + 2 if tokens is None else int(tokens.lengths([text])[0])

        lengths = [length for length in _LENGTHS if length < longest] + [longest]
        return [
            *(Hard(name, text) for name, text in HARD_TEXTS),
            *(Hard(f"{length} tokens", text_of_length(length, count), True) for length in lengths),
            Hard(f"more than {longest} tokens", "where is my card " * longest, True),
        ]

    def served_settings(self, folder: Path) -> Mapping[str, Any]:
        """The length that is truncated to, and the ids that padding has."""
        encoder = Encoder(folder)
        return {"max_length": encoder.max_length, "pad_id": encoder.pad_id, "pad_type_id": 0}

    def processor(self, checkpoint: Path, max_length: int) -> Any:
        """The checkpoint's tokenizer."""
        return fast_tokenizer(checkpoint, max_length)

    def rows(self, processor: Any, messages: Sequence[str], *, offsets: bool) -> Mapping[str, Sequence[Any]]:
        """All that the tokenizer gives."""
        rows: Mapping[str, Sequence[Any]] = processor(
            list(messages), truncation=True, padding=False, return_offsets_mapping=offsets
        )
        return rows

    def whole(self, model: Any, folder: Path) -> Any:
        """The model as it is."""
        return model

    def reader(self, folder: Path, *, offsets: bool) -> Callable[[Sequence[str]], Mapping[str, Any]]:
        """The fast tokenizer of transformers. A single message is not padded, a batch to its longest."""
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        max_length, pairs = max_length_from_folder(folder), reads_pairs(folder)

        def read(messages: Sequence[str]) -> Mapping[str, Any]:
            try:
                inputs: Any = tokenizer(
                    tokenizer_input(messages, pairs=pairs),
                    truncation=True,
                    max_length=max_length,
                    padding=len(messages) > 1,
                    return_tensors="pt",
                    **({"return_token_type_ids": False} if pairs else {}),
                )
            except TypeError:
                refuse_surrogates(messages)
                raise
            if not offsets:
                return dict(inputs)
            encodings = zip(messages, inputs.encodings, strict=True)
            words = np.stack([token_words(text, each, pairs=pairs) for text, each in encodings])
            return {**inputs, "words": words}

        return read

    def traced(self, whole: Any, output: str) -> Traced:
        """Two rows of tokens, one of them padded; any number of rows and tokens."""
        import torch

        class Logits(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = whole

            def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
                logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask)[output]
                return logits

        ids = torch.full((2, 9), 5, dtype=torch.int64)
        mask = torch.ones_like(ids)
        mask[1, 5:] = 0
        axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
        return Traced(Logits(), (ids, mask), _EXPORTED, (axes, axes))

    def trials(self, encoder: AnyEncoder, whole: Any, messages: Sequence[str]) -> Iterator[Mapping[str, NDArray[Any]]]:
        """One token to full length, padded rows of mixed lengths, one row and many.

        The last has its padding at the left and in between: no tokenizer here makes that, but clients send tensors too.
        """
        assert isinstance(encoder, Encoder)
        if messages:
            yield encoder.encode(list(messages[:8]))
            yield encoder.encode([messages[0]])
        yield encoder.encode(["", "a", "hello there " * 40, "où est ma commande ? 📦", "שלום", "\t\n"])
        random = np.random.default_rng(0)
        longest, vocabulary = encoder.max_length, whole.config.vocab_size
        for lengths in ([1], [1, 2, 3], [longest], [7, longest // 2, 1, 12, 5], [longest, 3]):
            ids = random.integers(0, vocabulary, (len(lengths), max(lengths)))
            mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
            yield {"input_ids": np.where(mask > 0, ids, encoder.pad_id), "attention_mask": mask}
        holes = np.ones((3, min(9, longest)), dtype=np.int64)
        holes[0, :3] = holes[1, 2:5] = 0
        yield {"input_ids": random.integers(0, vocabulary, holes.shape), "attention_mask": holes}


TEXTS = Texts()


def fast_tokenizer(model: Path, max_length: int) -> Any:
    """A checkpoint's tokenizer, which truncates to so many tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, use_fast=True, trust_remote_code=False)
    tokenizer.model_max_length = min(max_length, max_length_from_folder(model))
    tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
    return tokenizer
