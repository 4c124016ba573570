"""What the transformers Trainer is told: from a recipe's `finetune` section and this machine."""

from __future__ import annotations

__all__ = ["precision_of", "training_arguments"]

import importlib.util
import math
from pathlib import Path
from typing import Any

from deploykit.errors import MissingDependencyError, TrainingError
from deploykit.recipe import Finetune
from deploykit.train.processes import on_cpu


def training_arguments(
    settings: Finetune, workspace: Path, *, seed: int, epochs: float, total: int, smoothed_here: bool, best: str,
    report_to: list[str], run_name: str | None,
) -> Any:  # fmt: skip
    """What the Trainer is told; checkpoints at each epoch's end.

    Args:
        settings: how to train.
        workspace: the folder for checkpoints.
        seed: of the order of the rows, and dropout.
        epochs: passes over the rows.
        total: steps in all.
        smoothed_here: whether the Trainer smoothes the labels.
        best: what early stopping watches: `loss`, or a metric.
        report_to: what hears of the curves.
        run_name: what they call it.
    """
    import torch
    from transformers import TrainingArguments

    precision = precision_of(settings.precision)
    stops_early = settings.early_stopping is not None
    # The newer name of an option that warns when it is named at all.
    name = "activation" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient"
    checkpointing = {f"{name}_checkpointing": True} if settings.gradient_checkpointing else {}
    return TrainingArguments(
        output_dir=str(workspace),
        num_train_epochs=epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=max(settings.batch_size, 64),
        gradient_accumulation_steps=settings.gradient_accumulation,
        weight_decay=settings.weight_decay,
        warmup_steps=math.ceil(total * settings.warmup),
        lr_scheduler_type=settings.scheduler,
        label_smoothing_factor=settings.label_smoothing if smoothed_here else 0.0,
        optim=_optimizer(settings.optimizer),
        bf16=precision == "bf16",
        use_cpu=on_cpu(),  # else bf16 is taken for a mistake there, and torchrun's processes train each alone
        fp16=precision == "fp16",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=3 if stops_early else 2,  # the newest, one that is complete in any case, and the best
        load_best_model_at_end=stops_early,
        metric_for_best_model=best if stops_early else None,
        greater_is_better=best != "loss" if stops_early else None,
        restore_callback_states_from_checkpoint=True,  # how long early stopping has been waiting
        logging_steps=10,
        logging_nan_inf_filter=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,  # the collator takes a row's number; `training_rows` has removed the others
        report_to=report_to,
        run_name=run_name,
        seed=seed,
        **checkpointing,
    )


def precision_of(asked: str) -> str:
    """The number format that is trained in."""
    import torch

    if asked == "fp16" and not torch.cuda.is_available():
        raise TrainingError("precision fp16 needs a GPU", "use auto, fp32 or bf16")
    if asked != "auto":
        return asked
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def _optimizer(name: str) -> str:
    if name == "adamw":
        return "adamw_torch_fused"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            f"finetune.optimizer={name} needs bitsandbytes", "pip install 'bitsandbytes>=0.50'"
        )
    if name == "paged_adamw_8bit" and on_cpu():
        raise TrainingError(
            f"finetune.optimizer={name} moves its state out of a GPU, and there is none", "use adamw_8bit"
        )
    return {"adamw_8bit": "adamw_bnb_8bit"}.get(name, name)
