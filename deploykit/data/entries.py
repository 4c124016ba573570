"""The entries of a FAQ: texts that stand for an answer, the answer's name, and its own text where there is one."""

from __future__ import annotations

__all__ = ["Entries", "entries_from_columns", "read_entries"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploykit.data.dataset import located
from deploykit.data.labels import OneClass, checked_text
from deploykit.data.readers import read_rows
from deploykit.data.table import Columns
from deploykit.errors import DataError, UsageError
from deploykit.recipe.schema import Data


@dataclass(frozen=True)
class Entries:
    """What a message is compared with.

    Attributes:
        texts: questions as they are asked, or other texts that stand for an answer.
        labels: the name of the answer to each.
        answers: the answers' own texts by name; none where the data has no column for them.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    answers: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the answers, sorted."""
        return tuple(sorted(set(self.labels)))


@dataclass(frozen=True)
class _Entry:
    """An answer's name in one column, and its text in another where there is one."""

    columns: tuple[str, ...]

    def read(self, text: str, values: Sequence[object], where: str) -> tuple[str, ...]:
        """The name and the text, empty where there is none."""
        name = OneClass(self.columns[0]).read(text, values, where)
        if not name.strip():
            raise DataError(f"{where}: blank label", "every entry names its answer")
        return name, checked_text(values[1], where, self.columns[1]) if len(values) > 1 else ""

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        return tuple(sorted(classes))


def read_entries(section: Data, base: Path = Path()) -> Entries:
    """The entries that a recipe names.

    Raises:
        UsageError: it names none, or several label columns.
        DataError: they can't be read or used; names the file and row.
    """
    if section.entries is None or not isinstance(section.label, str):
        raise UsageError("there are no entries to read", "name them in data.entries, and one column in data.label")
    return entries_from_columns(located(section.entries, base), section.text, section.label, section.answer)


def entries_from_columns(reference: str, text: str, label: str, answer: str | None) -> Entries:
    """The entries in a data reference.

    Args:
        reference: a file, `sample:faq/entries` or a hub data set.
        text: the column of the texts.
        label: that of the answers' names.
        answer: that of the answers' own texts, which may be blank where another row of the same name has it.

    Raises:
        DataError: they can't be read, all have one name, or a name has two different answers.
    """
    table = read_rows(reference, Columns(text, _Entry((label,) if answer is None else (label, answer))))
    labels, answers = [], dict[str, str]()
    for row, (name, said) in enumerate((str(each[0]), str(each[1])) for each in table.labels or ()):
        labels.append(name)
        if said.strip() and answers.setdefault(name, said) != said:
            raise DataError(f"{table.at(row)}: {name!r} has another answer above", "give each answer one text")
    if len(set(labels)) < 2:
        raise DataError(f"{table.source}: all entries have the label {labels[0]!r}", "two are needed at least")
    return Entries(tuple(table.texts), tuple(labels), answers)
