"""The shipped questions: what they promise, and that each has one answer in its passage or none."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from deploykit.data.marks import AnswerInContext
from deploykit.data.readers import read_rows
from deploykit.data.sample import question_rows
from deploykit.data.sample.questions import UNANSWERED
from deploykit.data.sample.templates import load_facts
from deploykit.data.table import Columns
from deploykit.errors import DataError

DIGEST = "89ecfb2dd6363b2efcebe3d981a208d8fddfe9ae8b4eb178bc2aaa56e97888b1"
FACTS = load_facts()
VALUES = FACTS.pop("values")


def test_the_rows_are_as_many_as_promised_and_always_the_same() -> None:
    train, test = (question_rows(split) for split in ("train", "test"))
    assert (len(train), len(test)) == (2000, 1500)
    said = "\n".join(f"{row.text}|{row.start}|{row.end}" for row in (*train, *test))
    assert hashlib.sha256(said.encode()).hexdigest() == DIGEST
    texts = [row.text for row in (*train, *test)]
    assert len(set(texts)) == len(texts)
    for rows in (train, test):
        assert sum(not row.end for row in rows) / len(rows) == pytest.approx(UNANSWERED, abs=0.04)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_passage_answers_its_question_once_or_not_at_all(split: str) -> None:
    asking = {question: name for name, fact in FACTS.items() for question in fact["asked"][split]}
    for row in question_rows(split):  # type: ignore[arg-type]
        question, _, passage = row.text.partition("\n")
        fact = FACTS[asking[question]]
        there = [value for value in VALUES[fact["kind"]][split] if fact["said"][split].replace("{}", value) in passage]
        assert there == ([row.text[row.start : row.end]] if row.end else [])


def test_splits_share_no_question_no_stated_sentence_and_no_answer() -> None:
    for fact in FACTS.values():
        assert FACTS[fact["beside"]]
        assert not set(fact["asked"]["train"]) & set(fact["asked"]["test"])
        assert fact["said"]["train"] != fact["said"]["test"]
    for kind in VALUES.values():
        assert not set(kind["train"]) & set(kind["test"])


def test_they_are_read_as_any_file_is() -> None:
    table = read_rows("sample:questions/test", Columns("text", AnswerInContext(("answer",))))
    rows = question_rows("test")
    assert table.texts == tuple(row.text for row in rows)
    assert [tuple(label)[:2] for label in table.labels or ()] == [(row.start, row.end) for row in rows]
    answered = next(row for row in rows if row.end)
    assert json.loads(answered.answer) == [{"start": answered.start, "end": answered.end, "label": "answer"}]
    assert {row.answer for row in rows if not row.end} == {"[]"}


def test_a_column_of_other_labels_is_named_and_not_read_as_tags(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text,label\n"who?\nit was Zoë",refund\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 2: 'label' marks no answer: 'refund'"):
        read_rows(str(path), Columns("text", AnswerInContext(("label",))))
