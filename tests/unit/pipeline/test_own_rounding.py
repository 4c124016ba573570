"""PyTorch's own rounding is asked of the messages that differ, and of them alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from deploykit.pipeline.measuring import ModelOutputs, run_target
from deploykit.pipeline.own_rounding import own_rounding
from deploykit.runners import Target
from deploykit.tasks import find_task

TEXTS = ["where is my card", "help", "I want my money back please", "open an account"] * 10


def moved(outputs: ModelOutputs, rows: range, by: float) -> ModelOutputs:
    logits = outputs.outputs["logits"].copy()
    logits[rows] += np.float32(by)
    return replace(outputs, outputs={"logits": logits})


def test_only_what_differs_is_asked_again_and_float32_is_off_by_little(tiny_checkpoint: Callable[..., Path]) -> None:
    task = find_task("text-classification")
    target = Target("torch", str(tiny_checkpoint("bert")), device="cpu")
    labels = tuple(map(str, range(9)))
    found = run_target(target, TEXTS, task, labels, [[index] for index in range(len(TEXTS))])

    def rounding(*others: ModelOutputs) -> object:
        return own_rounding(target, TEXTS, found, others, 1e-4, task, labels)

    assert rounding(found) is None
    assert rounding(moved(found, range(40), 0.5)) is None  # more than a few
    some = own_rounding(target, TEXTS, found, [found, moved(found, range(3, 5), 0.5)], 1e-4, task, labels)
    assert some is not None
    assert np.flatnonzero(some).tolist() == [3, 4]
    assert some.max() < 1e-4
    served = replace(target, kind="triton")
    assert own_rounding(served, TEXTS, found, [moved(found, range(2), 0.5)], 1e-4, task, labels) is None
