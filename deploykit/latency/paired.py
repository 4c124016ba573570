"""Timing one target, or two against each other, round after round until a rule says stop."""

from __future__ import annotations

__all__ = ["Measured", "measure_rounds"]

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
from numpy.typing import NDArray

from deploykit.errors import LatencyError
from deploykit.events import Listener, Progress, ignore
from deploykit.latency.measure import stolen_share
from deploykit.latency.processes import Worker, open_worker
from deploykit.runners import Message, Target

_SLICES = 4
"""Of the budget; after each the rule is asked."""
_BLOCK_S = 0.04
"""Long enough for caches to be warm, short enough for a burst of another's load to fall on both sides."""
_LEAST = 8
_WARMUP = 5
_STARTING = 0.3
"""The share of the budget that may go into starting processes anew."""
_SEED = 20


@dataclass(frozen=True)
class Measured:
    """What was timed.

    Attributes:
        rounds: of each, which pair of processes timed it, and the milliseconds of its messages by target; all targets
            of a round had the same messages in the same order.
        seconds: that it took, processes started and all.
        stolen: fraction of the CPU time that other guests of the host took meanwhile.
        fractions: of the budget at which the rule was asked.
    """

    rounds: tuple[tuple[int, dict[str, NDArray[np.float64]]], ...]
    seconds: float
    stolen: float
    fractions: tuple[float, ...]


def measure_rounds(
    targets: Mapping[str, Target],
    messages: Sequence[Message],
    enough: Callable[[Measured], bool],
    *,
    budget_s: float,
    commands: Mapping[str, Sequence[str]] | None = None,
    listener: Listener = ignore,
) -> Measured:
    """Time targets in turn, in short blocks, until the rule has enough or the budget is used.

    A round times two short runs of messages on every target, in order and back (A B B A), so that drift and bursts fall
    on all alike and each message is timed on all within a moment. Where starting is cheap the processes are started
    anew a few times, in turned order: the same file loaded twice is not equally fast.

    Args:
        targets: by name; one or several.
        messages: real ones; each round takes the next of them, in shuffled order.
        enough: asked after each quarter of the budget.
        budget_s: seconds for all of it, starting included; at least two rounds are timed whatever it says.
        commands: of targets that another program runs, as `deploykit.latency.measure.measure` has them.
        listener: hears of progress.

    Raises:
        LatencyError: there is nothing to time, or a target could not be run.
    """
    if not targets or not messages or budget_s <= 0:
        raise LatencyError("there is nothing to time", "give at least one target, one message and some time")
    shuffled = np.random.default_rng(_SEED).permutation(len(messages))
    supply = itertools.cycle([messages[index] for index in shuffled])
    start, before = time.monotonic(), psutil.cpu_times()
    rounds: list[tuple[int, dict[str, NDArray[np.float64]]]] = []
    fractions: list[float] = []
    pair, restart_at, asking_s = 0, {0}, 0.0
    with contextlib.ExitStack() as stack:
        for number in range(_SLICES):
            if number in restart_at:
                stack.close()
                began = time.monotonic()
                crew = _Crew(stack, targets, commands or {}, supply, turned=bool(pair % 2))
                if number == 0:
                    restart_at = _restarts(time.monotonic() - began, budget_s)
                pair += 1
            end = start + budget_s * (number + 1) / _SLICES - asking_s
            took_s, least = 0.0, 2 if number == 0 else 1
            while least > 0 or time.monotonic() + took_s / 2 < end:
                began = time.monotonic()
                rounds.append((pair - 1, crew.round()))
                took_s, least = time.monotonic() - began, least - 1
            fractions.append((number + 1) / _SLICES)
            listener(Progress("latency", number + 1, _SLICES, "quarter of the budget"))
            stolen = stolen_share(before, psutil.cpu_times())
            measured = Measured(tuple(rounds), time.monotonic() - start, stolen, tuple(fractions))
            began = time.monotonic()
            if enough(measured):
                break
            asking_s = time.monotonic() - began
    return measured


def _restarts(starting_s: float, budget_s: float) -> set[int]:
    """The quarters at whose beginning processes are started: as many as the budget bears, an even number where more."""
    pairs = next((count for count in (4, 2) if count * starting_s <= _STARTING * budget_s), 1)
    return set(range(0, _SLICES, _SLICES // pairs))


class _Crew:
    """One process for each target, warmed up."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        targets: Mapping[str, Target],
        commands: Mapping[str, Sequence[str]],
        supply: Iterator[Message],
        *,
        turned: bool,
    ) -> None:
        names = list(targets)
        self._supply, self._turned = supply, turned
        self._workers: dict[str, Worker] = {
            name: stack.enter_context(open_worker(name, targets[name], commands.get(name)))
            for name in (reversed(names) if turned else names)
        }
        warm = [next(supply) for _ in range(20)]
        typical_s: list[float] = []
        for name in self._workers:
            self._time(name, warm)
            typical_s.append(float(np.quantile(self._time(name, warm), 0.25)) / 1e3)
        self._size = int(np.clip(_BLOCK_S / max(typical_s), _LEAST, 200))
        self._names = names

    def round(self) -> dict[str, NDArray[np.float64]]:
        """Milliseconds of two runs of messages, by target: in order and back; every other round begins at the end."""
        order = list(reversed(self._names)) if self._turned else self._names
        self._turned = not self._turned
        there, back = ([next(self._supply) for _ in range(self._size)] for _ in range(2))
        first = {name: self._time(name, there) for name in order}
        second = {name: self._time(name, back) for name in reversed(order)}
        return {name: np.concatenate([first[name], second[name]]) for name in self._names}

    def _time(self, name: str, messages: Sequence[Message]) -> NDArray[np.float64]:
        order = {"messages": list(messages), "warmup": list(messages[: min(_WARMUP, len(messages) // 4)])}
        return np.array(self._workers[name].ask(order)["seconds"]) * 1e3
