"""Loads encoders that are read from the mean of their tokens; the model itself is in `sentence_model`, with torch."""

from __future__ import annotations

__all__ = ["SentenceAuto"]

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


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
