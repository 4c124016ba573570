"""The tasks, each one module; others are added through the entry point group `deploykit.tasks`.

A task whose messages are no texts has its `Medium` under its own name in the group `deploykit.media`: so a plan knows
which has without loading it.
"""

from __future__ import annotations

__all__ = [
    "Answer", "Scores", "Task", "find_medium", "find_task", "is_of_texts", "task_names",
    "task_of_outputs",
]  # fmt: skip

import difflib
import functools
from collections.abc import Collection
from importlib.metadata import entry_points
from typing import cast

from deploykit.errors import UsageError
from deploykit.tasks.base import Answer, Scores, Task
from deploykit.tasks.medium import Medium

ENTRY_POINTS = "deploykit.tasks"
MEDIA = "deploykit.media"


def task_names() -> list[str]:
    """The names of all installed tasks, sorted."""
    return sorted(entry_points(group=ENTRY_POINTS).names)


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        UsageError: no installed package has it.
    """
    found = [point for point in entry_points(group=ENTRY_POINTS) if point.name == name]
    if not found:
        near = difflib.get_close_matches(name, task_names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known tasks: {', '.join(task_names())}"
        raise UsageError(f"unknown task {name!r}", hint)
    return cast(Task, found[0].load()())


def is_of_texts(task: str) -> bool:
    """Whether the messages of the task of that name are texts; loads nothing."""
    return task not in entry_points(group=MEDIA).names


@functools.cache  # a client asks for each request
def find_medium(task: str) -> Medium | None:
    """What the messages of the task of that name are; None for texts."""
    found = [point for point in entry_points(group=MEDIA) if point.name == task]
    return cast(Medium, found[0].load()) if found else None


def task_of_outputs(names: Collection[str], message: str = "text") -> Task | None:
    """The task whose served entry has these outputs, the most of them; None where no installed task's has.

    Args:
        names: of the outputs.
        message: the entry's input.
    """
    media = {name: find_medium(name) for name in task_names()}
    tasks = [find_task(name) for name, medium in media.items() if (medium.name if medium else "text") == message]
    known = {task: {task.output, *(output.name for output in task.served)} for task in tasks}
    fitting = [task for task, outputs in known.items() if outputs <= set(names)]
    return max(fitting, key=lambda task: len(known[task]), default=None)
