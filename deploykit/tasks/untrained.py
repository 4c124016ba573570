"""Checkpoint folders that hold a configuration and no weights: a model that is trained from nothing."""

from __future__ import annotations

__all__ = ["NEW_KEY", "asks_for_new_weights", "untrained_model"]

import json
from pathlib import Path
from typing import Any

NEW_KEY = "deploykit_new_weights"
"""The key of config.json that asks for it. Without the key, weights that are not there are an error."""


def asks_for_new_weights(folder: Path) -> bool:
    """Whether a folder's configuration asks for random weights, and there are no others."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get(NEW_KEY) is True and not any(folder.glob("*.safetensors*"))


def untrained_model(folder: Path, auto: Any, **settings: Any) -> Any:
    """A model with random weights, drawn from PyTorch's generator as it stands.

    Args:
        folder: with the configuration.
        auto: the auto class of transformers.
        settings: `dtype` and `attn_implementation` as `from_pretrained` takes them; others change the configuration.
    """
    from transformers import AutoConfig

    built = {name: settings.pop(name) for name in ("dtype", "attn_implementation") if name in settings}
    for name in ("ignore_mismatched_sizes", "use_safetensors"):
        settings.pop(name, None)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **settings)
    delattr(config, NEW_KEY)  # what is saved from here on has weights
    return auto.from_config(config, **built)
