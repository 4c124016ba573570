"""Which checkpoint folders hold an encoder that is read from the mean of its tokens, and what loads them.

The model itself is in `sentence_model`, which imports torch.
"""

from __future__ import annotations

__all__ = [
    "ANSWERS_KEY",
    "ENTRIES_KEY",
    "POOLING_KEY",
    "SCALE",
    "SentenceAuto",
    "is_sentence_model",
    "keep_pooling",
    "pooled_by_mean",
]

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

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


class SentenceAuto:
    """Loads sentence models as the auto classes of transformers load theirs, whatever their encoder."""

    @staticmethod
    def from_config(config: PretrainedConfig) -> PreTrainedModel:
        """A model of random weights."""
        from deploykit.tasks.sentence_model import sentence_class

        model: PreTrainedModel = sentence_class(config.__class__)(config)
        return model

    @staticmethod
    def from_pretrained(folder: Path, **settings: Any) -> Any:
        """The model of a checkpoint folder; an encoder without a head gets a random one."""
        from transformers import AutoConfig

        from deploykit.tasks.sentence_model import sentence_class

        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return sentence_class(config.__class__).from_pretrained(folder, **settings)


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
