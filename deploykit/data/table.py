"""Labelled messages in memory, each knowing the row that it came from."""

from __future__ import annotations

__all__ = ["Columns", "RawRow", "Table", "missing_column", "table_from_rows"]

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from deploykit.errors import DataError
from deploykit.recipe.nearest import nearest

NAMED = 5  # rows that one message names

RawRow = tuple[int, object, object]
"""A row's number, its text and its label (None where there is no label column), as a reader found them."""


@dataclass(frozen=True)
class Columns:
    """The names of the columns that hold the message and, where there are labels, the label."""

    text: str = "text"
    label: str | None = "label"


@dataclass(frozen=True)
class Table:
    """Messages in the order of their source.

    Attributes:
        source: the reference that they were read from.
        texts: the messages, none blank.
        labels: their labels, none blank; None where no label column was asked for.
        rows: where each stands in the source, counted from 1.
        unit: what `rows` counts: lines of a text file (the first line, where a message has several), or rows.
    """

    source: str
    texts: tuple[str, ...]
    labels: tuple[str, ...] | None
    rows: tuple[int, ...]
    unit: Literal["line", "row"] = "row"

    def __len__(self) -> int:
        return len(self.texts)

    def at(self, index: int) -> str:
        """Where a message stands, in words: `train.csv: line 5`."""
        return f"{self.source}: {self.unit} {self.rows[index]}"

    def take(self, indices: Sequence[int]) -> Table:
        """The table of these messages only, in this order."""
        return Table(
            source=self.source,
            texts=tuple(self.texts[index] for index in indices),
            labels=None if self.labels is None else tuple(self.labels[index] for index in indices),
            rows=tuple(self.rows[index] for index in indices),
            unit=self.unit,
        )


def table_from_rows(source: str, unit: Literal["line", "row"], columns: Columns, rows: Iterable[RawRow]) -> Table:
    """The table of raw rows, each of them checked.

    Raises:
        DataError: there are no rows, a text or label is blank, or one is of a kind that can't be used.
    """
    numbers: list[int] = []
    texts: list[str] = []
    labels: list[str] = []
    blank: dict[str, list[int]] = {}
    for number, raw_text, raw_label in rows:
        where = f"{source}: {unit} {number}"
        text = _text(raw_text, where, columns.text)
        label = "" if columns.label is None else _label(raw_label, where, columns.label)
        if not text.strip():
            blank.setdefault("text", []).append(number)
        if columns.label is not None and not label.strip():
            blank.setdefault("label", []).append(number)
        numbers.append(number)
        texts.append(text)
        labels.append(label)
    for what, found in blank.items():
        named = ", ".join(map(str, found[:NAMED])) + (f" and {len(found) - NAMED} more" if len(found) > NAMED else "")
        raise DataError(
            f"{source}: {unit}{'s' if len(found) > 1 else ''} {named}: blank {what}",
            "fill or remove what is blank",
        )
    if not texts:
        raise DataError(f"{source}: has no rows")
    return Table(source, tuple(texts), None if columns.label is None else tuple(labels), tuple(numbers), unit)


def missing_column(where: str, columns: Columns, known: Sequence[str]) -> DataError | None:
    """The error for the first column that is not among the known ones; None where all are there."""
    for key, wanted in (("text", columns.text), ("label", columns.label)):
        if wanted is None or wanted in known:
            continue
        close = nearest(wanted, known)
        meant = f"; did you mean {close!r}?" if close else ""
        there = ", ".join(map(repr, known)) or "none"
        return DataError(
            f"{where}: no column {wanted!r} (there are: {there}){meant}", f"name the {key} column: -s data.{key}=NAME"
        )
    return None


def _text(value: object, where: str, column: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: {column!r} must be text, not {type(value).__name__}")
    if "\0" in value:
        raise DataError(f"{where}: {column!r} holds a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{where}: {column!r} holds half of a character (a lone surrogate)")
    return value


def _label(value: object, where: str, column: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    label = str(value) if isinstance(value, int) else _text(value, where, column)
    if any(ord(character) < 32 for character in label):
        raise DataError(f"{where}: {column!r} holds a line break or another control character")
    return label
