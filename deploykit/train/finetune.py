"""Fine-tuning a pretrained model on labelled messages with the transformers Trainer."""

from __future__ import annotations

__all__ = ["FinetuneResult", "Lesson", "finetune", "is_main_process"]

import contextlib
import importlib.util
import inspect
import math
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.artifacts.digest import digest_json, digest_tree
from deploykit.data.dataset import LabelledData
from deploykit.errors import MissingDependencyError, TrainingError
from deploykit.events import Listener, Note, Progress, ignore
from deploykit.recipe import Finetune
from deploykit.runners.tokenize import max_length_from_folder
from deploykit.runners.untrusted import check_checkpoint
from deploykit.tasks import Task
from deploykit.tasks.quiet import quiet_transformers
from deploykit.train.checkpoints import last_complete, seal
from deploykit.train.distill import Distillation, distillation_loss, teach, with_teacher
from deploykit.train.dropout import cheap_dropout

_SAVE_EVERY_S = 60.0
"""Seconds of training between two checkpoints at least, so that a kill loses little and saving costs little."""


@dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning ended with.

    Attributes:
        metrics: every metric of the task on the validation split, fractions.
        steps: optimizer steps made.
        curve: (step, training loss) as logged.
        trainable: parameters trained.
        parameters: parameters in all.
        resumed_from: the step that this call went on from, 0 for a fresh start.
        device: what it ran on.
        precision: what it computed in.
    """

    metrics: Mapping[str, float]
    steps: int
    curve: tuple[tuple[int, float], ...]
    trainable: int
    parameters: int
    resumed_from: int
    device: str
    precision: str


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
    lesson: Lesson | None = None,
    stage: str = "finetune",
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
        lesson: learn from a teacher too.
        stage: what progress is reported as.
        listener: hears of progress.

    Raises:
        TrainingError: the loss or a metric is not a number, the message names the step; or fp16 without a GPU.
        ModelError: the checkpoint is damaged, unsafe or of the wrong kind.
    """
    from transformers import DataCollatorWithPadding, set_seed

    check_checkpoint(model, trust_pickle=trust_pickle)
    workspace.mkdir(parents=True, exist_ok=True)
    if not is_main_process():
        listener = ignore  # one of them speaks for all
    with quiet_transformers():
        set_seed(seed)
        tokenizer = _tokenizer(model, settings.max_length)
        network = _network(model, data.label_names, settings, task, trust_pickle=trust_pickle)
        splits = {
            name: _features(tokenizer, network, table.texts, task.targets(table.labels or (), data.label_names))
            for name, table in (("train", data.train), ("validation", data.validation))
        }
        splits["validation"].sort(key=lambda row: len(row["input_ids"]))  # batches of like lengths pad little
        epochs = settings.epochs
        if lesson is not None:
            labelled = len(splits["train"])
            splits["train"] += _unlabelled(lesson, tokenizer, network, splits["train"])
            epochs *= labelled / len(splits["train"])
        steps_per_epoch = math.ceil(
            len(splits["train"]) / (settings.batch_size * settings.gradient_accumulation * _processes().num_processes)
        )
        total = math.ceil(steps_per_epoch * epochs)
        watch = _watch(steps_per_epoch, total, task.metric, stage, listener)
        collate: Any = DataCollatorWithPadding(tokenizer)
        distillation = None
        if lesson is not None:
            distillation = _taught(lesson, splits["train"], task, collate, workspace, listener)
            collate = with_teacher(collate, distillation.teacher)
            splits["train"] = [row | {"row": number} for number, row in enumerate(splits["train"])]
        trainer = _trainer_class(steps_per_epoch, task.output, distillation)(
            model=network,
            args=_arguments(settings, task, workspace, seed=seed, epochs=epochs, total=total),
            train_dataset=splits["train"],
            eval_dataset=splits["validation"],
            data_collator=collate,
            processing_class=tokenizer,
            compute_metrics=lambda prediction: dict(
                task.metrics({task.output: prediction.predictions}, prediction.label_ids)
            ),
            callbacks=[watch, *_early_stopping(settings.early_stopping)],
        )
        trainer.remove_callback(_printer())
        start = last_complete(workspace, listener)
        resumed_from = int(start.name.rpartition("-")[2]) if start else 0
        if start:
            listener(Note(f"going on from training step {resumed_from} of {total}"))
        # Recomputed activations would meet the usual dropout: a function mode is not open within backward().
        cheap = _on_cpu() and not settings.gradient_checkpointing
        with _interrupts(watch), cheap_dropout() if cheap else contextlib.nullcontext():
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        if watch.interrupted:
            raise KeyboardInterrupt
        metrics = _final_metrics(trainer, splits["validation"], task)
        if trainer.is_world_process_zero():
            out.mkdir(parents=True, exist_ok=True)
            network.float().save_pretrained(out)
            tokenizer.save_pretrained(out)
    parameters = list(network.parameters())
    return FinetuneResult(
        metrics=metrics,
        steps=trainer.state.global_step,
        curve=tuple((entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry),
        trainable=sum(value.numel() for value in parameters if value.requires_grad),
        parameters=sum(value.numel() for value in parameters),
        resumed_from=resumed_from,
        device=str(trainer.args.device),
        precision=_precision(settings.precision),
    )


@dataclass(frozen=True)
class Lesson:
    """A teacher, and how to learn from it.

    Attributes:
        teacher: the checkpoint folder of a model of the same task, labels and tokenizer.
        temperature: that softens the logits.
        soft_weight: of the teacher's answers; the labels have the rest of 1.
        hidden_weight: of its last hidden states, which must be as wide; 0 leaves them out.
        cache: the folder to keep its answers in; the workspace unless told.
        unlabelled: messages that only the teacher answers. With them an epoch still is as many rows as have labels.
        copies: altered copies of each row, labelled and not, that only the teacher answers.
        seed: of the copies.
    """

    teacher: Path
    temperature: float = 2.0
    soft_weight: float = 0.9
    hidden_weight: float = 5.0
    cache: Path | None = None
    unlabelled: Sequence[str] = ()
    copies: int = 0
    seed: int = 0


def is_main_process() -> bool:
    """Whether this process is the one that writes; under `torchrun` several train together."""
    return bool(_processes().is_main_process)


_DROPOUTS = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "dropout",
    "hidden_dropout_prob",
    "seq_classif_dropout",
)
_NAN_HINT = "lower finetune.learning_rate, or use finetune.precision=fp32"


