"""Continued masked-language pretraining: the encoder learns to fill in words of unlabelled messages."""

from __future__ import annotations

__all__ = ["PretrainResult", "check_pretrainable", "masking_collator", "pretrain"]

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.errors import ModelError, TrainingError
from deploykit.events import Listener, Note, ignore
from deploykit.recipe import Finetune, Pretrain
from deploykit.runners.texts import fast_tokenizer
from deploykit.runners.untrusted import check_checkpoint
from deploykit.tasks.pruned import PLAN_KEY
from deploykit.tasks.quiet import quiet_transformers
from deploykit.train.arguments import precision_of, training_arguments
from deploykit.train.checkpoints import last_complete
from deploykit.train.dropout import cheap_dropout
from deploykit.train.objective import Objective
from deploykit.train.processes import is_main_process, on_cpu, processes
from deploykit.train.rows import NO_LABEL, Row
from deploykit.train.strategy import freeze
from deploykit.train.trainer import NAN_HINT, interrupts, trainer_class, watching

_FEWEST = 2
_SHOWN, _RANDOM = 0.8, 0.1
"""Of the chosen tokens: those that show as the mask, and those that show as another token; the rest stay."""


@dataclass(frozen=True)
class PretrainResult:
    """What a pretraining ended with.

    Attributes:
        loss_before: mean cross entropy of the masked tokens of the watched messages, in nats, of the new head.
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


def check_pretrainable(folder: Path) -> None:
    """Refuse a checkpoint that has no masked-language head in transformers, from its config.json alone.

    Raises:
        ModelError: says why.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    kind, hint = config.model_type, "leave out pretrain.epochs, or use an encoder of the BERT kind"
    if kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{folder}: transformers has no masked-language head for an encoder of kind {kind}", hint)
    if getattr(config, PLAN_KEY, None) is not None:
        raise ModelError(
            f"{folder} is pruned, and pretraining is for the whole encoder", "pretrain what it was cut from"
        )


