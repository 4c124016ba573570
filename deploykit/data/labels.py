"""What a row's label can be - a class, several, spans in the text, or a class and spans - and how classes are read."""

from __future__ import annotations

__all__ = [
    "INTENT", "Label", "LabelForm", "MarkedMessage", "OneClass", "Quote", "SeveralClasses", "Span", "checked_text",
    "classes_of", "is_nothing", "label_from_json", "read_class", "read_list", "shown_label",
]  # fmt: skip

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

from deploykit.errors import DataError

_BETWEEN = re.compile(r"[;|]")


class Span(NamedTuple):
    """A marked part of a text: offsets in Unicode code points, `end` exclusive."""

    start: int
    end: int
    label: str


class MarkedMessage(NamedTuple):
    """The class of a text, and its spans in their order."""

    intent: str
    spans: tuple[Span, ...]


class Quote(NamedTuple):
    """The part of a text that answers a question: as `Span`, with its characters; 0, 0 and none for no answer."""

    start: int
    end: int
    text: str


Label: TypeAlias = str | tuple[Span, ...] | tuple[str, ...] | MarkedMessage | Quote
"""One class; the spans of a text in their order; all its classes, sorted, none where it is out of scope; one class and
the spans; or the answer in it."""

INTENT = "intent:"
"""What the name of a message's class begins with where those of its spans stand beside it."""

OUT_OF_SCOPE = ("out_of_scope", "oos")
"""What a class is called that stands for none of the others."""


class LabelForm(Protocol):
    """How the labels of a task are written down."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that they are read from."""
        ...

    def read(self, text: str, values: Sequence[object], where: str) -> Label:
        """The label in a row's columns; a blank one is "".

        Raises:
            DataError: there is no such label; the message begins with `where`.
        """
        ...

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        """What a model's outputs are called that learns these classes."""
        ...


@dataclass(frozen=True)
class OneClass:
    """One column with one class for each row."""

    column: str = "label"

    @property
    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def read(self, text: str, values: Sequence[object], where: str) -> str:
        """The class; whole numbers and truth values become text."""
        return read_class(values[0], where, self.column)

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        """The classes, sorted."""
        return tuple(sorted(classes))


@dataclass(frozen=True)
class SeveralClasses:
    """One column with all classes of a row: a JSON list, or names between semicolons or bars; empty for none.

    A row whose class is `out_of_scope` (or `oos`) has none.
    """

    column: str = "labels"

    @property
    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def read(self, text: str, values: Sequence[object], where: str) -> tuple[str, ...]:
        """The classes, sorted, each once.

        Raises:
            DataError: the column is neither a list of names nor text.
        """
        value = values[0]
        if is_nothing(value):
            return ()
        if isinstance(value, str):
            value = read_list(value, where, self.column) if value.lstrip().startswith("[") else _BETWEEN.split(value)
        if isinstance(value, bool | int):
            value = [value]
        if not isinstance(value, list):
            raise DataError(
                f"{where}: {self.column!r} must be a list of classes, not {type(value).__name__}",
                'write ["refund", "address"], or refund; address',
            )
        names = {read_class(each, where, self.column).strip() for each in value}
        return tuple(sorted(name for name in names if name and name.casefold() not in OUT_OF_SCOPE))

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        """The classes, sorted."""
        return tuple(sorted(classes))


def classes_of(label: Label) -> tuple[str, ...]:
    """What a label is counted under: its class, each of its classes, that of each span; or of both, `INTENT` before."""
    if isinstance(label, str):
        return (label,)
    if isinstance(label, Quote):
        return ("answer",) if label.end else ()
    if isinstance(label, MarkedMessage):
        return (INTENT + label.intent, *(span.label for span in label.spans))
    return tuple(each if isinstance(each, str) else each.label for each in label)


def shown_label(label: Label) -> str:
    """A label in a message."""
    if isinstance(label, str):
        return repr(label)
    if isinstance(label, Quote):
        return repr(label.text) if label.end else "no answer"
    if isinstance(label, MarkedMessage):
        return ", ".join([repr(label.intent), *([shown_label(label.spans)] if label.spans else [])])
    parts = (repr(each) if isinstance(each, str) else f"{each.label} {each.start}-{each.end}" for each in label)
    return ", ".join(parts) or "{}"


def label_from_json(value: Any) -> Label:
    """A label as it was before it was written as JSON."""
    if isinstance(value, str):
        return sys.intern(value)  # there are few, and many rows
    if len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], list):
        return MarkedMessage(value[0], tuple(Span(*each) for each in value[1]))
    if value and isinstance(value[0], int):
        return Quote(*value)
    if value and isinstance(value[0], str):
        return tuple(map(str, value))
    return tuple(Span(*each) for each in value)


def checked_text(value: object, where: str, column: str) -> str:
    """A text that can be used; nothing becomes "".

    Raises:
        DataError: it is no text, or has a NUL or half of a character.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: {column!r} must be text, not {type(value).__name__}")
    if "\0" in value:
        raise DataError(f"{where}: {column!r} holds a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{where}: {column!r} holds half of a character (a lone surrogate)")
    return value


def read_class(value: object, where: str, column: str) -> str:
    """The name of a class in a field; whole numbers and truth values become text.

    Raises:
        DataError: it is no text, or has a control character.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        said = "is missing" if math.isnan(value) else f"must be text, not {value}"
        raise DataError(f"{where}: {column!r} {said}", "a label is text, a whole number, true or false")
    label = str(value) if isinstance(value, int) else checked_text(value, where, column)
    if any(ord(character) < 32 for character in label):
        raise DataError(f"{where}: {column!r} holds a line break or another control character")
    return label


def is_nothing(value: object) -> bool:
    """Whether a field is empty."""
    if isinstance(value, float):
        return math.isnan(value)  # what a Parquet file may have for a missing number
    return value is None or value == ""


def read_list(value: str, where: str, column: str) -> Any:
    """What a field of JSON holds.

    Raises:
        DataError: it is not valid.
    """
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {column!r} is not valid JSON: {error}") from error