def _tokenizer(model: Path, max_length: int) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, use_fast=True, trust_remote_code=False)
    tokenizer.model_max_length = min(max_length, max_length_from_folder(model))
    tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
    return tokenizer


def _network(model: Path, labels: Sequence[str], settings: Finetune, task: Task, *, trust_pickle: bool) -> Any:
    """The model with a head for these labels, and what is not to be trained frozen."""
    import torch

    network = task.load_model(
        model,
        labels,
        attn_implementation=settings.attention,
        use_safetensors=None if trust_pickle else True,
        dtype=torch.float32,  # master weights; autocast computes in `precision`
        **_dropout(model, settings.dropout),
    )
    _freeze(network, settings)
    return network


def _arguments(settings: Finetune, task: Task, workspace: Path, *, seed: int, epochs: float, total: int) -> Any:
    import torch
    from transformers import TrainingArguments

    precision = _precision(settings.precision)
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
        label_smoothing_factor=settings.label_smoothing,
        optim=_optimizer(settings.optimizer),
        bf16=precision == "bf16",
        use_cpu=_on_cpu(),  # else bf16 is taken for a mistake there, and torchrun's processes train each alone
        fp16=precision == "fp16",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=3 if stops_early else 2,  # the newest, one that is complete in any case, and the best
        load_best_model_at_end=stops_early,
        metric_for_best_model=task.metric if stops_early else None,
        greater_is_better=True if stops_early else None,
        restore_callback_states_from_checkpoint=True,  # how long early stopping has been waiting
        logging_steps=10,
        logging_nan_inf_filter=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,  # the collator takes a row's number; `_features` has removed the others
        report_to=[],
        seed=seed,
        **checkpointing,
    )


