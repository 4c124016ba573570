"""What the messages of a task are: texts, or what the task says."""

from __future__ import annotations

__all__ = ["columns_of", "medium_of", "medium_of_input", "medium_of_tensors"]

from collections.abc import Collection

from deploykit.data.labels import LabelForm
from deploykit.data.table import Columns
from deploykit.runners.texts import TEXTS
from deploykit.tasks import Task, find_medium, task_names
from deploykit.tasks.medium import Medium


def medium_of(task: Task | str) -> Medium:
    """What a task's messages are; the task itself or its name."""
    return find_medium(task if isinstance(task, str) else task.name) or TEXTS


def medium_of_input(name: str) -> Medium | None:
    """The messages that a served entry takes whose input has this name; None for what is no served entry's."""
    return next((medium for medium in _known() if medium.name == name), None)


def medium_of_tensors(names: Collection[str]) -> Medium | None:
    """The messages that become these inputs of a graph; None for what becomes of none."""
    return next((medium for medium in _known() if names and set(names) <= medium.tensors.keys()), None)


def columns_of(task: Task | str, text: str, form: LabelForm | None, hint: str | None = None) -> Columns:
    """The columns of a task's messages, read as they are, and of their labels."""
    medium = medium_of(task)
    return Columns(text, form, hint, None if medium.textual else medium.read)


def _known() -> list[Medium]:
    return list({id(medium): medium for medium in map(medium_of, task_names())}.values())
