"""What a row's label can be - a class, several, spans in the text, or a class and spans - and how it is read."""

from __future__ import annotations

__all__ = [
    "INTENT", "ClassAndSpans", "Label", "LabelForm", "MarkedMessage", "MarkedSpans", "OneClass", "Quote",
    "SeveralClasses", "Span", "checked_text", "classes_of", "label_from_json", "shown_label",
]  # fmt: skip

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

from deploykit.errors import DataError

_WORD = re.compile(r"\S+")
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
        return _class(values[0], where, self.column)

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
        if _is_nothing(value):
            return ()
        if isinstance(value, str):
            value = _json_list(value, where, self.column) if value.lstrip().startswith("[") else _BETWEEN.split(value)
        if isinstance(value, bool | int):
            value = [value]
        if not isinstance(value, list):
            raise DataError(
                f"{where}: {self.column!r} must be a list of classes, not {type(value).__name__}",
                'write ["refund", "address"], or refund; address',
            )
        names = {_class(each, where, self.column).strip() for each in value}
        return tuple(sorted(name for name in names if name and name.casefold() not in OUT_OF_SCOPE))

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        """The classes, sorted."""
        return tuple(sorted(classes))


@dataclass(frozen=True)
class MarkedSpans:
    """Spans in one column (a JSON list of `{"start", "end", "label"}`, or a BIO tag for each word), or in three.

    Attributes:
        columns: one column; or those of the span's label, start and end, for one span a row at most.
    """

    columns: tuple[str, ...]

    def read(self, text: str, values: Sequence[object], where: str) -> tuple[Span, ...]:
        """The spans in their order, without spaces at their ends; none where the columns are empty.

        Raises:
            DataError: they can't be read, overlap, cover nothing, or end beyond the text.
        """
        if len(self.columns) == 3:
            found = _from_columns(values, where, self.columns)
        else:
            found = _from_column(text, values[0], where, self.columns[0])
        return _checked(found, text, where)

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        """`O`, and for each class the tags of its first word and of those that go on."""
        return ("O", *(f"{place}-{name}" for name in sorted(classes) for place in "BI"))


@dataclass(frozen=True)
class ClassAndSpans:
    """A column with the class of each row, and behind it those of its spans.

    Attributes:
        columns: that of the class; then those of `MarkedSpans`.
    """

    columns: tuple[str, ...]

    def read(self, text: str, values: Sequence[object], where: str) -> MarkedMessage:
        """The class and the spans.

        Raises:
            DataError: the class is blank, or the spans can't be used.
        """
        intent = _class(values[0], where, self.columns[0])
        if not intent.strip():
            raise DataError(f"{where}: blank label in {self.columns[0]!r}", "fill or remove what is blank")
        spans = MarkedSpans(self.columns[1:]).read(text, values[1:], where)
        for span in spans:
            if span.label.startswith(INTENT):
                raise DataError(f"{where}: a span is called {span.label!r}, as only messages are", "rename it")
        return MarkedMessage(intent, spans)

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        """The tags of the spans' classes as `MarkedSpans` has them, then the messages' classes with `intent:` before.

        Raises:
            DataError: all messages have the same class.
        """
        intents = sorted(each for each in classes if each.startswith(INTENT))
        if len(intents) < 2:
            raise DataError(
                f"all rows have the label {intents[0].removeprefix(INTENT)!r}",
                "a classifier needs rows of two classes or more",
            )
        spans = [each for each in classes if not each.startswith(INTENT)]
        return *MarkedSpans(self.columns[1:]).outputs(spans), *intents


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


