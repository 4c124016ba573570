"""Image classification: one PNG file in, one label out."""

from __future__ import annotations

__all__ = ["ImageClassification"]

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.data import png
from deploykit.tasks.base import Loss
from deploykit.tasks.checkpoint import load_checkpoint
from deploykit.tasks.entry import entry_source
from deploykit.tasks.text_classification import TextClassification

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ImageClassification(TextClassification):
    """A label for each image, told and judged as that of a text: a classification head over a ViT, a ResNet or such."""

    name = "image-classification"
    losses: tuple[Loss, ...] = ("cross_entropy",)

    def load_model(self, folder: Path, labels: Sequence[str] | None = None, **settings: Any) -> PreTrainedModel:
        """The image-classification model of a checkpoint folder; see `load_checkpoint`."""
        return load_checkpoint(folder, "AutoModelForImageClassification", self.name, labels, **settings)

    def entry(self) -> tuple[Path, ...]:
        """The image model's source files."""
        ours = (entry_source(name) for name in ("image_classification", "message_model", "logits_model", "ranking"))
        return *ours, Path(png.__file__)
