"""The tasks, each one module; others are added through the entry point group `deploykit.tasks`."""

from __future__ import annotations

__all__ = ["ENTRY_POINTS", "Answer", "Scores", "Task", "find_task", "task_names", "task_of_outputs"]

import difflib
from collections.abc import Collection
from importlib.metadata import entry_points
from typing import cast

from deploykit.errors import UsageError
from deploykit.tasks.base import Answer, Scores, Task

ENTRY_POINTS = "deploykit.tasks"


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


def task_of_outputs(names: Collection[str], message: str = "text") -> Task | None:
    """The task whose served entry has these outputs, the most of them; None where no installed task's has.

    Args:
        names: of the outputs.
        message: the entry's input.
    """
    tasks = [task for task in map(find_task, task_names()) if (task.medium.name if task.medium else "text") == message]
    known = {task: {task.output, *(output.name for output in task.served)} for task in tasks}
    fitting = [task for task, outputs in known.items() if outputs <= set(names)]
    return max(fitting, key=lambda task: len(known[task]), default=None)
