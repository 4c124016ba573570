"""Parts of a text that a row marks - entities, or the answer to a question - and how they are read."""

from __future__ import annotations

__all__ = ["AnswerInContext", "ClassAndSpans", "MarkedSpans"]

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deploykit.data.labels import INTENT, MarkedMessage, Quote, Span, is_nothing, read_class, read_list
from deploykit.errors import DataError

_WORD = re.compile(r"\S+")
_ANSWER = "answer"


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
        intent = read_class(values[0], where, self.columns[0])
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


@dataclass(frozen=True)
class AnswerInContext:
    """One span at most behind the first line break of a message: in one column as spans are, or its start and its end.

    Attributes:
        columns: one with a JSON list of `{"start", "end", "label"}`; or those of the start and the end.
    """

    columns: tuple[str, ...]

    def read(self, text: str, values: Sequence[object], where: str) -> Quote:
        """The answer; one of no characters where the columns are empty.

        Raises:
            DataError: the message has no line break, the span can't be read, or is not one in the context.
        """
        if len(self.columns) == 1:
            if isinstance(values[0], str) and values[0].strip() and not values[0].lstrip().startswith("["):
                raise DataError(
                    f"{where}: {self.columns[0]!r} marks no answer: {values[0][:40]!r}",
                    'write [{"start": 45, "end": 52, "label": "answer"}], or name two columns, its start and its end',
                )
            spans = MarkedSpans(self.columns).read(text, values, where)
        else:
            given = "" if all(map(is_nothing, values)) else _ANSWER
            spans = MarkedSpans((_ANSWER, *self.columns)).read(text, [given, *values], where)
        context = text.find("\n") + 1
        if not context:
            raise DataError(
                f"{where}: there is no line break in the message", "write the question, a line break, then the context"
            )
        if len(spans) > 1:
            raise DataError(f"{where}: {len(spans)} answers to one question", "mark one of them")
        if not spans:
            return Quote(0, 0, "")
        if spans[0].start < context:
            raise DataError(
                f"{where}: the answer {spans[0].start}-{spans[0].end} begins before the context, at {context}",
                "offsets count the characters of the whole message, the question and the line break too",
            )
        return Quote(spans[0].start, spans[0].end, text[spans[0].start : spans[0].end])

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        """The two logits of each token."""
        return ("start", "end")


def _from_columns(values: Sequence[object], where: str, columns: Sequence[str]) -> list[Span]:
    label = "" if is_nothing(values[0]) else read_class(values[0], where, columns[0]).strip()
    offsets = [None if is_nothing(value) else value for value in values[1:]]
    if not label and offsets == [None, None]:
        return []
    if not label:
        raise DataError(f"{where}: a span without a label in {columns[0]!r}")
    start, end = (_offset(value, where, column) for value, column in zip(offsets, columns[1:], strict=True))
    return [Span(start, end, label)]


def _from_column(text: str, value: object, where: str, column: str) -> list[Span]:
    if is_nothing(value):
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = read_list(value, where, column)
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


def _from_object(value: object, where: str, column: str) -> Span:
    if not isinstance(value, dict):
        raise DataError(f"{where}: a span in {column!r} must be an object, not {type(value).__name__}")
    named = read_class(value.get("label", value.get("type")), where, f"{column}.label").strip()
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
    except (ValueError, OverflowError):
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
