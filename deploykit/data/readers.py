"""From a data reference (a file, a hub data set, the sample data) to a table."""

from __future__ import annotations

__all__ = ["jsonl_rows", "local_file", "read_rows"]

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from deploykit.data.hub import read_hub
from deploykit.data.table import Columns, RawRow, Table, missing_column, table_from_rows
from deploykit.errors import DataError

LONGEST_LINE = 2**24  # bytes, and characters of a field: a longer one is a damaged file or a quote left open
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
PARQUET_BATCH_ROWS = 4096
_RECODE = "save the file as UTF-8; one from Windows: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"


def local_file(reference: str) -> Path | None:
    """The file that a reference names; None for `hub:` and `sample:` references."""
    return None if reference.startswith(("hub:", "sample:")) else Path(reference)


def read_rows(reference: str, columns: Columns) -> Table:
    """The messages and labels that a reference stands for.

    A reference is a file (.csv and .tsv with a header, .jsonl, .json with one list of objects, .parquet; text is
    UTF-8), `sample:support/train`, `sample:support/test`, or `hub:DATASET[@CONFIG]:SPLIT`. Labels that are whole
    numbers or truth values become text.

    Raises:
        DataError: the reference can't be read, a column is missing, or a row can't be used; names file and row.
        MissingDependencyError: a hub data set without the `datasets` extra.
    """
    path = local_file(reference)
    if path is None:
        return read_hub(reference, columns) if reference.startswith("hub:") else _read_sample(reference, columns)
    try:
        if path.is_dir():
            raise DataError(f"{reference}: is a folder, not a data file")
        match path.suffix.lower():
            case ".csv" | ".tsv" as suffix:
                rows = _csv_rows(path, columns, DELIMITERS[suffix])
                return table_from_rows(reference, "line", columns, rows)
            case ".jsonl":
                with path.open("rb") as handle:
                    return table_from_rows(reference, "line", columns, jsonl_rows(handle, path, columns))
            case ".json":
                return table_from_rows(reference, "row", columns, _json_rows(path, columns))
            case ".parquet":
                return table_from_rows(reference, "row", columns, _parquet_rows(path, columns))
            case suffix:
                raise DataError(f"{reference}: unknown kind of file {suffix!r}", f"known: {', '.join(SUFFIXES)}")
    except FileNotFoundError as error:
        hint = "a relative file is looked for in the current folder; one that a recipe names, beside the recipe first"
        raise DataError(f"{reference}: no such file", hint) from error
    except OSError as error:
        raise DataError(f"{reference}: can't be read: {error.strerror or error}") from error


def _read_sample(reference: str, columns: Columns) -> Table:
    from deploykit.data import sample

    marked, split = ("text", "label", "entities", "intents"), ("train", "test")
    parts: dict[str, tuple[Callable[[Any], Sequence[Any]], Sequence[str], Sequence[str]]] = {
        "support": (sample.support_rows, split, marked),
        "intents": (sample.intent_rows, split, marked),
        "faq": (sample.faq_rows, split, marked),
        "offers": (sample.offer_rows, split, ("text", "label")),
        "questions": (sample.question_rows, split, ("text", "answer")),
        "digits": (sample.digit_rows, split, ("text", "label")),
        "sentiment": (sample.sentiment_rows, split, ("text", "sentiment", "topic")),
        "stream": (sample.stream_rows, ("quiet", "surge"), ("time", "text", "sentiment", "topic")),
    }
    entries: dict[str, Callable[[], Sequence[Any]]] = {"faq": sample.faq_entries, "offers": sample.offer_entries}
    name, _, part = reference.removeprefix("sample:").partition("/")
    made, known, names = parts.get(name, (None, (), ()))
    if part == "entries" and name in entries:
        made, known, names = (lambda _: entries[name]()), ("entries",), ("text", "label", "answer")
    if made is None or part not in known:
        every = [f"sample:{each}/{part}" for each, (_, known, _) in parts.items() for part in known]
        more = [f"sample:{each}/entries" for each in entries]
        raise DataError(f"{reference}: no such sample", f"known: {', '.join([*every, *more])}")
    if error := missing_column(reference, columns, names):
        raise error
    rows = (
        (number, row.text, [getattr(row, name) for name in columns.labels])
        for number, row in enumerate(made(part), start=1)
    )
    return table_from_rows(reference, "row", columns, rows)


def _lines(handle: BinaryIO, source: Path | str) -> Iterator[tuple[int, str]]:
    """Numbered lines of UTF-8 text, with their ends; a byte order mark is skipped."""
    offset = number = 0
    while raw := handle.readline(LONGEST_LINE + 1):
        number += 1
        where = f"{source}: line {number}"
        if len(raw) > LONGEST_LINE:
            raise DataError(f"{where}: longer than {LONGEST_LINE} bytes: is this a text file?")
        if number == 1 and raw.startswith(UTF16_MARKS):
            raise DataError(f"{where}: the file is UTF-16", "save it as UTF-8")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            said = f"byte 0x{raw[error.start]:02x} at offset {offset + error.start} is not UTF-8"
            raise DataError(f"{where}: {said}", _RECODE) from error
        if "\0" in text:
            raise DataError(f"{where}: holds a NUL byte (offset {offset + raw.index(0)})")
        offset += len(raw)
        yield number, text.removeprefix("\ufeff") if number == 1 else text


