"""Options that several commands share, and those that are made from a recipe section's fields."""

from __future__ import annotations

__all__ = [
    "as_json",
    "column_options",
    "fraction",
    "section_from_options",
    "section_options",
    "seed_number",
    "training_options",
]

import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from deploykit.errors import UsageError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

    from deploykit.recipe.schema import Section

Command = TypeVar("Command", bound=Callable[..., Any])
Fields = TypeVar("Fields", bound="Section")

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
fraction = click.FloatRange(0, 1, min_open=True, max_open=True)
seed_number = click.IntRange(0, 2**32 - 1)


def column_options(command: Command) -> Command:
    """`--text` and `--label`: the columns of a data file; several labels where a task has its label in parts."""
    command = click.option(
        "--label", multiple=True, default=("label",), show_default=True, callback=_one_or_several,
        help="The column that holds the label; give it three times for an entity's label, start and end.",
    )(command)  # fmt: skip
    return click.option("--text", default="text", show_default=True, help="The column that holds the message.")(command)


def _one_or_several(context: click.Context, option: click.Parameter, names: tuple[str, ...]) -> str | tuple[str, ...]:
    return names[0] if len(names) == 1 else names


def training_options(command: Command) -> Command:
    """`--train`, `--validation` and `--out`: rows to train on, and to watch, and the folder to write."""
    command = click.option(
        "-o", "--out", type=click.Path(path_type=Path), required=True, help="The folder to write."
    )(command)  # fmt: skip
    command = click.option(
        "--validation", default="0.1", show_default=True, callback=_file_or_fraction,
        help="The rows to watch: a file, or a fraction of the training rows.",
    )(command)  # fmt: skip
    return click.option(
        "--train", required=True, help="The training rows: a file, hub:DATASET:SPLIT or sample:support/train."
    )(command)  # fmt: skip


def _file_or_fraction(context: click.Context, option: click.Parameter, text: str) -> str | float:
    try:
        held_out = float(text)
    except ValueError:
        return text
    if not 0 < held_out <= 0.5:
        raise UsageError(f"--validation {text}: a fraction is above 0 and at most 0.5", "or name a file")
    return held_out


def section_options(section: type[Section], *, without: Collection[str] = ()) -> Callable[[Command], Command]:
    """An option for each field of a recipe section but `without`, with its description, default and choices."""

    def decorate(command: Command) -> Command:
        for name, field in reversed(section.model_fields.items()):
            if name in without:
                continue
            option = name.replace("_", "-")
            command = click.option(
                f"--{option}/--no-{option}" if field.annotation is bool else f"--{option}",
                name,
                type=_type(field),
                default=field.default,
                show_default=field.default is not None,
                help=field.description,
                multiple=isinstance(field.default, tuple),
            )(command)
        return command

    return decorate


def section_from_options(section: type[Fields], values: Mapping[str, Any]) -> Fields:
    """The section that the options give.

    Raises:
        UsageError: a value is out of its range.
    """
    from pydantic import ValidationError

    try:
        return section.model_validate({name: values[name] for name in section.model_fields if name in values})
    except ValidationError as error:
        raise UsageError("\n  ".join(map(_problem, error.errors(include_url=False)))) from None


def _problem(details: ErrorDetails) -> str:
    if not details["loc"]:  # options that contradict each other
        return str(details["ctx"]["error"])
    return f"--{str(details['loc'][0]).replace('_', '-')}: {details['msg']}, not {details['input']!r}"


def _type(field: FieldInfo) -> Any:
    """Click's type for a field: a choice for literals, else the plain type without None."""
    kind = field.annotation
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        kind = next(member for member in typing.get_args(kind) if member is not type(None))
    while hasattr(kind, "__metadata__") or typing.get_origin(kind) is tuple:  # Annotated, and a tuple's members
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is Literal:
        return click.Choice(typing.get_args(kind))
    return kind
