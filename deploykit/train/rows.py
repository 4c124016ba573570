"""Messages as the rows that a model is trained on, and how rows become batches."""

from __future__ import annotations

__all__ = ["NO_LABEL", "Row", "training_rows"]

import inspect
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

NO_LABEL = -100
"""What PyTorch's cross entropy leaves out."""


def training_rows(tokenizer: Any, network: Any, texts: Sequence[str], targets: Any) -> list[Row]:
    """Rows of what the model takes, with their `labels`; a tokenizer may give more (token types to DistilBERT)."""
    encoded = tokenizer(list(texts), truncation=True, padding=False)
    taken = inspect.signature(network.forward).parameters
    return [
        {name: values[row] for name, values in encoded.items() if name in taken} | {"labels": int(targets[row])}
        for row in range(len(texts))
    ]
