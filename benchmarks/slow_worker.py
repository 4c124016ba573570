"""A worker that is slower by a known amount: `python benchmarks/slow_worker.py SHARE TAIL_MS TAIL_RATE`.

SHARE of each call's own time is waited busily after it; TAIL_RATE of the calls wait TAIL_MS more.
"""

from __future__ import annotations

import random
import sys
import time

from deploykit.latency.worker import Answer, main


def slowed(answer: Answer, share: float, tail_s: float, tail_rate: float) -> Answer:
    """The call with its delay."""
    chance = random.Random()

    def call(messages: object) -> object:
        start = time.perf_counter()
        found = answer(messages)  # type: ignore[arg-type]
        end = time.perf_counter()
        until = end + share * (end - start) + (tail_s if chance.random() < tail_rate else 0.0)
        while time.perf_counter() < until:
            pass
        return found

    return call


if __name__ == "__main__":
    share, tail_ms, tail_rate = map(float, sys.argv[1:4])
    sys.exit(main(lambda answer: slowed(answer, share, tail_ms / 1e3, tail_rate)))