def _taught(lesson: Lesson, rows: Any, task: Task, pad: Any, workspace: Path, listener: Listener) -> Distillation:
    import torch

    check_checkpoint(lesson.teacher)
    model = task.load_model(lesson.teacher, attn_implementation="sdpa", dtype=torch.float32)
    identity = digest_json(dict(digest_tree(lesson.teacher)))
    device = "cpu" if _on_cpu() else _processes().device
    folder = lesson.cache or workspace
    folder.mkdir(parents=True, exist_ok=True)
    teacher = teach(model.to(device), rows, task.output, pad, folder, identity=identity, listener=listener)
    return Distillation(teacher, lesson.temperature, lesson.soft_weight, lesson.hidden_weight)


def _unlabelled(
    lesson: Lesson, tokenizer: Any, network: Any, rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Rows that only the teacher answers: messages without labels, and altered copies of all."""
    none = [_NO_LABEL] * len(lesson.unlabelled)
    found = _features(tokenizer, network, lesson.unlabelled, none) if none else []
    if lesson.copies:
        from deploykit.train.augment import altered_rows, nearest_pieces

        plain = [list(row["input_ids"]) for row in (*rows, *found)]
        used = sorted({piece for row in plain for piece in row})
        nearest = nearest_pieces(network.get_input_embeddings().weight.detach(), used, tokenizer.all_special_ids)
        names = [name for name in rows[0] if name not in ("input_ids", "attention_mask", "labels")]
        for ids in altered_rows(plain, nearest, lesson.copies, lesson.seed):
            row: dict[str, Any] = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": _NO_LABEL}
            found.append(row | {name: [0] * len(ids) for name in names})
    return found


_NO_LABEL = -100
"""What PyTorch's cross entropy leaves out."""


def _final_metrics(trainer: Any, validation: Any, task: Task) -> dict[str, float]:
    """The loss and every metric of the task on the validation split."""
    prediction = trainer.predict(validation)
    metrics = {"loss": float(prediction.metrics["test_loss"])}
    metrics |= task.metrics({task.output: prediction.predictions}, prediction.label_ids)
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingError(f"{name} is not a number after step {trainer.state.global_step}", _NAN_HINT)
    return metrics


def _features(tokenizer: Any, network: Any, texts: Sequence[str], targets: Any) -> list[dict[str, Any]]:
    """Rows of what the model takes; a tokenizer may give more (token types to DistilBERT)."""
    encoded = tokenizer(list(texts), truncation=True, padding=False)
    taken = inspect.signature(network.forward).parameters
    return [
        {name: values[row] for name, values in encoded.items() if name in taken} | {"labels": int(targets[row])}
        for row in range(len(texts))
    ]


def _precision(asked: str) -> str:
    import torch

    if asked == "fp16" and not torch.cuda.is_available():
        raise TrainingError("finetune.precision=fp16 needs a GPU", "use auto, fp32 or bf16")
    if asked != "auto":
        return asked
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def _optimizer(name: str) -> str:
    if name == "adamw":
        return "adamw_torch_fused"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError("finetune.optimizer=adamw_8bit needs bitsandbytes", "pip install 'deploykit[gpu]'")
    return "adamw_bnb_8bit"


def _dropout(model: Path, dropout: float | None) -> dict[str, float]:
    """The config keys of a model's dropout that it has, set to `dropout`."""
    if dropout is None:
        return {}
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    return {key: dropout for key in _DROPOUTS if hasattr(config, key)}


def _freeze(network: Any, settings: Finetune) -> None:
    """Freeze what is not to be trained: all but the head, or the embeddings, whose dense gradient costs most."""
    if settings.strategy == "head":
        for value in network.base_model.parameters():
            value.requires_grad = False
    elif settings.freeze_embeddings:
        for value in getattr(network.base_model, "embeddings", network.get_input_embeddings()).parameters():
            value.requires_grad = False


def _processes() -> Any:
    """The processes that train together: accelerate's view, which counts those on CPUs only where it is told to."""
    from accelerate import PartialState

    return PartialState(cpu=_on_cpu())


def _on_cpu() -> bool:
    import torch

    return not torch.accelerator.is_available()


def _printer() -> Any:
    from transformers import PrinterCallback

    return PrinterCallback


def _early_stopping(patience: int | None) -> list[Any]:
    from transformers import EarlyStoppingCallback

    return [] if patience is None else [EarlyStoppingCallback(early_stopping_patience=patience)]


def _trainer_class(steps_per_epoch: int, output: str, distillation: Distillation | None) -> Any:
    """The Trainer, that stops at the first loss that is not a number, and orders each epoch by seed and epoch alone."""
    import torch
    from transformers import Trainer
    from transformers.trainer_pt_utils import LengthGroupedSampler

    class WatchfulTrainer(Trainer):  # type: ignore[misc]
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            # A classifier takes the number of items and divides by its own batch all the same: accumulated gradients
            # came out as a sum (transformers 5.23). Without it the Trainer divides.
            self.model_accepts_loss_kwargs = False

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss: torch.Tensor = super().training_step(*args, **kwargs)
            # On a GPU, looking at the loss waits for it: look where it is logged anyway.
            look = loss.device.type == "cpu" or self.state.global_step % self.args.logging_steps == 0
            if look and not torch.isfinite(loss).all():
                raise TrainingError(f"the loss is not a number at step {self.state.global_step + 1}", _NAN_HINT)
            return loss

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            if distillation is None or "teacher_logits" not in inputs:
                return super().compute_loss(model, inputs, return_outputs, **kwargs)
            student = {key: value for key, value in inputs.items() if not key.startswith(("teacher_", "labels"))}
            outputs = model(**student, output_hidden_states=bool(distillation.hidden_weight))
            loss = distillation_loss(outputs, inputs, output, distillation)
            return (loss, outputs) if return_outputs else loss

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            trainer = self

            class EpochSampler(LengthGroupedSampler):  # type: ignore[misc]
                # The library's own draws from the global generator: a run resumed within an epoch would go on in
                # another order, with messages twice and messages never.
                def __iter__(self) -> Iterator[int]:
                    epoch = trainer.state.global_step // steps_per_epoch
                    self.generator = torch.Generator().manual_seed(trainer.args.seed + epoch)
                    order: Iterator[int] = super().__iter__()
                    return order

            data = self.train_dataset if train_dataset is None else train_dataset
            return EpochSampler(self.args.train_batch_size * self.args.gradient_accumulation_steps, dataset=data)

    return WatchfulTrainer


def _watch(steps_per_epoch: int, total: int, metric: str, stage: str, listener: Listener) -> Any:
    """The callback that reports progress, seals checkpoints, saves now and then, and stops when interrupted."""
    import time

    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        interrupted = False

        def __init__(self) -> None:
            self.figures: dict[str, float] = {}
            self.saved_at = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            listener(Progress(stage, state.global_step, total, "step", dict(self.figures)))
            due = time.monotonic() - self.saved_at > _SAVE_EVERY_S
            stop, due = _agreed(self.interrupted, due, args, state)
            # At the end of an epoch it is evaluated and saved in any case.
            control.should_save = (stop or due) and not self._at_epoch_end(state)
            if stop:
                self.interrupted = control.should_training_stop = True

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.interrupted and not self._at_epoch_end(state):
                control.should_evaluate = control.should_save = False

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            names = {"loss": "loss", f"eval_{metric}": f"val_{metric}", "eval_loss": "val_loss"}
            self.figures |= {names[name]: float(value) for name, value in (logs or {}).items() if name in names}

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.saved_at = time.monotonic()
            if state.is_world_process_zero:
                seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

        def _at_epoch_end(self, state: Any) -> bool:
            return bool(state.global_step % steps_per_epoch == 0 or state.global_step == total)

    return Watch()


def _agreed(stop: bool, save: bool, args: Any, state: Any) -> tuple[bool, bool]:
    """What any process wants, the same in all of them: one that stops or saves alone leaves the others waiting.

    Several processes ask each other only now and then, since the answer waits for the GPU.
    """
    import torch

    if args.world_size == 1:
        return stop, save
    if state.global_step % args.logging_steps:
        return False, False
    wishes = torch.tensor([stop, save], dtype=torch.int32, device=args.device)
    torch.distributed.all_reduce(wishes, op=torch.distributed.ReduceOp.MAX)
    return bool(wishes[0]), bool(wishes[1])


@contextlib.contextmanager
def _interrupts(watch: Any) -> Iterator[None]:
    """SIGINT and SIGTERM end the current step and save; a second one interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        if watch.interrupted:
            raise KeyboardInterrupt
        watch.interrupted = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
