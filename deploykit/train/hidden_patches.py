"""What a pretraining on images hides: patches, whose pixels the encoder learns to paint (a masked autoencoder).

The method is SimMIM (Xie et al. 2022, section 3): random patches show as one learnt token, the whole encoder sees all
patches, one linear layer gives their pixels, and the cost is the mean absolute difference on those that were hidden.
"""

from __future__ import annotations

__all__ = ["hidden_patches", "hiding_collator"]

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deploykit.errors import ModelError
from deploykit.recipe import Pretrain
from deploykit.tasks.images import IMAGES
from deploykit.tasks.untrained import NEW_KEY, asks_for_new_weights
from deploykit.train.hidden import Hidden
from deploykit.train.rows import Row

_KINDS = ("vit", "deit")
"""Encoders that see an image as equal patches, each of which their head paints whole."""
_HINT = "leave out pretrain.epochs, or use a ViT"


def hidden_patches(model: Path, settings: Pretrain, *, max_length: int, trust_pickle: bool) -> Hidden:
    """The encoder of a checkpoint with a layer that paints pixels, its images, and what is hidden of them.

    Raises:
        ModelError: transformers has no such layer for the encoder, or it can't be loaded.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    network = _network(model, config, trust_pickle=trust_pickle)
    processor = IMAGES.processor(model, max_length)

    def rows(messages: Sequence[str]) -> list[Row]:
        return [{"pixel_values": each} for each in IMAGES.rows(processor, messages, offsets=False)["pixel_values"]]

    def encoder() -> Any:
        if asks_for_new_weights(model):
            return AutoModel.from_config(network.config)
        return AutoModel.from_pretrained(model, dtype=torch.float32, trust_remote_code=False)

    patches = (config.image_size // config.patch_size) ** 2
    return Hidden(processor, network, rows, lambda seed: hiding_collator(patches, settings.masked, seed), encoder)


def hiding_collator(patches: int, share: float, seed: int) -> Callable[[Sequence[Row]], Any]:
    """Rows as one batch; `labels`, bool [images, patches], are the patches that are hidden, as many in each image.

    Args:
        patches: of an image.
        share: of them that is hidden; one at least, and not all.
        seed: of which.
    """
    import torch
    from transformers import default_data_collator

    generator = torch.Generator().manual_seed(seed)
    count = min(max(1, round(share * patches)), patches - 1)

    def collate(rows: Sequence[Row]) -> Any:
        batch = default_data_collator(list(rows))
        order = torch.rand((len(rows), patches), generator=generator).argsort(dim=1)
        batch["labels"] = order < count
        return batch

    return collate


def _network(model: Path, config: Any, *, trust_pickle: bool) -> Any:
    """The encoder with the layer that paints; what is hidden enters as `labels`, where the Trainer looks for them."""
    import torch
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING as KNOWN

    if config.model_type not in _KINDS:
        raise ModelError(f"{model}: no masked autoencoder is known for a model of kind {config.model_type}", _HINT)
    base: Any = KNOWN[type(config)]

    class Painter(base):  # type: ignore[misc]
        def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> Any:
            return super().forward(pixel_values=pixel_values, bool_masked_pos=labels)

    config.encoder_stride = config.patch_size
    if asks_for_new_weights(model):
        delattr(config, NEW_KEY)
        return Painter(config)
    try:
        return Painter.from_pretrained(
            model, config=config, dtype=torch.float32, use_safetensors=None if trust_pickle else True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"transformers can't load {model} for pretraining: {reason}", "check its config.json and weights"
        ) from error
