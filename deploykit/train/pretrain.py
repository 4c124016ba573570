"""Pretraining on messages without labels: the encoder learns to fill in what is hidden of them."""

from __future__ import annotations

__all__ = ["PretrainResult", "pretrain"]

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.errors import TrainingError
from deploykit.events import Listener, Note, ignore
from deploykit.recipe import Finetune, Pretrain
from deploykit.runners.texts import TEXTS
from deploykit.runners.untrusted import check_checkpoint
from deploykit.tasks.medium import Medium
from deploykit.tasks.pooling import keep_pooling
from deploykit.tasks.quiet import quiet_transformers
from deploykit.train.arguments import precision_of, training_arguments
from deploykit.train.checkpoints import last_complete
from deploykit.train.dropout import cheap_dropout
from deploykit.train.hidden import Hidden
from deploykit.train.hidden_patches import hidden_patches
from deploykit.train.hidden_words import hidden_words
from deploykit.train.objective import Objective
from deploykit.train.processes import is_main_process, on_cpu, processes
from deploykit.train.rows import row_length
from deploykit.train.strategy import freeze
from deploykit.train.trainer import NAN_HINT, interrupts, trainer_class, watching

_FEWEST = 2
_HIDDEN: Mapping[str, Callable[..., Hidden]] = {"text": hidden_words, "image": hidden_patches}
"""What is hidden, by the kind of message."""


@dataclass(frozen=True)
class PretrainResult:
    """What a pretraining ended with.

    Attributes:
        loss_before: of what is hidden of the watched messages, with the new head: of words the mean cross entropy of
            their tokens, in nats; of patches the mean absolute difference of their pixels, normalized as the model's.
        loss: the same at the end.
        texts: messages that were read.
        steps: optimizer steps made.
        curve: (step, training loss) as logged.
        resumed_from: the step that this call went on from, 0 for a fresh start.
        device: what it ran on.
        precision: what it computed in.
    """

    loss_before: float
    loss: float
    texts: int
    steps: int
    curve: tuple[tuple[int, float], ...]
    resumed_from: int
    device: str
    precision: str


def pretrain(
    model: Path,
    texts: Sequence[str],
    watched: Sequence[str],
    settings: Pretrain,
    out: Path,
    *,
    workspace: Path,
    medium: Medium = TEXTS,
    max_length: int = 128,
    seed: int = 0,
    trust_pickle: bool = False,
    listener: Listener = ignore,
) -> PretrainResult:
    """Go on with the pretraining of an encoder on these messages, and write it, with what messages need, to `out`.

    Of each text so many words are hidden, and the model learns to say them (Devlin et al. 2019, section 3.1; whole
    words as in their later release; to do so on the messages of the task is task-adaptive pretraining, Gururangan et
    al. 2020); of each image patches, and it learns to paint them (Xie et al. 2022). The head that does so is new where
    the checkpoint has none, and is not kept. What the checkpoint has beside its encoder's layers, such as a pooler,
    stays as it was.

    An interrupt (SIGINT, SIGTERM) saves and raises KeyboardInterrupt; the next call with the same workspace goes on.

    Args:
        model: a Hugging Face checkpoint folder.
        texts: the messages.
        watched: messages that the loss is measured on and that are not learnt from.
        settings: the recipe's `pretrain` section.
        out: the folder to write; made if it is not there.
        workspace: the folder for checkpoints. It belongs to this model, these messages and settings alone.
        medium: what the messages are.
        max_length: tokens that a message is truncated to.
        seed: of the new head, the order of the messages, what is hidden, and dropout.
        trust_pickle: load pickled weights, which can run code.
        listener: hears of progress.

    Raises:
        ModelError: the encoder has no such head, its tokenizer no mask, or the checkpoint is damaged or unsafe.
        TrainingError: no epochs, messages of another kind, hardly any messages, or the loss is not a number.
    """
    from transformers import set_seed

    check_checkpoint(model, trust_pickle=trust_pickle, beside=medium.beside)
    if medium.name not in _HIDDEN:
        raise TrainingError(f"there is no pretraining on messages of kind {medium.name}", "leave out pretrain.epochs")
    if not settings.epochs:
        raise TrainingError("pretrain.epochs is 0: nothing is to be read", "set it, to 3 for instance")
    if len(texts) < _FEWEST or not watched:
        raise TrainingError(f"{len(texts)} messages are too few to pretrain on", "name more: -s data.unlabelled=FILE")
    workspace.mkdir(parents=True, exist_ok=True)
    if not is_main_process():
        listener = ignore
    with quiet_transformers():
        set_seed(seed)
        hidden = _HIDDEN[medium.name](model, settings, max_length=max_length, trust_pickle=trust_pickle)
        network = hidden.network
        as_training = Finetune(**settings.model_dump(include=set(Finetune.model_fields)), max_length=max_length)
        freeze(network, as_training)
        splits = {name: hidden.rows(found) for name, found in (("train", texts), ("watched", watched))}
        splits["watched"].sort(key=row_length)
        steps_per_epoch = math.ceil(len(splits["train"]) / (settings.batch_size * processes().num_processes))
        total = math.ceil(steps_per_epoch * settings.epochs)
        watch = watching(steps_per_epoch, total, "loss", "pretrain", listener)
        arguments = training_arguments(
            as_training, workspace, seed=seed, epochs=settings.epochs, total=total, smoothed_here=False, best="loss",
            report_to=[], run_name=None,
        )  # fmt: skip
        trainer = trainer_class(steps_per_epoch, Objective("logits"))(
            model=network,
            args=arguments,
            train_dataset=splits["train"],
            eval_dataset=splits["watched"],
            data_collator=hidden.collator(seed),
            processing_class=hidden.processor,
            callbacks=[watch],
        )
        _remove_printer(trainer)
        start = last_complete(workspace, listener)
        resumed_from = int(start.name.rpartition("-")[2]) if start else 0
        if start:
            listener(Note(f"going on from pretraining step {resumed_from} of {total}"))
        before = _loss(trainer, hidden, seed)
        with interrupts(watch), cheap_dropout() if on_cpu() else contextlib.nullcontext():
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        if watch.interrupted:
            raise KeyboardInterrupt
        after = _loss(trainer, hidden, seed)
        if not math.isfinite(after):
            raise TrainingError(f"the loss is not a number after step {trainer.state.global_step}", NAN_HINT)
        if trainer.is_world_process_zero():
            _save_encoder(hidden, out)
            keep_pooling(model, out)
    return PretrainResult(
        loss_before=before,
        loss=after,
        texts=len(texts),
        steps=trainer.state.global_step,
        curve=tuple((entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry),
        resumed_from=resumed_from,
        device=str(arguments.device),
        precision=precision_of(settings.precision),
    )


def _loss(trainer: Any, hidden: Hidden, seed: int) -> float:
    """The loss on the watched messages with the same parts hidden each time."""
    drawn = trainer.data_collator
    trainer.data_collator = hidden.collator(seed)
    try:
        return float(trainer.evaluate()["eval_loss"])
    finally:
        trainer.data_collator = drawn


def _save_encoder(hidden: Hidden, out: Path) -> None:
    """The checkpoint's encoder with the layers that were trained, and all else of it as it was."""
    encoder = hidden.encoder()
    encoder.load_state_dict(hidden.network.float().base_model.state_dict(), strict=False)
    for each in (encoder, hidden.processor):
        each.save_pretrained(out)


def _remove_printer(trainer: Any) -> None:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