def pretrain(
    model: Path,
    texts: Sequence[str],
    watched: Sequence[str],
    settings: Pretrain,
    out: Path,
    *,
    workspace: Path,
    max_length: int = 128,
    seed: int = 0,
    trust_pickle: bool = False,
    listener: Listener = ignore,
) -> PretrainResult:
    """Go on with the pretraining of an encoder on these messages, and write the encoder, with its tokenizer, to `out`.

    Of each message so many words are hidden, and the model learns to say them (Devlin et al. 2019, section 3.1; whole
    words as in their later release; to do so on the messages of the task is task-adaptive pretraining, Gururangan et
    al. 2020). The head that says them is new where the checkpoint has none, and is not kept. What the checkpoint has
    beside its encoder's layers, such as a pooler, stays as it was.

    An interrupt (SIGINT, SIGTERM) saves and raises KeyboardInterrupt; the next call with the same workspace goes on.

    Args:
        model: a Hugging Face checkpoint folder.
        texts: the messages.
        watched: messages that the loss is measured on and that are not learnt from.
        settings: the recipe's `pretrain` section.
        out: the folder to write; made if it is not there.
        workspace: the folder for checkpoints. It belongs to this model, these messages and settings alone.
        max_length: tokens that a message is truncated to.
        seed: of the new head, the order of the messages, what is hidden, and dropout.
        trust_pickle: load pickled weights, which can run code.
        listener: hears of progress.

    Raises:
        ModelError: the encoder has no such head, its tokenizer no mask, or the checkpoint is damaged or unsafe.
        TrainingError: no epochs, hardly any messages, or the loss is not a number.
    """
    from transformers import set_seed

    check_checkpoint(model, trust_pickle=trust_pickle)
    check_pretrainable(model)
    if not settings.epochs:
        raise TrainingError("pretrain.epochs is 0: nothing is to be read", "set it, to 3 for instance")
    if len(texts) < _FEWEST or not watched:
        raise TrainingError(f"{len(texts)} messages are too few to pretrain on", "name more: -s data.unlabelled=FILE")
    workspace.mkdir(parents=True, exist_ok=True)
    if not is_main_process():
        listener = ignore
    with quiet_transformers():
        set_seed(seed)
        tokenizer = fast_tokenizer(model, max_length)
        if tokenizer.mask_token_id is None or not tokenizer.is_fast:
            raise ModelError(
                f"{model}: its tokenizer has no mask token" if tokenizer.is_fast else f"{model} has no fast tokenizer",
                "leave out pretrain.epochs, or use an encoder of the BERT kind",
            )
        network = _network(model, trust_pickle=trust_pickle)
        as_training = Finetune(**settings.model_dump(include=set(Finetune.model_fields)), max_length=max_length)
        freeze(network, as_training)
        splits = {name: _rows(tokenizer, network, found) for name, found in (("train", texts), ("watched", watched))}
        splits["watched"].sort(key=lambda row: len(row["input_ids"]))
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
            data_collator=masking_collator(tokenizer, settings.masked, seed, whole_words=settings.whole_words),
            processing_class=tokenizer,
            callbacks=[watch],
        )
        _remove_printer(trainer)
        start = last_complete(workspace, listener)
        resumed_from = int(start.name.rpartition("-")[2]) if start else 0
        if start:
            listener(Note(f"going on from pretraining step {resumed_from} of {total}"))
        before = _loss(trainer, tokenizer, settings, seed)
        with interrupts(watch), cheap_dropout() if on_cpu() else contextlib.nullcontext():
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        if watch.interrupted:
            raise KeyboardInterrupt
        after = _loss(trainer, tokenizer, settings, seed)
        if not math.isfinite(after):
            raise TrainingError(f"the loss is not a number after step {trainer.state.global_step}", NAN_HINT)
        if trainer.is_world_process_zero():
            _save_encoder(model, network, tokenizer, out, trust_pickle=trust_pickle)
    return PretrainResult(
        loss_before=before,
        loss=after,
        texts=len(texts),
        steps=trainer.state.global_step,
        curve=tuple((entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry),
        resumed_from=resumed_from,
        device=str(arguments.device),
        precision=precision_of("auto"),
    )


def masking_collator(
    tokenizer: Any, share: float, seed: int, *, whole_words: bool = True
) -> Callable[[Sequence[Row]], Any]:
    """Rows as one batch in which words, or tokens, are hidden; `labels` are theirs, and `NO_LABEL` elsewhere.

    At least one word of a message is hidden. Four in five tokens of it show as the mask, one in ten as any token, one
    in ten as what they are.

    Args:
        tokenizer: the model's.
        share: of the words that are hidden.
        seed: of what is hidden, where no epoch has drawn before.
        whole_words: hide all pieces of a word together.
    """
    import torch
    from transformers import DataCollatorWithPadding

    pad = DataCollatorWithPadding(tokenizer)
    generator = torch.Generator().manual_seed(seed)
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    ordinary = torch.tensor([each for each in range(len(tokenizer)) if each not in set(special.tolist())])

    def collate(rows: Sequence[Row]) -> Any:
        batch = pad([{name: value for name, value in row.items() if name != "words"} for row in rows])
        ids = batch["input_ids"]
        labels = torch.full_like(ids, NO_LABEL)
        for number, row in enumerate(rows):
            words = torch.tensor(row["words"])
            if not whole_words:
                words = torch.where(words >= 0, torch.arange(len(words)), words)
            there = torch.tensor(sorted({*words.tolist()} - {-1}))
            if not len(there):
                continue
            drawn = torch.rand(len(there), generator=generator)
            hidden = there[(drawn < share) | (drawn == drawn.min())]
            chosen = torch.isin(words, hidden).nonzero().squeeze(1)
            labels[number, chosen] = ids[number, chosen]
            how = torch.rand(len(chosen), generator=generator)
            other = ordinary[torch.randint(len(ordinary), (len(chosen),), generator=generator)]
            shown = torch.where(how < _SHOWN, tokenizer.mask_token_id, ids[number, chosen])
            ids[number, chosen] = torch.where(how >= 1 - _RANDOM, other, shown)
        batch["labels"] = labels
        return batch

    return collate


def _rows(tokenizer: Any, network: Any, texts: Sequence[str]) -> list[Row]:
    """What the model takes of each message, and `words`: the word of each token, -1 for none."""
    import inspect

    encoded = tokenizer(list(texts), truncation=True, padding=False)
    taken = inspect.signature(network.forward).parameters
    return [
        {name: values[row] for name, values in encoded.items() if name in taken}
        | {"words": [-1 if word is None else word for word in encoded.word_ids(row)]}
        for row in range(len(texts))
    ]


def _network(model: Path, *, trust_pickle: bool) -> Any:
    """The encoder with a masked-language head."""
    import torch
    from transformers import AutoModelForMaskedLM

    try:
        return AutoModelForMaskedLM.from_pretrained(
            model, dtype=torch.float32, trust_remote_code=False, use_safetensors=None if trust_pickle else True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"transformers can't load {model} for pretraining: {reason}", "check its config.json and weights"
        ) from error


def _loss(trainer: Any, tokenizer: Any, settings: Pretrain, seed: int) -> float:
    """The loss on the watched messages with the same words hidden each time."""
    drawn = trainer.data_collator
    trainer.data_collator = masking_collator(tokenizer, settings.masked, seed, whole_words=settings.whole_words)
    try:
        return float(trainer.evaluate()["eval_loss"])
    finally:
        trainer.data_collator = drawn


def _save_encoder(model: Path, network: Any, tokenizer: Any, out: Path, *, trust_pickle: bool) -> None:
    """The checkpoint's encoder with the layers that were trained, and all else of it as it was."""
    import torch
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(
        model, dtype=torch.float32, trust_remote_code=False, use_safetensors=None if trust_pickle else True
    )
    encoder.load_state_dict(network.float().base_model.state_dict(), strict=False)
    for each in (encoder, tokenizer):
        each.save_pretrained(out)


def _remove_printer(trainer: Any) -> None:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
