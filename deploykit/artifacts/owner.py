"""Who holds a lock or a scratch folder: a process, told apart from a later one with the same number."""

from __future__ import annotations

__all__ = ["Owner", "OwnerState", "this_process"]

import hashlib
import os
import platform
from dataclasses import dataclass
from typing import Literal

OwnerState = Literal["alive", "dead", "reused", "elsewhere"]
"""`reused`: the number belongs to a later process. `elsewhere`: one of another host, not to be judged from here."""

_SAME_START_S = 2.0
"""The boot time, which start times are counted from, comes in whole seconds and moves with the clock's corrections."""


@dataclass(frozen=True)
class Owner:
    """A process.

    Attributes:
        pid: its number.
        started: when it began, in seconds since the epoch.
        host: eight hexadecimal digits that stand for its machine.
    """

    pid: int
    started: float
    host: str

    def state(self) -> OwnerState:
        """Whether the process still runs, as far as it can be seen from here."""
        import psutil

        if self.host != _host():
            return "elsewhere"
        try:
            process = psutil.Process(self.pid)
            started = process.create_time()
            if process.status() == psutil.STATUS_ZOMBIE:  # dead, but its parent has not asked yet
                return "dead"
        except psutil.NoSuchProcess:
            return "dead"
        except psutil.AccessDenied:
            return "alive"
        return "alive" if abs(started - self.started) <= _SAME_START_S else "reused"


def this_process() -> Owner:
    """The process that asks."""
    import psutil

    return Owner(os.getpid(), psutil.Process().create_time(), _host())


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]
