"""What a check concludes, and how conclusions combine."""

from __future__ import annotations

__all__ = ["Outcome", "Part", "Verdict", "about", "fewest", "overall", "paired_count"]

import math
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Literal, get_args

from deploykit.errors import ParityError

_MOST_ITEMS = 1_000_000_000

Outcome = Literal["pass", "fail", "inconclusive"]
Part = Literal["labels", "tokenizer", "interface", "chance", "output", "layer norm", "model", "batching", "server"]
"""Where between text and answer a check looks: the first of these with a failed check is what is at fault."""


@dataclass(frozen=True)
class Verdict:
    """The conclusion of one check, with what it rests on.

    Attributes:
        check: what was checked, as a report names it.
        outcome: `inconclusive` means that n is too small to tell.
        figure: what was observed, in `unit`; None when there is no number (a missing output, NaN).
        bound: the confidence bound of the figure that was held against the limit; None for a check that is exact.
        limit: the most that passes, in `unit`.
        n: items compared, at least 1.
        unit: of figure, bound and limit: `fraction`, `items`, `absolute difference`.
        next_step: what to do about it, in words; empty on a pass.
        details: the evidence, a line each.
        part: where between text and answer it looks.

    Raises:
        ParityError: n below 1, a figure, bound or limit that is not finite, or a pass without a figure:
            a comparison of nothing, or of NaN, never becomes a verdict.
    """

    check: str
    outcome: Outcome
    figure: float | None
    bound: float | None
    limit: float | None
    n: int
    unit: str
    next_step: str = ""
    details: tuple[str, ...] = ()
    part: Part = "model"

    def __post_init__(self) -> None:
        if self.outcome not in get_args(Outcome):
            raise ParityError(f"{self.check}: {self.outcome!r} is not an outcome")
        if self.n < 1:
            raise ParityError(f"{self.check}: nothing was compared", "give at least one item")
        for name, value in (("figure", self.figure), ("bound", self.bound), ("limit", self.limit)):
            if value is not None and not math.isfinite(value):
                raise ParityError(f"{self.check}: the {name} is {value}, so there is no verdict")
        if self.outcome == "pass" and self.figure is None:
            raise ParityError(f"{self.check}: a pass needs a figure")


def overall(verdicts: Iterable[Verdict]) -> Outcome:
    """The outcome of all checks together: fail before inconclusive before pass.

    Raises:
        ParityError: there are no verdicts: a comparison of nothing is an error, never a pass.
    """
    outcomes = {verdict.outcome for verdict in verdicts}
    if not outcomes:
        raise ParityError("nothing was checked, so there is no verdict", "give a margin, a flip limit or a tolerance")
    if "fail" in outcomes:
        return "fail"
    return "inconclusive" if "inconclusive" in outcomes else "pass"


def paired_count(what: str, reference: Sized, candidate: Sized) -> int:
    """How many pairs there are, where both sides must have as many and at least one.

    Raises:
        ParityError: no items, or more on one side than on the other.
    """
    if len(reference) != len(candidate):
        raise ParityError(
            f"{what}: {len(reference)} of the reference against {len(candidate)} of the candidate",
            "run both over the same messages, in the same order",
        )
    if not len(reference):
        raise ParityError(f"{what}: nothing to compare", "give at least one message")
    return len(reference)


def about(count: int) -> str:
    """A whole number rounded up to two digits, which is all that an extrapolated n is worth: "3,100"."""
    step = 10 ** max(0, len(str(count)) - 2)
    return f"{math.ceil(count / step) * step:,}"


def fewest(passes: Callable[[int], bool], start: int) -> int | None:
    """The fewest items that pass, where more than enough pass too; None beyond a billion.

    Args:
        passes: whether so many do.
        start: where to begin; what is looked for may be down to half of it.
    """
    enough = start
    while not passes(enough):
        enough *= 2
        if enough > _MOST_ITEMS:
            return None
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if passes(middle):
            enough = middle
        else:
            too_few = middle
    return enough
