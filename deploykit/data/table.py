"""Labelled messages, each knowing the row that it came from; many of them lie on disk, and not in memory."""

from __future__ import annotations

__all__ = ["Columns", "RawRow", "Table", "gathered_labels", "gathered_rows", "missing_column", "table_from_rows"]

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploykit.data.labels import Label, LabelForm, OneClass, checked_text, label_from_json
from deploykit.data.spill import Gathering, gathered_texts, taken
from deploykit.errors import DataError
from deploykit.recipe.nearest import nearest

NAMED = 5  # rows that one message names

RawRow = tuple[int, object, Sequence[object]]
"""A row's number, its text and what stands in its label's columns (nothing where there are none), as it was found."""


@dataclass(frozen=True)
class Columns:
    """The columns of a message and, where there are labels, of its label.

    Attributes:
        text: the column of the message.
        label: that of its class, or how else labels are written down; None for none.
        hint: what to do where one is missing; the recipe's key where None.
        read: the message that a field stands for, given the folder of the data file; None for the field itself. It
            raises DataError where the field stands for none.
    """

    text: str = "text"
    label: str | LabelForm | None = "label"
    hint: str | None = None
    read: Callable[[str, Path], str] | None = None

    @property
    def form(self) -> LabelForm | None:
        """How labels are written down."""
        return OneClass(self.label) if isinstance(self.label, str) else self.label

    @property
    def labels(self) -> tuple[str, ...]:
        """The columns of the label."""
        return () if self.form is None else self.form.columns


@dataclass(frozen=True)
class Table:
    """Messages in the order of their source.

    Attributes:
        source: the reference that they were read from.
        texts: the messages, none blank.
        labels: their labels, no class blank; None where no label column was asked for.
        rows: where each stands in the source, counted from 1.
        unit: what `rows` counts: lines of a text file (the first line, where a message has several), or rows.
    """

    source: str
    texts: Sequence[str]
    labels: Sequence[Label] | None
    rows: Sequence[int]
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
            texts=taken(self.texts, indices),
            labels=None if self.labels is None else taken(self.labels, indices),
            rows=taken(self.rows, indices),
            unit=self.unit,
        )

    def digest(self) -> str:
        """The sha256 of the texts and labels in their order, in hexadecimal."""
        found = hashlib.sha256()
        for index, text in enumerate(self.texts):
            found.update(json.dumps([text, self.labels[index] if self.labels else None]).encode())
        return found.hexdigest()


def table_from_rows(source: str, unit: Literal["line", "row"], columns: Columns, rows: Iterable[RawRow]) -> Table:
    """The table of raw rows, each of them checked.

    Raises:
        DataError: there are no rows, a text or label is blank, or one is of a kind that can't be used.
    """
    numbers, texts, labels = gathered_rows(), gathered_texts(), gathered_labels()
    count = 0
    form = columns.form
    blank: dict[str, list[int]] = {}
    for number, raw_text, raw_values in rows:
        where = f"{source}: {unit} {number}"
        text = checked_text(raw_text, where, columns.text)
        label = "" if form is None else form.read(text, raw_values, where)
        if not text.strip():
            blank.setdefault("text", []).append(number)
        if form is not None and isinstance(label, str) and not label.strip():
            blank.setdefault("label", []).append(number)
        numbers.append(number)
        texts.append(text if columns.read is None or not text.strip() else _message(text, where, source, columns.read))
        labels.append(label)
        count += 1
    for what, found in blank.items():
        named = ", ".join(map(str, found[:NAMED])) + (f" and {len(found) - NAMED} more" if len(found) > NAMED else "")
        raise DataError(
            f"{source}: {unit}{'s' if len(found) > 1 else ''} {named}: blank {what}",
            "fill or remove what is blank",
        )
    if not count:
        raise DataError(f"{source}: has no rows")
    return Table(source, texts.done(), None if form is None else labels.done(), numbers.done(), unit)


def gathered_labels() -> Gathering[Label]:
    """A gathering of labels."""
    return Gathering(lambda label: json.dumps(label).encode(), lambda content: label_from_json(json.loads(content)))


def gathered_rows() -> Gathering[int]:
    """A gathering of the numbers of rows."""
    return Gathering(lambda number: str(number).encode(), int)


def _message(field: str, where: str, source: str, read: Callable[[str, Path], str]) -> str:
    """The message that a field stands for, whose error says where the field stands."""
    try:
        return read(field, Path(source).parent)
    except DataError as error:
        raise DataError(f"{where}: {error.message}", error.hint) from None


def missing_column(where: str, columns: Columns, known: Sequence[str]) -> DataError | None:
    """The error for the first column that is not among the known ones; None where all are there."""
    for key, wanted in (("text", columns.text), *(("label", name) for name in columns.labels)):
        if wanted in known:
            continue
        close = nearest(wanted, known)
        meant = f"; did you mean {close!r}?" if close else ""
        there = ", ".join(map(repr, known)) or "none"
        hint = columns.hint or f"name the {key} column: -s data.{key}=NAME with a recipe, else --{key} NAME"
        return DataError(f"{where}: no column {wanted!r} (there are: {there}){meant}", hint)
    return None
