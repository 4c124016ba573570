"""Fine-tuning a pretrained model on labelled messages with the transformers Trainer."""

from __future__ import annotations

__all__ = ["FinetuneResult", "finetune"]

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deploykit.data.checks import no_better_than_one_answer
from deploykit.data.dataset import LabelledData
from deploykit.data.entries import Entries
from deploykit.data.spill import Gathering, taken
from deploykit.data.table import Table
from deploykit.errors import TrainingError
from deploykit.events import Listener, Note, Warn, ignore
from deploykit.recipe import Finetune
from deploykit.runners.medium import medium_of
from deploykit.runners.tokenize import max_length_from_folder
from deploykit.runners.untrusted import check_checkpoint
from deploykit.tasks import Task
from deploykit.tasks.base import Loss
from deploykit.tasks.pooling import pooled_by_mean
from deploykit.tasks.quiet import quiet_transformers
from deploykit.tasks.spans import PAIRS_KEY
from deploykit.train.arguments import precision_of, training_arguments
from deploykit.train.augment import labelled_copies
from deploykit.train.bias import begin_at_shares, move_head
from deploykit.train.checkpoints import last_complete
from deploykit.train.computing import computing
from deploykit.train.distill import with_teacher
from deploykit.train.heads import begin_with_regression
from deploykit.train.lesson import Lesson, taught, unlabelled_rows
from deploykit.train.objective import chosen_loss, objective_from_settings
from deploykit.train.prefix import learn_prefix
from deploykit.train.processes import is_main_process, processes
from deploykit.train.prompt import fold_prompt, learn_prompt
from deploykit.train.rows import Row, gathered_rows, padding_collator, row_length, training_rows
from deploykit.train.strategy import (
    ADAPTERS,
    Adapter,
    adapt,
    freeze,
    layer_rates,
    sharing_out,
    trained_shares,
    unfreezing,
)
from deploykit.train.towers import head_fitting, popularity_figures, tower_splits
from deploykit.train.tracking import Tracking, tracked
from deploykit.train.trainer import NAN_HINT, interrupts, trainer_class, watching
from deploykit.train.translate import back_translated


@dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning ended with.

    Attributes:
        metrics: every metric of the task on the validation split, fractions.
        steps: optimizer steps made.
        curve: (step, training loss) as logged.
        watched: (step, the task's metric on validation) at each epoch's end.
        trainable: parameters trained.
        parameters: parameters in all.
        resumed_from: the step that this call went on from, 0 for a fresh start.
        device: what it ran on.
        precision: what it computed in.
        warning: that nothing was learned; None where that does not show.
    """

    metrics: Mapping[str, float]
    steps: int
    curve: tuple[tuple[int, float], ...]
    watched: tuple[tuple[int, float], ...]
    trainable: int
    parameters: int
    resumed_from: int
    device: str
    precision: str
    warning: str | None = None


def finetune(
    model: Path,
    data: LabelledData,
    settings: Finetune,
    task: Task,
    out: Path,
    *,
    workspace: Path,
    seed: int = 0,
    trust_pickle: bool = False,
    entries: Entries | None = None,
    lesson: Lesson | None = None,
    tracking: Tracking | None = None,
    stage: str = "finetune",
    rounded_epochs: float = 0.0,
    listener: Listener = ignore,
) -> FinetuneResult:
    """Fine-tune the checkpoint in `model` and write the tuned one, with its tokenizer, to `out`.

    An interrupt (SIGINT, SIGTERM) ends the current step, saves a checkpoint in `workspace` and raises
    KeyboardInterrupt; the next call with the same workspace goes on from there.

    Args:
        model: a Hugging Face checkpoint folder.
        data: the labelled messages, split.
        settings: the recipe's `finetune` section.
        task: what the model learns.
        out: the folder to write; made if it is not there.
        workspace: the folder for checkpoints. It belongs to this model, data and these settings alone.
        seed: of the new head, the order of the data, and dropout.
        trust_pickle: load pickled weights, which can run code.
        entries: what messages are compared with, for the loss of two towers; their names are those of the data.
        lesson: learn from a teacher too: `settings.teacher`, or the whole model of one that is cut.
        tracking: what hears of the curves.
        stage: what progress is reported as.
        rounded_epochs: the last epochs, in which weights and activations are rounded as static int8 rounds them.
        listener: hears of progress.

    Raises:
        TrainingError: the loss or a metric is not a number, the message names the step; fp16 without a GPU; or settings
            that do not go together.
        ModelError: the checkpoint is damaged, unsafe or of the wrong kind.
    """
    from transformers import set_seed

    check_checkpoint(model, trust_pickle=trust_pickle, beside=medium_of(task).beside)
    # A cut model learns from the whole one whatever that was trained by.
    loss: Loss = "cross_entropy" if lesson is not None and settings.teacher is None else chosen_loss(settings, task)
    workspace.mkdir(parents=True, exist_ok=True)
    listener = listener if is_main_process() else ignore  # one of them speaks for all
    with quiet_transformers(), tracked(tracking) as report_to:
        set_seed(seed)
        tokenizer = medium_of(task).processor(model, settings.max_length)
        network = _network(model, data.label_names, settings, task, loss, trust_pickle=trust_pickle)
        tokenizer = _with_virtual_tokens(network, tokenizer, settings, data.label_names, model)
        splits = _splits(
            tokenizer, network, data, settings, task, seed, listener,
            partial(back_translated, data.train.texts, settings, seed=seed, workspace=workspace, listener=listener),
        )  # fmt: skip
        _begin_head(network, splits["train"], tokenizer, task, loss, seed, listener)
        splits |= tower_splits(splits["train"], tokenizer, network, data, task, entries, seed, loss)
        epochs = settings.epochs
        if lesson is not None:
            labelled = len(splits["train"])
            splits["train"] = [*splits["train"], *unlabelled_rows(lesson, tokenizer, network, task, splits["train"])]
            epochs *= labelled / len(splits["train"])
        steps_per_epoch = math.ceil(
            len(splits["train"]) / (settings.batch_size * settings.gradient_accumulation * processes().num_processes)
        )
        total = math.ceil(steps_per_epoch * epochs)
        adapter = adapt(network, settings, total) if settings.strategy in ADAPTERS else None
        watch = watching(steps_per_epoch, total, task.metric, stage, listener)
        collate: Any = padding_collator(tokenizer)
        distillation = None
        if lesson is not None:
            distillation = taught(lesson, splits["train"], task, collate, workspace, stage=stage, listener=listener)
            collate = with_teacher(collate, distillation.teacher)
            splits["train"] = [row | {"row": number} for number, row in enumerate(splits["train"])]
        objective = objective_from_settings(settings, task, splits["train"], data.label_names, loss)
        rates = layer_rates(network, settings)
        fitting = (
            None if loss == "cross_entropy" else head_fitting(network, splits, data, settings, task, collate, seed)
        )
        trainer = trainer_class(steps_per_epoch, objective, distillation, adapter, rates)(
            model=network,
            args=training_arguments(
                settings,
                workspace,
                seed=seed,
                epochs=epochs,
                total=total,
                smoothed_here=objective.plain,
                best="loss" if objective.sections else task.metric,  # a loss counts all that is decided on
                report_to=report_to,
                run_name=None if tracking is None else tracking.name,
            ),
            train_dataset=splits["train"],
            eval_dataset=splits["validation"],
            data_collator=collate,
            processing_class=tokenizer,
            compute_metrics=lambda prediction: dict(
                task.metrics(prediction.predictions, prediction.label_ids, data.label_names)
            ),
            callbacks=[
                watch,
                *([fitting.callback()] if fitting else ()),
                *_early_stopping(settings.early_stopping),
                *_steering(network, settings, adapter, total),
            ],
        )
        trainer.remove_callback(_printer())
        start = None if adapter is not None and adapter.adaptive else last_complete(workspace, listener)
        resumed_from = int(start.name.rpartition("-")[2]) if start else 0
        if start:
            listener(Note(f"going on from training step {resumed_from} of {total}"))
        if total:
            alone = distillation is not None and not distillation.hidden_weight
            with (
                interrupts(watch),
                computing(trainer, network, settings, total, rounded_epochs, task.output if alone else None),
            ):
                trainer.train(resume_from_checkpoint=str(start) if start else None)
        if watch.interrupted:
            raise KeyboardInterrupt
        if fitting:
            fitting.finish()
        metrics = {
            **_final_metrics(trainer, network, splits["validation"], task, data.label_names),
            **popularity_figures(fitting, splits["validation"], task, data.label_names),
        }
        trainable, count = trained_shares(list(network.parameters()))
        _save(trainer, network if adapter is None else adapter.merged(), tokenizer, out, settings)
    return FinetuneResult(
        metrics=metrics,
        steps=trainer.state.global_step,
        curve=_logged(trainer, "loss"),
        watched=_logged(trainer, f"eval_{task.metric}"),
        trainable=trainable,
        parameters=count,
        resumed_from=resumed_from,
        device=str(trainer.args.device),
        precision=precision_of(settings.precision),
        warning=_told(no_better_than_one_answer(data.validation, task.metric, metrics[task.metric]), listener),
    )


def _told(warning: str | None, listener: Listener) -> str | None:
    if warning is not None:
        listener(Warn(warning))
    return warning


def _save(trainer: Any, network: Any, tokenizer: Any, out: Path, settings: Finetune) -> None:
    if settings.learns_prompt:
        fold_prompt(network)
    if trainer.is_world_process_zero():
        for part in (network.float(), tokenizer):
            part.save_pretrained(out)


_DROPOUTS = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "dropout",
    "hidden_dropout_prob",
    "seq_classif_dropout",
)


def _splits(
    tokenizer: Any, network: Any, data: LabelledData, settings: Finetune, task: Task, seed: int,
    listener: Listener, translated: Callable[[int], Sequence[str]],
) -> dict[str, Sequence[Row]]:  # fmt: skip
    """The rows to train on, behind them their altered copies, and those to watch; says where contexts are cut."""

    def gathered(table: Table) -> Gathering[Row]:
        found = gathered_rows()
        found.extend(training_rows(tokenizer, network, table.texts, task, table.labels or (), data.label_names))
        return found

    train, watched = gathered(data.train), gathered(data.validation).done()
    longest = getattr(tokenizer, "model_max_length", 0)
    if getattr(network.config, PAIRS_KEY, False):
        cut = sum(row_length(row) >= longest for row in train.done())
        if cut:
            listener(
                Note(f"{cut:,} contexts fill all {longest} tokens of finetune.max_length: what is behind is not read")
            )
    if settings.augment:
        train.extend(labelled_copies(train.done(), data, settings, task, tokenizer, network, seed, translated))
    order = sorted(range(len(watched)), key=[row_length(row) for row in watched].__getitem__)
    return {"train": train.done(), "validation": taken(watched, order)}  # batches of like lengths pad little


def _network(
    model: Path, labels: Sequence[str], settings: Finetune, task: Task, loss: Loss, *, trust_pickle: bool
) -> Any:
    """The model with a head for these labels, and what is not to be trained frozen."""
    import torch

    network = task.load_model(
        model,
        labels,
        attn_implementation=settings.attention,
        use_safetensors=None if trust_pickle else True,
        dtype=torch.float32,  # master weights; autocast computes in `precision`
        **_dropout(model, settings.dropout),
        **({"pooling": "mean"} if _reads_mean(model, settings, task, loss) else {}),
    )
    freeze(network, settings)
    if loss != "cross_entropy" or task.entries:
        network.classifier.requires_grad_(False)  # it is fitted, and entries stay those of the whole model
    return network


def _begin_head(
    network: Any, rows: Sequence[Row], tokenizer: Any, task: Task, loss: Loss, seed: int, listener: Listener
) -> None:
    """Let a new head begin with what is known before any training."""
    if task.several:
        begin_at_shares(network, rows)
    elif loss == "cross_entropy":
        fitted = begin_with_regression(network, rows, padding_collator(tokenizer), task, seed)
        if fitted:
            listener(Note(f"the head reads the mean of the tokens, and begins as a regression on {fitted:,} messages"))


def _reads_mean(model: Path, settings: Finetune, task: Task, loss: Loss) -> bool:
    """Whether the head is to read the mean of the tokens."""
    if loss != "cross_entropy":
        return True
    wanted = settings.pooling == "mean" or (settings.pooling == "auto" and pooled_by_mean(model))
    return wanted and "contrastive" in task.losses


def _with_virtual_tokens(network: Any, tokenizer: Any, settings: Finetune, labels: Sequence[str], model: Path) -> Any:
    """The tokenizer of a network that has been given a prompt or a prefix to learn, where the strategy is such."""
    if settings.learns_prompt:
        return learn_prompt(network, tokenizer, settings, labels, max_length_from_folder(model))
    if settings.strategy == "prefix":
        learn_prefix(network, tokenizer, settings, labels, max_length_from_folder(model))
    return tokenizer


def _final_metrics(trainer: Any, network: Any, validation: Any, task: Task, names: Sequence[str]) -> dict[str, float]:
    """The loss and every metric of the task on the validation split, the head moved to where 0 decides."""
    prediction = trainer.predict(validation)
    metrics = {"loss": float(prediction.metrics["test_loss"])}
    shift = task.shift(prediction.predictions, prediction.label_ids)
    if shift:
        move_head(network, shift, len(names))
    metrics |= task.metrics(prediction.predictions - shift, prediction.label_ids, names)
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingError(f"{name} is not a number after step {trainer.state.global_step}", NAN_HINT)
    return metrics


def _logged(trainer: Any, name: str) -> tuple[tuple[int, float], ...]:
    return tuple((entry["step"], entry[name]) for entry in trainer.state.log_history if name in entry)


def _dropout(model: Path, dropout: float | None) -> dict[str, float]:
    """The config keys of a model's dropout that it has, set to `dropout`."""
    if dropout is None:
        return {}
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    return {key: dropout for key in _DROPOUTS if hasattr(config, key)}


def _steering(network: Any, settings: Finetune, adapter: Adapter | None, total: int) -> list[Any]:
    """The callbacks of what is trained when."""
    if adapter is not None and adapter.adaptive:
        return [sharing_out(adapter)]
    if settings.strategy == "gradual":
        if processes().num_processes > 1:
            raise TrainingError("finetune.strategy=gradual runs in one process", "train without torchrun")
        return [unfreezing(network, settings, total)]
    return []


def _printer() -> Any:
    from transformers import PrinterCallback

    return PrinterCallback


def _early_stopping(patience: int | None) -> list[Any]:
    from transformers import EarlyStoppingCallback

    return [] if patience is None else [EarlyStoppingCallback(early_stopping_patience=patience)]
