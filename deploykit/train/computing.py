"""How a model computes while it is trained: what its training may leave out, and what it has to feel."""

from __future__ import annotations

__all__ = ["computing"]

import contextlib
from collections.abc import Iterator
from typing import Any

from deploykit.recipe import Finetune
from deploykit.train.dropout import cheap_dropout
from deploykit.train.first_token import first_token_only
from deploykit.train.processes import on_cpu
from deploykit.train.rounding import first_rounded_step, int8_rounding


@contextlib.contextmanager
def computing(
    trainer: Any, network: Any, settings: Finetune, total: int, rounded_epochs: float, logits: str | None
) -> Iterator[None]:
    """How the model computes while it is trained.

    With cheap dropout; in the last epochs rounded where asked; and where it learns from its `logits` alone, without
    what these don't depend on.
    """
    # Recomputed activations would meet the usual dropout: a function mode is not open within backward().
    cheap = on_cpu() and not settings.gradient_checkpointing
    rounds_from = first_rounded_step(total, settings.epochs, rounded_epochs)
    rows = trainer.train_dataset
    with contextlib.ExitStack() as stack:
        if logits is not None:
            stack.enter_context(first_token_only(network, trainer.data_collator([rows[0], rows[-1]]), logits))
        if rounded_epochs:
            stack.enter_context(int8_rounding(network, lambda: trainer.state.global_step >= rounds_from))
        if cheap:
            stack.enter_context(cheap_dropout())
        yield
