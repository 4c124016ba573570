"""What the outputs of a model folder are called."""

from __future__ import annotations

__all__ = ["labels_from_folder"]

import json
from pathlib import Path

from deploykit.errors import ModelError


def labels_from_folder(folder: Path) -> tuple[str, ...]:
    """The labels of a model folder's `config.json`, in index order.

    Raises:
        ModelError: it names none.
    """
    path = folder / "config.json"
    try:
        named = json.loads(path.read_text(encoding="utf-8"))["id2label"]
        return tuple(named[str(index)] for index in range(len(named)))
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{path} names no labels (id2label)", "save the model with its label names") from None
