"""The data section of a recipe, read, split and checked."""

from __future__ import annotations

__all__ = ["LabelledData", "hold_out", "load_data", "load_training_data", "located"]

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deploykit.data.checks import DataReport, check_data, check_table
from deploykit.data.labels import LabelForm, OneClass, classes_of
from deploykit.data.readers import local_file, read_rows
from deploykit.data.spill import gathered_texts
from deploykit.data.splits import draw_per_class, split_validation
from deploykit.data.table import Columns, Table
from deploykit.errors import DataError
from deploykit.recipe.schema import Data


@dataclass(frozen=True)
class LabelledData:
    """Messages to train on, to choose on and to certify on, and their labels in the order of the model's outputs.

    `unlabelled` are messages more, which a pruned model learns from.
    """

    train: Table
    validation: Table
    test: Table
    label_names: tuple[str, ...]
    unlabelled: Sequence[str] = ()

    def with_labels(self, names: Sequence[str]) -> LabelledData:
        """The rows of these labels, with the names as those of the model's outputs.

        Raises:
            DataError: a split has no row of them.
        """
        known = set(names)

        def of_these(table: Table) -> Table:
            rows = [row for row, label in enumerate(table.labels or ()) if known.issuperset(classes_of(label))]
            if not rows:
                raise DataError(
                    f"{table.source}: no row has one of the {len(names)} entries as its label",
                    "the labels of the rows are the labels of the entries: data.label names the column in both",
                )
            return table if len(rows) == len(table) else table.take(rows)

        train, validation, test = map(of_these, (self.train, self.validation, self.test))
        return replace(self, train=train, validation=validation, test=test, label_names=tuple(names))


def load_data(
    section: Data,
    seed: int,
    base: Path = Path(),
    form: LabelForm | None = None,
    read: Callable[[str, Path], str] | None = None,
) -> tuple[LabelledData, DataReport]:
    """The data that a recipe names, and the report on them.

    A relative file is looked for in `base`, then in the current folder. Where `test` or `validation` is a fraction it
    is held out of the training rows, each class in its proportion; `test` first. Unlabelled messages that are among the
    test or validation rows are left out.

    Of the rows that are left `per_label` of each label are drawn, where the section says so.

    Args:
        section: the recipe's `data` section.
        seed: of the rows that are held out.
        base: the folder that relative files are looked for in first.
        form: how labels are written down; one class a row unless told.
        read: the message that a field stands for (`Columns.read`).

    Raises:
        DataError: the data can't be read or used; names the file and row.
        MissingDependencyError: a hub data set without the `datasets` extra.
    """
    form = form or OneClass(section.label if isinstance(section.label, str) else section.label[0])
    columns = Columns(section.text, form, read=read)
    train = read_rows(located(section.train, base), columns)
    label_names = form.outputs(tuple(check_table(train).classes))
    parts: dict[str, Table] = {}
    for part, wanted in (("test", section.test), ("validation", section.validation)):
        if isinstance(wanted, str):
            parts[part] = read_rows(located(wanted, base), columns)
        else:
            train, parts[part] = hold_out(train, wanted, seed, part)
    if section.per_label is not None:
        train = train.take(draw_per_class(_classes(train), section.per_label, seed).tolist())
    report = check_data(train, parts["validation"], parts["test"], strict=section.strict)
    reference = section.unlabelled and located(section.unlabelled, base)
    unlabelled = _unlabelled(reference, columns, tuple(parts.values()))
    return LabelledData(train, parts["validation"], parts["test"], label_names, unlabelled), report


def _unlabelled(reference: str | None, columns: Columns, held_out: tuple[Table, ...]) -> Sequence[str]:
    if reference is None:
        return ()
    known = {message for table in held_out for message in table.texts}
    found = gathered_texts()
    messages = read_rows(reference, replace(columns, label=None)).texts
    found.extend(message for message in messages if message not in known)
    return found.done()


def located(reference: str, base: Path) -> str:
    """A reference whose relative file is looked for in `base` first, then in the current folder."""
    path = local_file(reference)
    return str(base / path) if path is not None and (base / path).exists() else reference


def load_training_data(
    train: str, validation: float | str, columns: Columns, seed: int, *, unlabelled: str | None = None
) -> LabelledData:
    """Rows to train on and rows to watch, for a training by itself; the latter stand in for the test rows too.

    Raises:
        DataError: the data can't be read or used; names the file and row.
    """
    rows = read_rows(train, columns)
    form = columns.form or OneClass()
    label_names = form.outputs(tuple(check_table(rows).classes))
    if isinstance(validation, str):
        watched = read_rows(validation, columns)
    else:
        rows, watched = hold_out(rows, validation, seed, "validation")
    check_data(rows, watched, watched, strict=False)
    more = _unlabelled(unlabelled, columns, (watched,))
    return LabelledData(rows, watched, watched, label_names, more)


def hold_out(train: Table, fraction: float, seed: int, part: str) -> tuple[Table, Table]:
    """The rows that stay and those held out, each class in its proportion.

    Raises:
        DataError: too few rows to hold any out.
    """
    kept, held_out = split_validation(_classes(train), fraction, seed)
    if len(held_out) == 0:
        raise DataError(
            f"{train.source}: {len(train)} rows are too few to hold out {fraction:.0%} of them, each class keeping one",
            f"add rows, or name a file: -s data.{part}=FILE",
        )
    return train.take(kept.tolist()), train.take(held_out.tolist())


def _classes(table: Table) -> list[str]:
    """What each row is counted under when rows are drawn: its class, or all of its classes together."""
    return [sys.intern(" ".join(sorted(set(classes_of(label))))) for label in table.labels or ()]
