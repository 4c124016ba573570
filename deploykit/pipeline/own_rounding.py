"""How far float32 itself is from float64, on the few messages where a float32 graph differs from PyTorch by more."""

from __future__ import annotations

__all__ = ["own_rounding"]

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from deploykit.pipeline.measuring import ModelOutputs, run_target
from deploykit.runners import Target
from deploykit.runners.padding import equally_long
from deploykit.tasks import Task

_FEW = 32
"""Messages at most that are excused: where more differ, it is not for being steep."""


def own_rounding(
    target: Target,
    texts: Sequence[str],
    found: ModelOutputs,
    others: Sequence[ModelOutputs],
    tolerance: float | None,
    task: Task,
    labels: Sequence[str],
    also: Collection[int] = (),
) -> NDArray[np.float64] | None:
    """What PyTorch's float32 differs by from its float64: float64 [messages], 0 where nobody asks.

    Args:
        target: the reference.
        texts: the messages.
        found: what it gave for them.
        others: what is held against it.
        tolerance: on single values, what float32 is usually allowed.
        task: what it does.
        labels: the names of its classes.
        also: messages to ask about whatever they differ by.

    Returns:
        None where there is nothing to excuse, or too much, or no PyTorch model to ask.
    """
    if target.kind != "torch" or target.precision != "fp32" or tolerance is None:
        return None
    ours = found.outputs[task.output]
    rows = len(ours)
    far = set(also)
    for other in others:
        theirs = other.outputs[task.output]
        if theirs.shape == ours.shape:
            largest = np.abs(theirs.astype(np.float64) - ours).reshape(rows, -1).max(axis=1)
            far.update(np.flatnonzero(largest > tolerance).tolist())
    if not 0 < len(far) <= _FEW:
        return None
    asked = sorted(far)
    exactly = replace(target, precision="fp64")
    exact = run_target(exactly, [texts[row] for row in asked], task, labels, [[place] for place in range(len(asked))])
    values, before = equally_long(exact.outputs[task.output], ours[asked])
    rounding = np.zeros(rows)
    rounding[asked] = np.abs(values.astype(np.float64) - before).reshape(len(asked), -1).max(axis=1)
    return rounding
