"""The smallest set of modules whose own errors are enough to change the answers: bisection of a divergence."""

from __future__ import annotations

__all__ = ["find_breaking"]

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from deploykit.export.smallest import smallest_set
from deploykit.parity.activations import Trace
from deploykit.parity.localize import Batch, Breaking
from deploykit.parity.places import place_of

_TRIALS = 24
_ENOUGH = 0.5
"""The part of the changed answers, or of the output's error where none changed, that a set has to bring about."""
Errors = Mapping[str, NDArray[np.floating]]


def find_breaking(
    reference: Trace,
    likeliest: Sequence[str],
    errors: Sequence[Errors],
    batches: Sequence[Batch],
    feeds: Sequence[Mapping[str, NDArray[np.int64]]],
    output: str,
) -> Breaking | None:
    """The fewest modules whose own errors, put into the reference, change half of what the candidate changes.

    Each trial runs the reference with the errors of some modules added where they arise, so what follows from them is
    computed and not estimated. Where the candidate changes no answer, half of the error of its output is asked for.

    Args:
        reference: what to live up to.
        likeliest: its points, in the order in which they are suspected.
        errors: of each batch, by point: what the candidate's module makes of the reference's values, less what the
            reference's makes of them.
        batches: what both models gave.
        feeds: the inputs of each batch.
        output: the point behind the whole model.

    Returns:
        the set, or None where the errors of all modules together don't bring the change about.
    """
    telling = [number for number, batch in enumerate(batches) if _changed(batch, batch.free, output).any()]
    if not telling:
        telling = [max(range(len(batches)), key=lambda number: batches[number].mask.size)]
    changes = [_changed(batches[number], batches[number].free, output) for number in telling]
    count = sum(int(changed.sum()) for changed in changes)

    def brought_about(points: Sequence[str]) -> float:
        """The part of the change that the errors of some modules bring about."""
        same, noise, whole = 0, 0.0, 0.0
        for number, changed in zip(telling, changes, strict=True):
            batch = batches[number]
            added = {point: errors[number][point] for point in points}
            found = {output: reference.run(feeds[number], added=added)[output]}
            same += int((_changed(batch, found, output) & changed).sum())
            noise += _noise(batch, found, output)
            whole += _noise(batch, batch.free, output)
        return same / count if count else noise / whole if whole else 0.0

    known = [point for point in likeliest if all(point in errors[number] for number in telling)]
    found = smallest_set(known, lambda points: brought_about(points) >= _ENOUGH, budget=_TRIALS)
    if not found.items:
        return None
    return Breaking(
        modules=tuple(place_of(point, output).name for point in found.items),
        share=min(1.0, brought_about(found.items)),
        answers=count,
        minimal=found.minimal,
    )


def _changed(batch: Batch, found: Mapping[str, NDArray[np.floating]], output: str) -> NDArray[np.bool_]:
    """Of each row of the output whether another class is the likeliest than in the reference."""
    wanted, rows = batch.rows(output, batch.reference), batch.rows(output, found)
    if wanted.shape != rows.shape:
        return np.zeros(len(wanted), dtype=np.bool_)
    changed: NDArray[np.bool_] = wanted.argmax(axis=-1) != rows.argmax(axis=-1)
    return changed


def _noise(batch: Batch, found: Mapping[str, NDArray[np.floating]], output: str) -> float:
    wanted, rows = batch.rows(output, batch.reference), batch.rows(output, found)
    return float(np.square(wanted - rows).sum()) if wanted.shape == rows.shape else 0.0
