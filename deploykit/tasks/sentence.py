"""Which checkpoint folders hold an encoder that is read from the mean of its tokens, and what loads them.

The model itself is in `sentence_model`, which imports torch.
"""

from __future__ import annotations

__all__ = ["ANSWERS_KEY", "ENTRIES_KEY", "POOLING_KEY", "SCALE", "SentenceAuto", "is_sentence_model"]

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

POOLING_KEY = "deploykit_pooling"
"""In config.json: how tokens become one vector."""
ENTRIES_KEY = "deploykit_entries"
"""In config.json: how many rows of the head belong to each label; the nearest counts."""
ANSWERS_KEY = "deploykit_answers"
"""In config.json: the answers' texts by label, where there are any."""
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
