"""What a checkpoint folder says of how its tokens become one vector, and the keys that say it in config.json."""

from __future__ import annotations

__all__ = [
    "ANSWERS_KEY",
    "ENTRIES_KEY",
    "POOLING_KEY",
    "SCALE",
    "is_sentence_model",
    "keep_pooling",
    "pooled_by_mean",
]

import json
import shutil
from pathlib import Path

from deploykit.errors import ModelError

POOLING_KEY = "deploykit_pooling"
"""In config.json: how tokens become one vector."""
ENTRIES_KEY = "deploykit_entries"
"""In config.json: how many rows of the head belong to each label; the nearest counts."""
ANSWERS_KEY = "deploykit_answers"
"""In config.json: the answers' texts by label, where there are any."""
_POOLING = Path("1_Pooling/config.json")
"""Where models of sentence-transformers say how their tokens become one vector."""
SCALE = 20.0
"""What a cosine is multiplied by to be a logit: the inverse of the usual temperature (0.05)."""


def is_sentence_model(folder: Path) -> bool:
    """Whether a checkpoint folder says that its encoder is read from the mean of its tokens."""
    path = folder / "config.json"
    return path.is_file() and POOLING_KEY in json.loads(path.read_text(encoding="utf-8"))


def pooled_by_mean(folder: Path) -> bool:
    """Whether a checkpoint folder says, as sentence-transformers does, that its vectors are the means of its tokens.

    Raises:
        ModelError: what it says can't be read.
    """
    path = folder / _POOLING
    if not path.is_file():
        return False
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        ways = [key for key, value in said.items() if key.startswith("pooling_mode_") and value is True]
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{path} is damaged: {error}", "get the model again, or say finetune.pooling=own") from error
    return said.get("pooling_mode") == "mean" or ways == ["pooling_mode_mean_tokens"]


def keep_pooling(before: Path, after: Path) -> None:
    """Let a checkpoint folder say of its vectors what the one that it was made from says."""
    if (before / _POOLING).is_file():
        (after / _POOLING).parent.mkdir(exist_ok=True)
        shutil.copy2(before / _POOLING, after / _POOLING)
