"""deploykit: from a pretrained transformer and labelled messages to a proven model on Triton."""

from __future__ import annotations

__all__ = ["__version__", "load"]

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__version__ = "0.1.0"


def load(folder: str | Path, task: str = "text-classification", **settings: Any) -> PreTrainedModel:
    """The transformers model of a checkpoint folder, also of one that deploykit has pruned, or given a prefix.

    Args:
        folder: a checkpoint folder; beside it lies its tokenizer, for `AutoTokenizer.from_pretrained`.
        task: what the model does.
        settings: passed on to `from_pretrained`.

    Returns:
        the model, to be called, fine-tuned, saved and exported as any other.

    Raises:
        ModelError: the folder has no such model.
        UsageError: no such task.
    """
    from deploykit.tasks import find_task

    return find_task(task).load_model(Path(folder), **settings)
