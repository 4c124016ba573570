"""Loads the PyTorch model of a task from a checkpoint folder, pruned, prefixed or not; its own head or a new one."""

from __future__ import annotations

__all__ = ["check_known", "load_checkpoint"]

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import DataError, ModelError
from deploykit.tasks.pruned import PREFIX_KEY, shapes_to_load, shrink
from deploykit.tasks.quiet import quiet_transformers
from deploykit.tasks.untrained import asks_for_new_weights, untrained_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_checkpoint(
    folder: Path, auto: Any, task: str, labels: Sequence[str] | None = None, **settings: Any
) -> PreTrainedModel:
    """The model of a checkpoint folder.

    Args:
        folder: a Hugging Face checkpoint folder (safetensors), or a configuration that asks for new weights.
        auto: the auto class of transformers that gives it its head, by name; or what stands for one.
        task: the task's name, for messages.
        labels: the labels of a new head, in index order; without it the checkpoint's own head is kept.
        settings: passed on to `from_pretrained`.

    Raises:
        ModelError: transformers can't load it, or it has no head (and no labels for a new one are given).
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    if settings.get("attn_implementation") == "sdpa":
        del settings["attn_implementation"]  # the default; to ask for it is an error where a model lacks it (MPNet)
    if labels is not None:
        settings |= {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            # A checkpoint that was tuned for other labels gets a new head.
            "ignore_mismatched_sizes": True,
        }
    model: PreTrainedModel
    untrained = asks_for_new_weights(folder)
    if untrained and labels is None:
        raise ModelError(f"{folder} has a configuration and no weights yet", "`deploykit finetune` trains them")
    try:
        with quiet_transformers():
            kind = getattr(transformers, auto) if isinstance(auto, str) else auto
            if untrained:
                model = untrained_model(folder, kind, **settings)
                return model
            model, found = _class_to_load(folder, kind).from_pretrained(
                folder, output_loading_info=True, trust_remote_code=False, **settings
            )
    except (OSError, ValueError, RuntimeError, KeyError, StrictDataclassError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"transformers can't load {folder} for {task}: {reason}",
            "check that its config.json belongs to its weights, and that transformers knows the model type",
        ) from error
    absent = sorted(name for name in found["missing_keys"] if labels is None or ".prefix_" in name)
    if absent:
        raise ModelError(
            f"{folder} has no weights for {', '.join(absent[:3])}",
            "a pretrained encoder answers nothing yet: `deploykit finetune` gives it a head",
        )
    return model


def _class_to_load(folder: Path, auto: Any) -> Any:
    """What to call `from_pretrained` of for a checkpoint folder: the auto class, or one with its shapes and prefix.

    Raises:
        ModelError: what its config.json says of shapes or of a prefix does not fit the model.
    """
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    shapes, tokens = shapes_to_load(config, folder), getattr(config, PREFIX_KEY, None)
    if shapes is None and tokens is None:
        return auto
    if tokens is not None and (type(tokens) is not int or tokens < 1):
        raise ModelError(f"{folder}/config.json: {PREFIX_KEY} is damaged ({tokens!r})", "learn the prefix again")
    with torch.device("meta"):
        base = type(auto.from_config(config))

    class Altered(base):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any, *rest: Any, **named: Any) -> None:
            from deploykit.tasks.prefixed import give_prefix

            super().__init__(config, *rest, **named)
            if shapes is not None:
                shrink(self, shapes)
            if tokens is not None:
                give_prefix(self, tokens)

    Altered.__name__, Altered.__qualname__, Altered.__module__ = base.__name__, base.__qualname__, base.__module__
    return Altered


def check_known(classes: Iterable[str], known: Iterable[str]) -> None:
    """Refuse classes that the model does not know.

    Raises:
        DataError: names them.
    """
    unknown = sorted(set(classes) - set(known))
    if unknown:
        raise DataError(
            f"{len(unknown)} label(s) that the model does not know: {', '.join(unknown[:5])}",
            "use data with the model's own labels, or leave the labels out to check without the metric",
        )
