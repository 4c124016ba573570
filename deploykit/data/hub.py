"""Rows of a data set on the Hugging Face hub, through the optional `datasets` package."""

from __future__ import annotations

__all__ = ["read_hub"]

import re
from collections.abc import Iterator
from typing import Any

from deploykit.data.table import Columns, RawRow, Table, missing_column, table_from_rows
from deploykit.errors import DataError, MissingDependencyError

REFERENCE = re.compile(r"hub:(?P<name>[^@:]+)(?:@(?P<config>[^@:]+))?:(?P<split>.+)")


def read_hub(reference: str, columns: Columns) -> Table:
    """The rows of `hub:DATASET[@CONFIG]:SPLIT`; labels that are class numbers become the classes' names.

    Raises:
        DataError: the reference is malformed, or the data set can't be had or used.
        MissingDependencyError: the `datasets` package is not installed.
    """
    found = REFERENCE.fullmatch(reference)
    if found is None:
        raise DataError(f"{reference}: not a reference to a hub data set", "write hub:DATASET[@CONFIG]:SPLIT")
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"{reference}: a hub data set needs the datasets package", "pip install 'deploykit[datasets]'"
        ) from error
    try:
        rows = datasets.load_dataset(found["name"], found["config"], split=found["split"])
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(f"{reference}: can't be loaded: {lines[0]}") from error
    if missing := missing_column(reference, columns, rows.column_names):
        raise missing
    return table_from_rows(reference, "row", columns, _rows(rows, columns))


def _rows(rows: Any, columns: Columns) -> Iterator[RawRow]:
    names = [getattr(rows.features[name], "names", None) for name in columns.labels]
    for number, row in enumerate(rows.select_columns([columns.text, *columns.labels]), start=1):
        values = [row[name] for name in columns.labels]
        for place, classes in enumerate(names):
            if classes is not None and values[place] is not None:
                values[place] = classes[values[place]] if values[place] >= 0 else None  # -1 stands for "not labelled"
        yield number, row[columns.text], values
