"""The smallest set that makes a difference: delta debugging over parts of a model, within a budget of trials."""

from __future__ import annotations

__all__ = ["Smallest", "smallest_set"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Smallest(Generic[Item]):
    """What was found.

    Attributes:
        items: in their order; empty where no set that was tried holds.
        trials: how many sets were tried.
        minimal: whether it is known that no item can be left out; the budget may end before.
    """

    items: tuple[Item, ...]
    trials: int
    minimal: bool


def smallest_set(
    items: Sequence[Item], holds: Callable[[tuple[Item, ...]], bool], *, budget: int, most: int | None = None
) -> Smallest[Item]:
    """A small set of items that holds, none of which can be left out.

    First the likeliest one, two, four and so on; then the set that holds is reduced by delta debugging (Zeller and
    Hildebrandt 2002, ddmin). A part of a set that does not hold is taken not to hold, and is not tried.

    Args:
        items: the likeliest first.
        holds: whether a set makes the difference; called at most `budget` times.
        budget: trials.
        most: items at most in a set; all of them unless told.
    """
    tried: dict[frozenset[int], bool] = {}

    def test(chosen: Sequence[int]) -> bool | None:
        """Whether it holds; None where the budget is spent."""
        wanted = frozenset(chosen)
        if wanted in tried:
            return tried[wanted]
        if any(wanted <= failed for failed, held in tried.items() if not held):
            return False
        if len(tried) >= budget:
            return None
        tried[wanted] = holds(tuple(items[number] for number in sorted(wanted)))
        return tried[wanted]

    limit = len(items) if most is None else min(most, len(items))
    found: list[int] | None = None
    count = 1
    while found is None and limit:
        count = min(count, limit)
        if test(range(count)):
            found = list(range(count))
        elif count == limit or len(tried) >= budget:
            break
        count *= 2
    if found is None:
        return Smallest((), len(tried), False)
    found, minimal = _reduced(found, test)
    return Smallest(tuple(items[number] for number in found), len(tried), minimal)


def _reduced(found: list[int], test: Callable[[Sequence[int]], bool | None]) -> tuple[list[int], bool]:
    """ddmin: parts, then what is left without each part, then finer parts."""
    parts = 2
    while len(found) > 1:
        size = -(-len(found) // parts)
        chunks = [found[begin : begin + size] for begin in range(0, len(found), size)]
        rests = [[item for item in found if item not in chunk] for chunk in chunks]
        for smaller in (*chunks, *rests):
            outcome = test(smaller) if smaller else False
            if outcome is None:
                return found, False
            if outcome:
                parts = 2 if smaller in chunks else max(parts - 1, 2)
                found = smaller
                break
        else:
            if size == 1:
                return found, True
            parts = min(2 * parts, len(found))
    return found, True
