"""What labelled messages are like, and what is wrong with them."""

from __future__ import annotations

__all__ = [
    "DataReport", "LeakedText", "Leakage", "Lengths", "TableReport", "check_data", "check_table", "leakage",
    "no_better_than_one_answer",
]  # fmt: skip

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploykit.data.labels import Label, classes_of, shown_label
from deploykit.data.table import Table
from deploykit.errors import DataError

EXAMPLES = 3  # leaked texts that are kept
NAMED = 5  # labels that one message names
SHOWN = 60  # characters of a text that a message quotes


@dataclass(frozen=True)
class Lengths:
    """Lengths of messages, in words."""

    shortest: int
    median: int
    p95: int
    longest: int


@dataclass(frozen=True)
class TableReport:
    """One table: its rows, the rows (or spans) of each class, the lengths, and how many rows repeat an earlier text."""

    source: str
    rows: int
    classes: Mapping[str, int]
    lengths: Lengths
    repeated: int


@dataclass(frozen=True)
class LeakedText:
    """A test message that was also seen in training, and where both stand."""

    text: str
    seen_at: str
    test_at: str


@dataclass(frozen=True)
class Leakage:
    """How many test rows have a text that was also seen in training, with a few examples."""

    count: int
    examples: tuple[LeakedText, ...]


@dataclass(frozen=True)
class DataReport:
    """What the data are like, and what a person should look at; plain values only, so that it can be stored as JSON."""

    train: TableReport
    validation: TableReport
    test: TableReport
    leakage: Leakage
    warnings: tuple[str, ...]


def check_data(train: Table, validation: Table, test: Table, *, strict: bool) -> DataReport:
    """The report on data that can be used; with `strict`, leakage into the test rows is an error.

    Raises:
        DataError: the training rows have one class only, the other rows have a class that they lack, or leakage.
    """
    reports = check_table(train), _described(validation), _described(test)
    for table in (validation, test):
        _refuse_unknown_labels(table, reports[0].classes)
    leaked = leakage((train, validation), test)
    if leaked.count and strict:
        raise DataError(
            _leakage_in_words(leaked, test), "remove these rows from one of the two, or take -s data.strict=false"
        )
    warnings = [_leakage_in_words(leaked, test)] if leaked.count else []
    if validation.source != train.source and (into_validation := leakage((train,), validation)).count:
        warnings.append(_leakage_in_words(into_validation, validation))
    warnings += _conflicts((train, validation, test))
    warnings += _similar_labels(reports[0].classes)
    warnings += _unmeasured(reports[0], reports[2])
    return DataReport(*reports, leakage=leaked, warnings=tuple(warnings))


def check_table(table: Table) -> TableReport:
    """The report on training rows.

    Raises:
        DataError: all rows have the same label, or none has a span.
    """
    report = _described(table)
    if not report.classes:
        raise DataError(
            f"{table.source}: no row has a label or a marked span",
            "name the column that holds them: -s data.label=NAME with a recipe, else --label NAME",
        )
    if len(report.classes) < 2 and isinstance(_labels(table)[0], str):
        label = next(iter(report.classes))
        rows = f"all {report.rows} rows ({table.unit} {table.rows[0]} to {table.rows[-1]}) have the label {label!r}"
        raise DataError(f"{table.source}: {rows}", "a classifier needs rows of two classes or more")
    return report


def leakage(seen: Sequence[Table], test: Table) -> Leakage:
    """The test rows whose text also stands in one of the tables seen before, upper and lower case and spaces aside."""
    wanted = {_normalised(text) for text in test.texts}  # the shorter side: training rows may be too many for memory
    places = {
        known: table.at(index)
        for table in seen
        for index, text in enumerate(table.texts)
        if (known := _normalised(text)) in wanted
    }
    found = [index for index, text in enumerate(test.texts) if _normalised(text) in places]
    examples = (
        LeakedText(test.texts[index], places[_normalised(test.texts[index])], test.at(index))
        for index in found[:EXAMPLES]
    )
    return Leakage(count=len(found), examples=tuple(examples))


