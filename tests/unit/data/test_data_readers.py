"""Reading rows: formats, and what each kind of damage says."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from deploykit.data.readers import local_file, read_rows
from deploykit.data.table import Columns, Table
from deploykit.errors import DataError, MissingDependencyError

COLUMNS = Columns()
ROWS = (("where is my card", "card"), ('she said "no",\nthen left', "other"), ("\u20ac5 \U0001f642", "money"))


def refusal(reference: str | Path, columns: Columns = COLUMNS) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(str(reference), columns)
    return str(caught.value)


def csv_file(folder: Path, content: bytes, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def as_csv(path: Path) -> None:
    path.write_bytes(
        'text,label\nwhere is my card,card\n"she said ""no"",\nthen left",other\n\u20ac5 \U0001f642,money\n'.encode()
    )


def as_tsv(path: Path) -> None:
    path.write_bytes(
        b'text\tlabel\r\nwhere is my card\tcard\r\n"she said ""no"",\nthen left"\tother\r\n'
        + "\u20ac5 \U0001f642\tmoney".encode()
    )


def as_jsonl(path: Path) -> None:
    path.write_text("\n\n".join(json.dumps({"text": text, "label": label}) for text, label in ROWS), encoding="utf-8")


def as_json(path: Path) -> None:
    path.write_text(json.dumps([{"text": text, "label": label} for text, label in ROWS], indent=1), encoding="utf-8")


def as_parquet(path: Path) -> None:
    table = pa.table(
        {"text": [row[0] for row in ROWS], "label": pa.array([row[1] for row in ROWS]).dictionary_encode()}
    )
    parquet.write_table(table, path)


@pytest.mark.parametrize(
    ("name", "write", "rows"),
    [
        ("rows.csv", as_csv, (2, 3, 5)),
        ("rows.TSV", as_tsv, (2, 3, 5)),
        ("rows.jsonl", as_jsonl, (1, 3, 5)),
        ("rows.json", as_json, (1, 2, 3)),
        ("rows.parquet", as_parquet, (1, 2, 3)),
    ],
)
def test_each_format_gives_the_same_rows(
    tmp_path: Path, name: str, write: Callable[[Path], None], rows: tuple[int, ...]
) -> None:
    write(tmp_path / name)
    table = read_rows(str(tmp_path / name), COLUMNS)
    assert tuple(zip(table.texts, table.labels or (), strict=True)) == ROWS
    assert table.rows == rows
    assert table.source == str(tmp_path / name)
    assert read_rows(str(tmp_path / name), Columns(label=None)).labels is None


def test_a_table_says_where_a_message_stands(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    as_csv(path)
    table = read_rows(str(path), COLUMNS)
    assert table.at(2) == f"{path}: line 5"
    assert table.take([2, 0]) == Table(str(path), (ROWS[2][0], ROWS[0][0]), ("money", "card"), rows=(5, 2), unit="line")


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = csv_file(tmp_path, b"\xef\xbb\xbftext,label\nhi,a\n")
    assert read_rows(str(path), COLUMNS).texts == ("hi",)


def test_labels_that_are_numbers_or_truth_values_become_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": 7}\n{"text": "b", "label": true}\n')
    assert read_rows(str(path), COLUMNS).labels == ("7", "true")


def test_long_fields_are_read(tmp_path: Path) -> None:
    path = csv_file(tmp_path, b"text,label\n" + b"x" * 1_000_000 + b",a\n")
    assert len(read_rows(str(path), COLUMNS).texts[0]) == 1_000_000


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl", "rows.json", "rows.parquet"])
def test_row_32_an_empty_file(tmp_path: Path, name: str) -> None:
    said = refusal(csv_file(tmp_path, b"", name))
    assert said.startswith(f"{tmp_path / name}: ")
    assert any(words in said for words in ("is empty", "has no rows", "not a readable Parquet file"))


def test_row_32_a_file_with_nothing_but_its_header(tmp_path: Path) -> None:
    path = csv_file(tmp_path, b"text,label\n\n")
    assert refusal(path) == f"{path}: has no rows"
    parquet.write_table(
        pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}), tmp_path / "r.parquet"
    )
    assert refusal(tmp_path / "r.parquet") == f"{tmp_path / 'r.parquet'}: has no rows"


def test_row_32_a_missing_column_names_those_that_exist_and_the_nearest(tmp_path: Path) -> None:
    path = csv_file(tmp_path, b"id,Text,category\n1,hi,a\n")
    said = refusal(path)
    assert said.startswith(
        f"{path}: line 1: no column 'text' (there are: 'id', 'Text', 'category'); did you mean 'Text'?"
    )
    assert "-s data.text=NAME with a recipe, else --text NAME" in said
    assert "no column 'label'" in refusal(path, Columns(text="Text"))
    jsonl = csv_file(tmp_path, b'{"text": "a", "label": "b"}\n{"text": "a", "labels": "b"}\n', "rows.jsonl")
    assert refusal(jsonl).startswith(f"{jsonl}: line 2: no column 'label' (there are: 'text', 'labels')")
    parquet.write_table(pa.table({"text": ["a"], "intent": ["b"]}), tmp_path / "rows.parquet")
    assert "no column 'label' (there are: 'text', 'intent')" in refusal(tmp_path / "rows.parquet")


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_row_32_undecodable_bytes_name_row_and_offset(tmp_path: Path, name: str) -> None:
    rows = {
        "rows.csv": b'text,label\n"two\nlines",a\ncaf\xe9,b\n',
        "rows.jsonl": b'{"text": "a", "label": "b"}\n\n\n{"text": "caf\xe9"}\n',
    }
    path = csv_file(tmp_path, rows[name], name)
    offset = rows[name].index(b"\xe9")
    assert refusal(path).startswith(f"{path}: line 4: byte 0xe9 at offset {offset} is not UTF-8")


def test_row_32_undecodable_bytes_in_parquet_name_the_row(tmp_path: Path) -> None:
    texts = pa.array([b"fine", b"caf\xe9"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"text": texts, "label": ["a", "b"]}), tmp_path / "rows.parquet")
    assert refusal(tmp_path / "rows.parquet").startswith(f"{tmp_path / 'rows.parquet'}: row 2: undecodable bytes")


def test_row_32_utf16_is_told_apart(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "text,label\nhi,a\n".encode("utf-16"))
    assert refusal(path) == f"{path}: line 1: the file is UTF-16\n  hint: save it as UTF-8"


def test_row_32_blank_texts_name_their_lines(tmp_path: Path) -> None:
    path = csv_file(tmp_path, b'text,label\n"a\nb",x\n ,x\n"",x\nfine,y\n')
    assert refusal(path).startswith(f"{path}: lines 4, 5: blank text")
    many = csv_file(tmp_path, b"text,label\n" + b"  ,x\n" * 8)
    assert refusal(many).startswith(f"{many}: lines 2, 3, 4, 5, 6 and 3 more: blank text")


def test_row_32_blank_labels_name_their_lines(tmp_path: Path) -> None:
    path = csv_file(tmp_path, b'{"text": "a", "label": null}\n{"text": "b", "label": "x"}', "rows.jsonl")
    assert refusal(path).startswith(f"{path}: line 1: blank label")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"text,label\nfine,a\nha\0lf,b\n", "line 3: holds a NUL byte (offset 20)"),
        (b'text,label\nfine,a\na,b,c\n"x\ny"\n', "line 3: 3 fields where the header has 2"),
        (b'text,label\nfine,a\n"x\ny"\n', "line 3: 1 fields where the header has 2"),
        (b'text,label\nfine,a\n"never closed,b\nc,d\n', "line 3: a quoted field that begins in this record is never"),
        (b'text,label\n"half "quoted",b\n', "line 2: malformed quotes"),
        (b"text,label\rfine,a\r", "line 1: a carriage return outside quotes"),
        (b"text,text\na,b\n", "line 1: a column name is given twice: 'text', 'text'"),
        (b'text,label\nfine,"a\nb"\n', "line 2: 'label' holds a line break"),
        (b"text;label\na;b\n", "line 1: the columns are separated by semicolons"),
        (b"text\tlabel\na\tb\n", "line 1: the columns are separated by tabs"),
        (b"x" * (2**24 + 1), "line 1: longer than 16777216 bytes"),
        (b'text,label\n"' + (b"x" * 65_535 + b"\n") * 257, "line 2: a field is longer than 16777216 characters"),
    ],
)
def test_row_32_damaged_csv_names_the_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = csv_file(tmp_path, content)
    assert refusal(path).startswith(f"{path}: {said}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "a", "label": "b"}\n{"text": \n', "line 2: not valid JSON: Expecting value (column 9)"),
        (b'{"text": "a", "label": "b"}\n["a", "b"]\n', "line 2: must be an object with the keys 'text' and 'label'"),
        (b'{"text": "a\\ud800", "label": "b"}\n', "line 1: 'text' holds half of a character"),
        (b'{"text": "a\\u0000", "label": "b"}\n', "line 1: 'text' holds a NUL character"),
        (b'{"text": 5, "label": "b"}\n', "line 1: 'text' must be text, not int"),
        (b'{"text": "a", "label": 0.5}\n', "line 1: 'label' must be text, not 0.5"),
        (b'{"text": "a", "label": NaN}\n', "line 1: 'label' is missing"),
        (b'{"text": "a", "label": ' + b"9" * 5000 + b"}\n", "line 1: not usable JSON"),
        (b"[" * 100_000, "line 1: not usable JSON: nested too deeply"),
    ],
)
def test_row_32_damaged_jsonl_names_the_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = csv_file(tmp_path, content, "rows.jsonl")
    assert refusal(path).startswith(f"{path}: {said}")


def test_columns_that_nobody_asks_for_may_share_a_name(tmp_path: Path) -> None:
    """As the empty ones do that spreadsheets leave at the right."""
    path = csv_file(tmp_path, b"text,label,,\nfine,a,,\n")
    assert read_rows(str(path), Columns()).texts == ("fine",)


def test_row_32_damaged_json_and_parquet(tmp_path: Path) -> None:
    path = csv_file(tmp_path, b'[{"text": "a",\n "label": }]', "rows.json")
    assert refusal(path).startswith(f"{path}: not valid JSON: Expecting value (line 2, column 11)")
    path = csv_file(tmp_path, b'{"text": "a", "label": "b"}\n{"text": "c", "label": "d"}\n', "rows.json")
    assert "named .jsonl" in refusal(path)
    path = csv_file(tmp_path, b'{"text": "a", "label": "b"}', "rows.json")
    assert refusal(path).startswith(f"{path}: must be one list of objects")
    path = csv_file(tmp_path, b'[{"text": "a", "label": "b"}, {"text": " ", "label": "b"}]', "rows.json")
    assert refusal(path).startswith(f"{path}: row 2: blank text")
    path = csv_file(tmp_path, b"PAR1 not really", "rows.parquet")
    assert refusal(path).startswith(f"{path}: not a readable Parquet file: ")


def test_references_that_lead_nowhere(tmp_path: Path) -> None:
    assert "beside the recipe" in refusal(tmp_path / "absent.csv")
    assert "is a folder" in refusal(tmp_path)
    assert "unknown kind of file '.xlsx'" in refusal(csv_file(tmp_path, b"x", "rows.xlsx"))
    assert "can't be read" in refusal("x" * 5000 + ".csv")
    assert "known: sample:support/train, sample:support/test" in refusal("sample:suport/train")
    assert "write hub:DATASET[@CONFIG]:SPLIT" in refusal("hub:banking77")


def test_which_references_are_files() -> None:
    assert local_file("data/train.csv") == Path("data/train.csv")
    assert local_file("hub:PolyAI/banking77:train") is None
    assert local_file("sample:support/train") is None


def test_the_sample_data_are_read() -> None:
    table = read_rows("sample:support/test", COLUMNS)
    assert len(table) >= 1500
    assert table.at(0) == "sample:support/test: row 1"
    assert "no column 'intent' (there are: 'text', 'label', 'entities', 'intents')" in refusal(
        "sample:support/test", Columns(label="intent")
    )


class HubRows:
    """As much of a `datasets.Dataset` as the reader uses."""

    column_names = ("text", "label", "other")
    features = {"text": object(), "label": SimpleNamespace(names=["bad", "good"])}  # noqa: RUF012

    def select_columns(self, names: list[str]) -> list[dict[str, Any]]:
        rows = [{"text": "a", "label": 1, "other": 0}, {"text": "b", "label": 0, "other": 0}]
        return [{name: row[name] for name in names} for row in rows]


def test_class_numbers_of_a_hub_data_set_become_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    datasets: Any = ModuleType("datasets")
    datasets.exceptions = SimpleNamespace(DatasetsError=KeyError)

    def load_dataset(name: str, config: str | None, split: str) -> HubRows:
        asked.append((name, config, split))
        if split == "absent":
            raise ValueError("Unknown split\nmore")
        return HubRows()

    datasets.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    assert read_rows("hub:org/name@config:train[:10]", COLUMNS).labels == ("good", "bad")
    assert read_rows("hub:name:test", Columns(label=None)).texts == ("a", "b")
    assert asked == [("org/name", "config", "train[:10]"), ("name", None, "test")]
    assert refusal("hub:name:absent") == "hub:name:absent: can't be loaded: Unknown split"
    assert "no column 'lable'" in refusal("hub:name:test", Columns(label="lable"))


def test_a_hub_data_set_without_its_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError) as caught:
        read_rows("hub:org/name:train", COLUMNS)
    assert caught.value.hint == "pip install 'deploykit[datasets]'"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from([".csv", ".tsv", ".jsonl", ".json", ".parquet"]),
    start=st.sampled_from([b"", b"text,label\n", b'{"text": "a", "label": "b"}\n', b"PAR1"]),
    rest=st.binary(max_size=60) | st.text(alphabet='abtext,label\t\n\r"[]{}:1\\ ', max_size=60).map(str.encode),
)
def test_any_bytes_are_rows_or_a_data_error(tmp_path: Path, suffix: str, start: bytes, rest: bytes) -> None:
    path = csv_file(tmp_path, start + rest, f"rows{suffix}")
    try:
        table = read_rows(str(path), COLUMNS)
    except DataError as error:
        found: object = error.message
        sound = error.message.startswith(str(path))
    else:
        found, sound = table.texts, all(text.strip() for text in (*table.texts, *(table.labels or ())))
    assert sound, found
