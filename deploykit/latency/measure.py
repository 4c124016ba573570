"""Timing targets against each other: each in its own process, one at a time, in alternating blocks."""

from __future__ import annotations

__all__ = ["Samples", "measure", "spread_over", "stolen_share"]

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from deploykit.errors import LatencyError
from deploykit.events import Listener, Progress, ignore
from deploykit.latency.processes import open_worker
from deploykit.runners import Message, Target


@dataclass(frozen=True)
class Samples:
    """The latencies of one target, one message at a time, from text to answer.

    Attributes:
        name: of the target.
        blocks: milliseconds of each message, by block.
        stolen: fraction of the CPU time that other guests of the host took meanwhile, over all targets.
    """

    name: str
    blocks: tuple[NDArray[np.float64], ...]
    stolen: float = 0.0

    @property
    def n(self) -> int:
        """Messages timed."""
        return sum(len(block) for block in self.blocks)

    def quantile_ms(self, q: float) -> float:
        """The q-quantile of all messages, in milliseconds."""
        return float(np.quantile(np.concatenate(self.blocks), q))

    @property
    def p50_ms(self) -> float:
        """The median, in milliseconds."""
        return self.quantile_ms(0.5)

    @property
    def p99_ms(self) -> float:
        """The 99th percentile, in milliseconds."""
        return self.quantile_ms(0.99)

    @property
    def p50_range_ms(self) -> tuple[float, float]:
        """The least and the greatest median of a block: the spread that this machine's noise makes."""
        medians = [float(np.median(block)) for block in self.blocks]
        return min(medians), max(medians)


def measure(
    targets: Mapping[str, Target],
    messages: Sequence[Message],
    *,
    blocks: int = 5,
    warmup: int = 20,
    commands: Mapping[str, Sequence[str]] | None = None,
    listener: Listener = ignore,
) -> dict[str, Samples]:
    """Time every target on the same messages, singly, in alternating blocks.

    Each target lives in a process of its own and sleeps while another is timed; the order turns round every other
    block, so that drift of the machine falls on all alike.

    Args:
        targets: by name.
        messages: each is timed once per target.
        blocks: into how many blocks the messages are divided.
        warmup: messages that run before each block, untimed.
        commands: of targets that another program runs, in another environment perhaps; it speaks as
            `deploykit.latency.worker` does.
        listener: hears of progress.

    Raises:
        LatencyError: there is nothing to time, or a target could not be run.
    """
    if not targets or not messages or blocks < 1:
        raise LatencyError("there is nothing to time", "give at least one target, one message and one block")
    parts = np.array_split(np.arange(len(messages)), min(blocks, len(messages)))
    timed: dict[str, list[NDArray[np.float64]]] = {name: [] for name in targets}
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(open_worker(name, target, (commands or {}).get(name)))
            for name, target in targets.items()
        }
        before = psutil.cpu_times()
        done, total = 0, len(parts) * len(targets)
        for number, part in enumerate(parts):
            names = list(targets) if number % 2 == 0 else list(reversed(list(targets)))
            for name in names:
                order = {
                    "messages": [messages[index] for index in part],
                    "warmup": [messages[index % len(messages)] for index in range(warmup)],
                }
                seconds = workers[name].ask(order)["seconds"]
                timed[name].append(np.array(seconds) * 1e3)
                done += 1
                listener(Progress("latency", done, total, "block"))
        stolen = stolen_share(before, psutil.cpu_times())
    return {name: Samples(name, tuple(found), stolen) for name, found in timed.items()}


def spread_over(messages: Sequence[Message], count: int) -> list[Message]:
    """`count` of the messages, evenly spread over all of them; all where there are fewer."""
    count = min(count, len(messages))
    return [messages[index * len(messages) // count] for index in range(count)]


def stolen_share(before: Any, after: Any) -> float:
    """The share of steal in all CPU time between two readings; 0 where the system does not tell."""
    total = sum(after) - sum(before)
    steal = getattr(after, "steal", 0.0) - getattr(before, "steal", 0.0)
    return float(steal / total) if total > 0 else 0.0
