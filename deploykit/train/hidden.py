"""What a pretraining is made of for one kind of message: a network that finds again what is hidden from it."""

from __future__ import annotations

__all__ = ["Hidden"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deploykit.train.rows import Row


@dataclass(frozen=True)
class Hidden:
    """One model's.

    Attributes:
        processor: makes rows; its `save_pretrained` writes what messages need.
        network: the encoder with the head that finds what is hidden; its loss is what is minimized.
        rows: of messages.
        collator: of rows, by the seed of what is hidden.
        encoder: the checkpoint's encoder as it came, to take the trained layers.
    """

    processor: Any
    network: Any
    rows: Callable[[Sequence[str]], list[Row]]
    collator: Callable[[int], Callable[[Sequence[Row]], Any]]
    encoder: Callable[[], Any]