def _class(value: object, where: str, column: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        said = "is missing" if math.isnan(value) else f"must be text, not {value}"
        raise DataError(f"{where}: {column!r} {said}", "a label is text, a whole number, true or false")
    label = str(value) if isinstance(value, int) else checked_text(value, where, column)
    if any(ord(character) < 32 for character in label):
        raise DataError(f"{where}: {column!r} holds a line break or another control character")
    return label


def _from_columns(values: Sequence[object], where: str, columns: Sequence[str]) -> list[Span]:
    label = "" if _is_nothing(values[0]) else _class(values[0], where, columns[0]).strip()
    offsets = [None if _is_nothing(value) else value for value in values[1:]]
    if not label and offsets == [None, None]:
        return []
    if not label:
        raise DataError(f"{where}: a span without a label in {columns[0]!r}")
    start, end = (_offset(value, where, column) for value, column in zip(offsets, columns[1:], strict=True))
    return [Span(start, end, label)]


def _is_nothing(value: object) -> bool:
    if isinstance(value, float):
        return math.isnan(value)  # what a Parquet file may have for a missing number
    return value is None or value == ""


def _from_column(text: str, value: object, where: str, column: str) -> list[Span]:
    if _is_nothing(value):
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _json_list(value, where, column)
    if isinstance(value, str):
        value = value.split()
    if not isinstance(value, list):
        raise DataError(
            f"{where}: {column!r} must be a list of spans, not {type(value).__name__}",
            'write [{"start": 0, "end": 5, "label": "city"}], or a tag for each word: B-city I-city O',
        )
    if value and all(isinstance(each, str) for each in value):
        return _from_tags(text, value, where, column)
    return [_from_object(each, where, column) for each in value]


def _json_list(value: str, where: str, column: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        raise DataError(f"{where}: {column!r} is not valid JSON: {error}") from error


def _from_object(value: object, where: str, column: str) -> Span:
    if not isinstance(value, dict):
        raise DataError(f"{where}: a span in {column!r} must be an object, not {type(value).__name__}")
    named = _class(value.get("label", value.get("type")), where, f"{column}.label").strip()
    if not named:
        raise DataError(f"{where}: a span in {column!r} has no label")
    start, end = (_offset(value.get(name), where, f"{column}.{name}") for name in ("start", "end"))
    return Span(start, end, named)


def _from_tags(text: str, tags: Sequence[str], where: str, column: str) -> list[Span]:
    words = list(_WORD.finditer(text))
    if len(words) != len(tags):
        raise DataError(
            f"{where}: {len(tags)} tags in {column!r} for {len(words)} words",
            "the words are what spaces separate; each has one tag",
        )
    spans: list[Span] = []
    goes_on = False
    for word, tag in zip(words, tags, strict=True):
        place, _, kind = tag.partition("-")
        if tag != "O" and (place not in ("B", "I", "E", "S") or not kind):
            raise DataError(f"{where}: {tag!r} in {column!r} is no tag", "tags are O, B-LABEL and I-LABEL")
        if goes_on and place in ("I", "E") and spans[-1].label == kind:
            spans[-1] = spans[-1]._replace(end=word.end())
        elif kind:
            spans.append(Span(*word.span(), kind))
        goes_on = place in ("B", "I")
    return spans


def _offset(value: object, where: str, column: str) -> int:
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    if number is None or not number.is_integer():
        raise DataError(f"{where}: {column!r} must be a whole number, not {value!r}", "offsets count characters from 0")
    return int(number)


def _checked(spans: Sequence[Span], text: str, where: str) -> tuple[Span, ...]:
    found: list[Span] = []
    for span in sorted(spans):
        said = f"{where}: the span {span.start}-{span.end} ({span.label})"
        if span.start < 0 or span.end > len(text):
            raise DataError(f"{said} is beyond the text, which has {len(text)} characters", "offsets count characters")
        covered = text[span.start : span.end]
        if not covered.strip():
            raise DataError(f"{said} covers nothing")
        if found and span.start < found[-1].end:
            raise DataError(f"{said} overlaps {found[-1].start}-{found[-1].end} ({found[-1].label})")
        start = span.start + len(covered) - len(covered.lstrip())
        found.append(Span(start, start + len(covered.strip()), span.label))
    return tuple(found)
