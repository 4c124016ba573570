"""Labels of rows: one class, or spans; every way to write them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.data.checks import check_data, check_table
from deploykit.data.dataset import hold_out, load_data
from deploykit.data.labels import OneClass, Span, classes_of, label_from_json, shown_label
from deploykit.data.marks import MarkedSpans
from deploykit.data.readers import read_rows
from deploykit.data.table import Columns, Table
from deploykit.errors import DataError
from deploykit.recipe import Data

FORM = MarkedSpans(("entities",))
PARTS = MarkedSpans(("type", "start", "end"))
TEXT = "Send it to Zoë in Kraków 🙏 please"
ZOE, CITY = Span(11, 14, "person"), Span(18, 24, "city")


def read(value: object, text: str = TEXT) -> tuple[Span, ...]:
    return FORM.read(text, [value], "f.csv: line 2")


def test_spans_as_json_are_read_in_their_order() -> None:
    value = [{"start": 18, "end": 24, "label": "city"}, {"start": 11, "end": 14, "type": "person"}]
    assert read(json.dumps(value)) == (ZOE, CITY)
    assert read(value) == (ZOE, CITY)  # as a .jsonl or Parquet file has them
    assert [TEXT[span.start : span.end] for span in read(value)] == ["Zoë", "Kraków"]


@pytest.mark.parametrize("value", ["", None, "[]", [], float("nan")])
def test_a_row_without_spans_has_none(value: object) -> None:
    assert read(value) == ()


def test_one_span_in_three_columns() -> None:
    assert PARTS.read(TEXT, ["city", "18", "24"], "f") == (CITY,)
    assert PARTS.read(TEXT, ["city", 18, 24.0], "f") == (CITY,)
    assert PARTS.read(TEXT, ["", "", ""], "f") == ()
    assert PARTS.read(TEXT, [None, float("nan"), None], "f") == ()


def test_a_tag_for_each_word() -> None:
    tags = "O O O B-person O S-city O O"
    assert read(tags) == (ZOE, CITY)
    assert read(tags.split()) == (ZOE, CITY)
    assert read("B-a I-a B-a I-b", "one two  three four") == (Span(0, 7, "a"), Span(9, 14, "a"), Span(15, 19, "b"))


def test_spaces_at_the_ends_of_a_span_do_not_belong_to_it() -> None:
    assert read([{"start": 10, "end": 15, "label": "person"}]) == (ZOE,)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([{"start": 11, "end": 99, "label": "x"}], r"the span 11-99 \(x\) is beyond the text, which has 33 characters"),
        ([{"start": -1, "end": 4, "label": "x"}], "is beyond the text"),
        ([{"start": 4, "end": 4, "label": "x"}], r"the span 4-4 \(x\) covers nothing"),
        ([{"start": 9, "end": 4, "label": "x"}], "covers nothing"),
        ([{"start": 4, "end": 5, "label": "x"}], "covers nothing"),  # a space
        ([{"start": 0, "end": 7, "label": "x"}, {"start": 5, "end": 9, "label": "y"}], r"overlaps 0-7 \(x\)"),
        ([{"start": "a", "end": 4, "label": "x"}], "'entities.start' must be a whole number, not 'a'"),
        ([{"start": 1.5, "end": 4, "label": "x"}], "must be a whole number"),
        ([{"start": 10**400, "end": 4, "label": "x"}], "must be a whole number"),
        ([{"start": True, "end": 4, "label": "x"}], "must be a whole number"),
        ([{"start": 0, "end": 4, "label": " "}], "has no label"),
        ([{"start": 0, "end": 4}], "has no label"),
        ([{"start": 0, "end": 4, "label": "a\nb"}], "line break"),
        ([7], "must be an object, not int"),
        ({"start": 0}, "must be a list of spans, not dict"),
        ("[{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("O O", "2 tags in 'entities' for 8 words"),
        ("O O O Z-person O O O O", "'Z-person' in 'entities' is no tag"),
    ],
)
def test_row_32_spans_that_can_not_be_used_are_refused_with_their_place(value: object, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read(value)
    assert str(caught.value).startswith("f.csv: line 2: ")


def test_a_span_in_columns_is_whole_or_absent() -> None:
    with pytest.raises(DataError, match="a span without a label in 'type'"):
        PARTS.read(TEXT, ["", 1, 2], "f")
    with pytest.raises(DataError, match="'end' must be a whole number, not None"):
        PARTS.read(TEXT, ["city", 1, ""], "f")


def test_row_32_the_file_and_line_are_named(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,type,start,end\nhello there,,,\nhello you,name,6,99\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"data.csv: line 3: the span 6-99 \(name\) is beyond"):
        read_rows(str(path), Columns("text", PARTS))
    with pytest.raises(DataError, match="no column 'label_start'"):
        read_rows(str(path), Columns("text", MarkedSpans(("type", "label_start", "end"))))


@given(st.text(min_size=1), st.data())
def test_whatever_is_read_covers_text_and_overlaps_nothing(text: str, data: st.DataObject) -> None:
    numbers = st.integers(-2, len(text) + 2)
    value = [
        {"start": data.draw(numbers), "end": data.draw(numbers), "label": "x"}
        for _ in range(data.draw(st.integers(0, 3)))
    ]
    try:
        found = read(value, text)
    except DataError:
        return
    assert len(found) == len(value)
    ends = [0, *(span.end for span in found)]
    for before, span in zip(ends, found, strict=False):
        covered = text[span.start : span.end]
        assert before <= span.start < span.end <= len(text)
        assert covered == covered.strip() != ""


def test_labels_survive_json_and_are_counted_by_class() -> None:
    for label in ("cancel", (ZOE, CITY), ()):
        assert label_from_json(json.loads(json.dumps(label))) == label
    assert classes_of("cancel") == ("cancel",)
    assert classes_of((ZOE, CITY, ZOE)) == ("person", "city", "person")
    assert shown_label((ZOE, CITY)) == "person 11-14, city 18-24"
    assert FORM.outputs(["person", "city"]) == ("O", "B-city", "I-city", "B-person", "I-person")
    assert OneClass().outputs(["b", "a"]) == ("a", "b")


def test_checks_count_spans_and_name_unknown_classes() -> None:
    def table(source: str, *labels: tuple[Span, ...]) -> Table:
        texts = tuple(f"{TEXT} {source} {number}" for number in range(len(labels)))
        return Table(source, texts, labels, tuple(range(1, len(labels) + 1)))

    train = table("train", (ZOE,), (ZOE, CITY), (), ())
    assert check_table(train).classes == {"city": 1, "person": 2}
    report = check_data(train, table("validation", (ZOE,)), table("test", (ZOE,)), strict=False)
    assert "classes without a test row, so not measured: 'city'" in report.warnings
    with pytest.raises(DataError, match=r"labels that the training rows lack: 'date' \(row 1\)"):
        check_data(train, table("validation", (Span(0, 4, "date"),)), table("test", ()), strict=False)
    with pytest.raises(DataError, match="no row has a label or a marked span"):
        check_table(table("train", (), ()))
    kept, held = hold_out(table("train", *[(ZOE,), (CITY,), ()] * 20), 0.25, 0, "test")
    assert (len(kept), len(held)) == (45, 15)
    assert check_table(held).classes == {"city": 5, "person": 5}


def test_the_sample_has_its_entities() -> None:
    section = Data(train="sample:support/train", test="sample:support/test", label="entities")
    data, report = load_data(section, 0, form=MarkedSpans(("entities",)))
    assert report.test.classes["order_number"] > 100
    assert data.label_names[:3] == ("O", "B-amount", "I-amount")

    def values(table: Table) -> set[str]:
        return {
            text[span.start : span.end].casefold()
            for text, label in zip(table.texts, table.labels or (), strict=True)
            for span in label
            if isinstance(span, Span)
        }

    assert not values(data.train) & values(data.test)
