"""Tables and texts as files of an artefact: a line of JSON for each row, so that they are never all in memory."""

from __future__ import annotations

__all__ = ["read_table", "read_texts", "write_table", "write_texts"]

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from deploykit.data.labels import label_from_json
from deploykit.data.spill import gathered_texts
from deploykit.data.table import Table, gathered_labels, gathered_rows


def write_table(path: Path, table: Table) -> None:
    """Write a table: a line about its source, then a list of number, text and label for each row."""
    labels = table.labels
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(_line({"source": table.source, "unit": table.unit, "labelled": labels is not None}))
        for index, (number, text) in enumerate(zip(table.rows, table.texts, strict=True)):
            file.write(_line([number, text, None if labels is None else labels[index]]))


def read_table(path: Path) -> Table:
    """The table that was written."""
    rows, texts, labels = gathered_rows(), gathered_texts(), gathered_labels()
    with path.open("rb") as file:
        about = json.loads(file.readline())
        for line in file:
            number, text, label = json.loads(line)
            rows.append(number)
            texts.append(text)
            if about["labelled"]:
                labels.append(label_from_json(label))
    return Table(
        about["source"], texts.done(), labels.done() if about["labelled"] else None, rows.done(), about["unit"]
    )


def write_texts(path: Path, texts: Iterable[str]) -> None:
    """Write texts, one a line, as JSON."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for text in texts:
            file.write(_line(text))


def read_texts(path: Path) -> Sequence[str]:
    """The texts that were written."""
    texts = gathered_texts()
    with path.open("rb") as file:
        texts.extend(map(json.loads, file))
    return texts.done()


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
