"""Sends requests when they are due, or as fast as they are answered, and notes what became of each."""

from __future__ import annotations

__all__ = ["Refusal", "Sent", "closed_loop", "open_loop"]

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

Send = Callable[[int], Awaitable[None]]
"""Sends the request of this number and waits for its answer."""


class Refusal(Exception):
    """A request got no answer; `rejected` where the server's queue had no room."""

    def __init__(self, message: str, *, rejected: bool) -> None:
        super().__init__(message)
        self.rejected = rejected


@dataclass(frozen=True)
class Sent:
    """One request, in seconds from the start.

    Attributes:
        due: when it was to be sent.
        sent: when it was.
        done: when its answer, or its refusal, was there.
        problem: why it has no answer; None where it has.
        rejected: whether the server's queue had no room.
    """

    due: float
    sent: float
    done: float
    problem: str | None = None
    rejected: bool = False


async def open_loop(send: Send, due: Sequence[float]) -> list[Sent]:
    """Send every request when it is due, whatever became of those before.

    The time is that of the running event loop.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()
    tasks = []
    for number, when in enumerate(due):
        if (wait := start + when - loop.time()) > 0:
            await asyncio.sleep(wait)
        elif number % 16 == 0:
            await asyncio.sleep(0)  # behind time: answers must be heard all the same
        tasks.append(asyncio.ensure_future(_one(send, number, when, start)))
    return list(await asyncio.gather(*tasks))


async def closed_loop(send: Send, count: int, clients: int, *, seconds: float | None = None) -> list[Sent]:
    """Requests by so many clients, each of which sends its next one when the last is answered.

    What is due is when it is sent: a target that stalls is asked less, which hides the stall.

    Args:
        send: sends the request of a number.
        count: how many.
        clients: at once.
        seconds: send them again and again for so long.
    """
    loop = asyncio.get_running_loop()
    start, found = loop.time(), []
    numbers = iter(range(count)) if seconds is None else itertools.count()

    async def client() -> None:
        for number in numbers:
            if seconds is not None and loop.time() - start >= seconds:
                return
            found.append(await _one(send, number % count, loop.time() - start, start))

    await asyncio.gather(*(client() for _ in range(clients)))
    return found


async def _one(send: Send, number: int, due: float, start: float) -> Sent:
    loop = asyncio.get_running_loop()
    sent = loop.time() - start
    try:
        await send(number)
    except Refusal as refusal:
        return Sent(due, sent, loop.time() - start, str(refusal), refusal.rejected)
    return Sent(due, sent, loop.time() - start)
