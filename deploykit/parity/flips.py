"""Answers that changed, whether right or not."""

from __future__ import annotations

__all__ = ["ByClass", "ClassChange", "Flips", "count_flips", "judge_flips"]

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import ParityError
from deploykit.parity.intervals import clopper_pearson_lower, clopper_pearson_upper
from deploykit.parity.verdict import Outcome, Verdict, about, fewest, paired_count

ByClass = tuple[Sequence[Hashable], Sequence[Hashable], Sequence[Hashable]]
"""What the reference and the candidate answered, and what is right, one class each: the parts of larger answers."""


@dataclass(frozen=True)
class ClassChange:
    """What happened to one class: a true label, or without labels an answer of the reference.

    Attributes:
        name: the class.
        n: its items.
        flips: how many of them are answered otherwise.
        reference_recall: the share of them that the reference has right, a fraction; None without labels.
        candidate_recall: the same for the candidate.
    """

    name: str
    n: int
    flips: int
    reference_recall: float | None
    candidate_recall: float | None

    @property
    def recall_drop(self) -> float:
        """How far the recall fell, a fraction; 0 without labels."""
        if self.reference_recall is None or self.candidate_recall is None:
            return 0.0
        return self.reference_recall - self.candidate_recall


@dataclass(frozen=True)
class Flips:
    """The answers that changed.

    Attributes:
        n: items compared.
        count: changed answers.
        rate_upper: one-sided Clopper-Pearson upper bound of the rate, a fraction.
        classes: every class, that whose recall fell furthest first.
        changed: indices of the changed items, worst first: right to wrong, then wrong to wrong, then wrong to right;
            within these by severity.
    """

    n: int
    count: int
    rate_upper: float
    classes: tuple[ClassChange, ...]
    changed: tuple[int, ...]

    @property
    def rate(self) -> float:
        """Changed answers, a fraction."""
        return self.count / self.n

    @property
    def worst_class(self) -> ClassChange | None:
        """The class with the candidate's lowest recall; None without labels."""
        recalls = [(change.candidate_recall, place) for place, change in enumerate(self.classes)]
        judged = [(recall, place) for recall, place in recalls if recall is not None]
        return self.classes[min(judged)[1]] if judged else None


def count_flips(
    reference: Sequence[Hashable],
    candidate: Sequence[Hashable],
    *,
    labels: Sequence[Hashable] | None = None,
    by_class: ByClass | None = None,
    severity: NDArray[np.float64] | None = None,
    confidence: float = 0.95,
) -> Flips:
    """Count the changed answers and find where they are.

    Args:
        reference: the reference's answers [n].
        candidate: the candidate's answers to the same items.
        labels: the right answers, where known; an answer is right when it equals its label.
        by_class: what is counted by class, where an answer is not one class.
        severity: [n], how large the change of each item is (a logit difference), to order by.
        confidence: of the one-sided bound.

    Raises:
        ParityError: no items, or unequal lengths.
    """
    n = paired_count("answers", reference, candidate)
    if labels is not None:
        paired_count("labels", reference, labels)
    if severity is not None:
        paired_count("severity", reference, severity)
    changed = [item for item in range(n) if reference[item] != candidate[item]]
    size = np.zeros(n) if severity is None else severity

    def badness(item: int) -> tuple[int, float, int]:
        if labels is None:
            rank = 0
        else:
            rank = 0 if reference[item] == labels[item] else 2 if candidate[item] == labels[item] else 1
        return rank, -float(size[item]), item

    return Flips(
        n=n,
        count=len(changed),
        rate_upper=clopper_pearson_upper(len(changed), n, confidence),
        classes=_class_changes(*(by_class or (reference, candidate, labels))),
        changed=tuple(sorted(changed, key=badness)),
    )


def judge_flips(
    reference: Sequence[Hashable], candidate: Sequence[Hashable], limit: float, confidence: float = 0.95
) -> Verdict:
    """Judge the rate of changed answers by its exact binomial bounds.

    pass when the one-sided upper bound is at most the limit; fail when the lower one is above it; otherwise
    inconclusive, with the number of items that would do at the rate seen.

    Args:
        reference: the reference's answers [n].
        candidate: the candidate's answers to the same items.
        limit: the rate that may change, a fraction in (0, 1). For none at all compare exactly: `compare_answers`.
        confidence: of each one-sided bound.

    Raises:
        ParityError: no items, unequal lengths, or a limit or confidence out of range.
    """
    if not 0 < limit < 1:
        raise ParityError(f"flip limit {limit} is not a fraction in (0, 1)", "three in a thousand is 0.003")
    flips = count_flips(reference, candidate, confidence=confidence)
    lower = clopper_pearson_lower(flips.count, flips.n, confidence)
    outcome: Outcome = "pass" if flips.rate_upper <= limit else "fail" if lower > limit else "inconclusive"
    return Verdict(
        check="changed answers",
        outcome=outcome,
        figure=flips.rate,
        bound=flips.rate_upper,
        limit=limit,
        n=flips.n,
        unit="fraction",
        next_step=_next_step(outcome, flips.count, flips.n, limit, confidence),
        details=(
            f"{flips.count} of {flips.n} answers changed",
            f"one-sided {100 * confidence:g} % bounds of the rate: {lower:.3%} and {flips.rate_upper:.3%}",
        ),
    )


def _class_changes(
    reference: Sequence[Hashable], candidate: Sequence[Hashable], labels: Sequence[Hashable] | None
) -> tuple[ClassChange, ...]:
    names = reference if labels is None else labels
    items, flips = Counter(names), Counter[Hashable]()
    reference_right, candidate_right = Counter[Hashable](), Counter[Hashable]()
    for name, before, after in zip(names, reference, candidate, strict=True):
        flips[name] += before != after
        reference_right[name] += before == name
        candidate_right[name] += after == name
    changes = (
        ClassChange(
            name=str(name),
            n=n,
            flips=flips[name],
            reference_recall=None if labels is None else reference_right[name] / n,
            candidate_recall=None if labels is None else candidate_right[name] / n,
        )
        for name, n in items.items()
    )
    return tuple(sorted(changes, key=lambda change: (-change.recall_drop, -change.flips, change.name)))


def _next_step(outcome: Outcome, count: int, n: int, limit: float, confidence: float) -> str:
    if outcome == "pass":
        return ""
    if outcome == "fail":
        return "Look at the changed samples: keep more of the model in float, or calibrate on such messages."
    needed = _items_needed(count / n, n, limit, confidence)
    if needed is None:
        return "The rate seen is not safely below the limit: more items will not help unless the true rate is smaller."
    return f"Needs about {about(needed)} items at this rate, {about(needed - n)} more; they need no labels."


def _items_needed(rate: float, n: int, limit: float, confidence: float) -> int | None:
    """The fewest items that pass at this rate; None when none or no sensible number would."""

    def passes(items: int) -> bool:
        return clopper_pearson_upper(rate * items, items, confidence) <= limit

    return None if rate >= limit else fewest(passes, n)
