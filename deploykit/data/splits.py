"""Holding out rows for validation, each class in its proportion, and drawing equally many of each."""

from __future__ import annotations

__all__ = ["draw_per_class", "split_validation"]

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def split_validation(labels: Sequence[str], fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The indices to train on and those held out, both ascending; the same seed gives the same split.

    About `fraction` of the rows is held out, from each class in its proportion (largest remainders). Every class keeps
    at least one row to train on, so a class of one row is never held out; the held-out part may be empty.
    """
    classes, class_of = _numbered(labels)
    sizes = np.bincount(class_of, minlength=len(classes))
    random = np.random.default_rng(seed)
    counts = _held_out_counts(sizes, fraction, random)
    held_out = np.zeros(len(labels), dtype=bool)
    for index, count in enumerate(counts):
        rows = np.flatnonzero(class_of == index)
        held_out[random.permutation(rows)[:count]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def draw_per_class(labels: Sequence[str], count: int, seed: int) -> NDArray[np.int64]:
    """The indices of `count` rows of each class, ascending; all rows of a class that has no more. By the seed alone."""
    classes, class_of = _numbered(labels)
    random = np.random.default_rng(seed)
    drawn = [random.permutation(np.flatnonzero(class_of == index))[:count] for index in range(len(classes))]
    return np.sort(np.concatenate(drawn))


def _numbered(labels: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The classes in their order, and the number of each row's."""
    classes = sorted(set(labels))
    number = {name: place for place, name in enumerate(classes)}
    return classes, np.fromiter((number[label] for label in labels), dtype=np.int64, count=len(labels))


def _held_out_counts(sizes: NDArray[np.int64], fraction: float, random: np.random.Generator) -> NDArray[np.int64]:
    """Rows to hold out of each class; classes with equal remainders are taken in random order."""
    shares = sizes * fraction
    counts: NDArray[np.int64] = np.minimum(np.floor(shares).astype(np.int64), sizes - 1)
    missing = round(sizes.sum() * fraction) - int(counts.sum())
    order = random.permutation(len(sizes))
    order = order[np.argsort(-(shares - np.floor(shares))[order], kind="stable")]
    for index in [index for index in order if counts[index] < sizes[index] - 1][:missing]:
        counts[index] += 1
    return counts