def _csv_rows(path: Path, columns: Columns, delimiter: str) -> Iterator[RawRow]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    with path.open("rb") as handle:
        records = _csv_records(
            csv.reader((text for _, text in _lines(handle, path)), delimiter=delimiter, strict=True), path
        )
        line, header = next(records, (1, []))
        if not header:
            raise DataError(f"{path}: is empty")
        where = f"{path}: line {line}"
        if any(header.count(name) > 1 for name in (columns.text, *columns.labels)):  # others are passed over
            raise DataError(f"{where}: a column name is given twice: {', '.join(map(repr, header))}")
        if error := missing_column(where, columns, header):
            raise _other_separator(where, header, delimiter) or error
        text_at = header.index(columns.text)
        labels_at = [header.index(name) for name in columns.labels]
        for line, record in records:
            if len(record) != len(header):
                raise DataError(
                    f"{path}: line {line}: {len(record)} fields where the header has {len(header)}",
                    "a field that holds the separator must be quoted",
                )
            yield line, record[text_at], [record[place] for place in labels_at]


def _csv_records(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Records with the line that each begins on; empty lines are skipped."""
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path}: line {line}: {_csv_reason(str(error))}") from error
        if record is None:
            return
        if record:
            yield line, record


def _other_separator(where: str, header: Sequence[str], delimiter: str) -> DataError | None:
    """The error for a header that is one field, and would be several with another separator; else None."""
    for other, named in (";", "semicolons"), ("\t", "tabs"), (",", "commas"):
        if len(header) == 1 and other != delimiter and other in header[0]:
            suffix = next((suffix for suffix, known in DELIMITERS.items() if known == other), None)
            do = f"name the file {suffix}" if suffix else "save it with commas"
            return DataError(f"{where}: the columns are separated by {named}", do)
    return None


def _csv_reason(said: str) -> str:
    if "unexpected end" in said:
        return "a quoted field that begins in this record is never closed"
    if "field limit" in said:
        return f"a field is longer than {LONGEST_LINE} characters: is a quote left open?"
    if "new-line" in said:
        return "a carriage return outside quotes"
    return f"malformed quotes ({said}); a quote within a quoted field is written twice"


def jsonl_rows(handle: BinaryIO, source: Path | str, columns: Columns) -> Iterator[RawRow]:
    """The rows of an open file with an object of JSON on each line; blank lines are skipped.

    Raises:
        DataError: a line is no such object; names the source and the line.
    """
    for line, text in _lines(handle, source):
        if text.strip():
            where = f"{source}: line {line}"
            yield line, *_fields(_parsed(text.rstrip(), where), where, columns)


def _json_rows(path: Path, columns: Columns) -> Iterator[RawRow]:
    with path.open("rb") as handle:
        text = "".join(text for _, text in _lines(handle, path))
    if not text.strip():
        raise DataError(f"{path}: is empty")
    items = _parsed(text, str(path))
    if not isinstance(items, list):
        raise DataError(f"{path}: must be one list of objects", "name a file with an object on each line .jsonl")
    for row, item in enumerate(items, start=1):
        yield row, *_fields(item, f"{path}: row {row}", columns)


def _parsed(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        hint = "a file with an object on each line is named .jsonl" if error.msg == "Extra data" else None
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise DataError(f"{where}: not valid JSON: {error.msg} ({place})", hint) from error
    except RecursionError as error:
        raise DataError(f"{where}: not usable JSON: nested too deeply") from error
    except ValueError as error:
        raise DataError(f"{where}: not usable JSON: {error}") from error


def _fields(item: object, where: str, columns: Columns) -> tuple[object, list[object]]:
    if not isinstance(item, dict):
        keys = " and ".join(map(repr, (columns.text, *columns.labels)))
        raise DataError(f"{where}: must be an object with the keys {keys}")
    if error := missing_column(where, columns, list(item)):
        raise error
    return item[columns.text], [item[name] for name in columns.labels]


def _parquet_rows(path: Path, columns: Columns) -> Iterator[RawRow]:
    import pyarrow
    from pyarrow import parquet

    wanted = list(dict.fromkeys((columns.text, *columns.labels)))
    row = 0
    try:
        with parquet.ParquetFile(path) as file:
            if error := missing_column(str(path), columns, file.schema_arrow.names):
                raise error
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=wanted):
                texts = batch.column(columns.text)
                labels = [batch.column(name) for name in columns.labels]
                for place, text in enumerate(texts):
                    row += 1
                    yield row, text.as_py(), [column[place].as_py() for column in labels]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: row {row}: undecodable bytes ({error.reason} at offset {error.start})") from error
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}") from error
