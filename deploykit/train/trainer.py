"""The transformers Trainer as used here: it watches its loss, orders each epoch by its seed, and stops when told."""

from __future__ import annotations

__all__ = ["NAN_HINT", "interrupts", "trainer_class", "watching"]

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploykit.errors import TrainingError
from deploykit.events import Listener, Progress
from deploykit.train.checkpoints import seal
from deploykit.train.contrastive import PairSampler
from deploykit.train.distill import Distillation, distillation_loss
from deploykit.train.objective import Objective
from deploykit.train.rows import row_length
from deploykit.train.strategy import Adapter
from deploykit.train.towers import TowerSampler

NAN_HINT = "lower the learning_rate of this training, or compute in precision fp32"
_SAVE_EVERY_S = 60.0
"""Seconds of training between two checkpoints at least, so that a kill loses little and saving costs little."""


def trainer_class(
    steps_per_epoch: int,
    objective: Objective,
    distillation: Distillation | None = None,
    adapter: Adapter | None = None,
    rates: Sequence[Mapping[str, Any]] | None = None,
) -> Any:
    """The Trainer, that stops at the first loss that is not a number, and orders each epoch by seed and epoch alone.

    Args:
        steps_per_epoch: of the optimizer.
        objective: what a batch costs.
        distillation: what to learn from a teacher, in place of it.
        adapter: what is trained beside the model.
        rates: the optimizer's groups; None leaves them to the Trainer.
    """
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
                raise TrainingError(f"the loss is not a number at step {self.state.global_step + 1}", NAN_HINT)
            return loss

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            if distillation is not None and "teacher_logits" in inputs:
                student = {key: value for key, value in inputs.items() if not key.startswith(("teacher_", "labels"))}
                outputs = model(**student, output_hidden_states=bool(distillation.hidden_weight))
                loss = distillation_loss(outputs, inputs, objective.output, distillation, objective.sections)
            elif objective.plain:
                loss, outputs = super().compute_loss(model, inputs, True, **kwargs)
            else:
                loss, outputs = objective.loss(model, inputs)
            if adapter is not None and adapter.penalty_weight and model.training:
                loss = loss + adapter.penalty()
            return (loss, outputs) if return_outputs else loss

        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            if rates is None or getattr(self, "optimizer", None) is not None:
                return super().create_optimizer(*args, **kwargs)
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind([dict(group) for group in rates], **settings)
            return self.optimizer

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
            if objective.temperature is not None:
                size = self.args.train_batch_size * self.args.gradient_accumulation_steps
                sampler = TowerSampler if objective.towers else PairSampler
                return sampler(data, size, lambda: self.args.seed + self.state.global_step // steps_per_epoch)
            size = self.args.train_batch_size * self.args.gradient_accumulation_steps
            return EpochSampler(size, dataset=data, lengths=[row_length(row) for row in data])

    return WatchfulTrainer


def watching(steps_per_epoch: int, total: int, metric: str, stage: str, listener: Listener) -> Any:
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
def interrupts(watch: Any) -> Iterator[None]:
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