def no_better_than_one_answer(table: Table, metric: str, value: float) -> str | None:
    """What to say of a model that scores no more on rows of one class each than their commonest class would; else None.

    Args:
        table: the rows.
        metric: its name; one that such an answer brings the share of its rows at least, as accuracy and recall@1.
        value: what the model scored, a fraction.
    """
    counts = Counter(label for label in _labels(table) if isinstance(label, str))
    if counts.total() < len(table):
        return None
    label, rows = counts.most_common(1)[0]
    if value > rows / len(table):
        return None
    return (
        f"{metric} {value:.2%} on validation is no more than {label!r} for every message would score"
        f" ({rows / len(table):.2%}): nothing was learned; more epochs, another learning rate, or other data may help"
    )


def _described(table: Table) -> TableReport:
    classes = dict(sorted(Counter(name for label in _labels(table) for name in classes_of(label)).items()))
    words = np.sort(np.fromiter((len(text.split()) for text in table.texts), dtype=np.int64, count=len(table)))
    shares = (0, len(words) // 2, int(0.95 * (len(words) - 1)), -1)
    lengths = Lengths(*(int(words[place]) for place in shares))
    distinct = len(np.unique(_keys(table)))
    return TableReport(table.source, len(table), classes, lengths, len(table) - distinct)


def _labels(table: Table) -> Sequence[Label]:
    if table.labels is None:
        raise DataError(f"{table.source}: was read without labels")
    return table.labels


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())


def _keys(table: Table) -> NDArray[np.int64]:
    """A number for each text, equal for texts that are equal but for case and spaces, and hardly ever for others."""
    return np.fromiter((hash(_normalised(text)) for text in table.texts), dtype=np.int64, count=len(table))


def _refuse_unknown_labels(table: Table, known: Mapping[str, int]) -> None:
    first_rows: dict[str, int] = {}
    for index, label in enumerate(_labels(table)):
        for name in classes_of(label):
            if name not in known:
                first_rows.setdefault(name, table.rows[index])
    if first_rows:
        named = _listed([f"{label!r} ({table.unit} {row})" for label, row in first_rows.items()])
        raise DataError(
            f"{table.source}: labels that the training rows lack: {named}",
            "correct the labels, or add training rows of these classes",
        )


def _leakage_in_words(leaked: Leakage, table: Table) -> str:
    example = leaked.examples[0]
    return (
        f"{leaked.count} of {len(table)} texts of {table.source} were also seen in training,"
        f" e.g. {_shown(example.text)} ({example.test_at}; {example.seen_at})"
    )


def _conflicts(tables: Sequence[Table]) -> list[str]:
    """Texts that stand with more than one label."""
    first: dict[str, tuple[Label, str]] = {}
    found: dict[str, str] = {}
    keys, counts = np.unique(np.concatenate([_keys(table) for table in tables]), return_counts=True)
    repeated = set(keys[counts > 1].tolist())
    for table in tables:
        for index, (text, label) in enumerate(zip(table.texts, _labels(table), strict=True)):
            key = _normalised(text)
            if hash(key) not in repeated:
                continue
            known_label, known_at = first.setdefault(key, (label, table.at(index)))
            if label != known_label and key not in found:
                ours, theirs = shown_label(known_label), shown_label(label)
                found[key] = f"{_shown(text)} is {ours} ({known_at}) and {theirs} ({table.at(index)})"
    return [f"{len(found)} texts have more than one label, e.g. {next(iter(found.values()))}"] if found else []


def _similar_labels(classes: Mapping[str, int]) -> list[str]:
    by_form: dict[str, list[str]] = {}
    for label in classes:
        by_form.setdefault(_normalised(label), []).append(label)
    alike = [" and ".join(map(repr, labels)) for labels in by_form.values() if len(labels) > 1]
    return [f"labels that differ only in case or spaces: {_listed(alike)}"] if alike else []


def _unmeasured(train: TableReport, test: TableReport) -> list[str]:
    absent = [repr(label) for label in train.classes if label not in test.classes]
    return [f"classes without a test row, so not measured: {_listed(absent)}"] if absent else []


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items[:NAMED]) + (f" and {len(items) - NAMED} more" if len(items) > NAMED else "")


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
