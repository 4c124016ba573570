"""What is said about labelled data, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from deploykit.data.checks import check_data, check_table, leakage, no_better_than_one_answer
from deploykit.data.dataset import load_data
from deploykit.data.table import Table
from deploykit.errors import DataError
from deploykit.recipe import Data


def table(name: str, *rows: tuple[str, str]) -> Table:
    texts, labels = zip(*rows, strict=True)
    return Table(name, texts, labels, rows=tuple(range(2, len(rows) + 2)), unit="line")


TRAIN = table("train.csv", ("one two", "a"), ("three", "b"), ("Four  five six", "a"), ("seven", "b"))
VALIDATION = table("train.csv", ("eight", "a"), ("nine", "b"))
TEST = table("test.csv", ("ten", "a"), ("eleven twelve", "b"))


def test_a_report_of_sound_data_has_counts_and_no_warnings() -> None:
    report = check_data(TRAIN, VALIDATION, TEST, strict=True)
    assert report.train.classes == {"a": 2, "b": 2}
    assert (report.train.rows, report.validation.rows, report.test.rows) == (4, 2, 2)
    lengths = report.train.lengths
    assert (lengths.shortest, lengths.median, lengths.p95, lengths.longest) == (1, 2, 2, 3)
    assert report.warnings == ()
    assert json.loads(json.dumps(asdict(report)))["test"]["source"] == "test.csv"


def test_row_32_one_class_only_names_file_and_rows() -> None:
    with pytest.raises(DataError, match=r"train\.csv: all 2 rows \(line 2 to 3\) have the label 'a'"):
        check_table(table("train.csv", ("x", "a"), ("y", "a")))


def test_row_33_leakage_is_warned_of_with_count_and_examples() -> None:
    test = table("test.csv", ("new", "a"), ("FOUR five\nsix ", "a"), ("nine", "b"), ("Three", "b"))
    report = check_data(TRAIN, VALIDATION, test, strict=False)
    assert report.leakage.count == 3
    first = report.leakage.examples[0]
    assert (first.text, first.seen_at, first.test_at) == (
        "FOUR five\nsix ",
        "train.csv: line 4",
        "test.csv: line 3",
    )
    assert report.warnings[0].startswith("3 of 4 texts of test.csv were also seen in training, e.g. 'FOUR five\\nsix '")


def test_row_33_leakage_is_an_error_when_strict() -> None:
    test = table("test.csv", ("three", "b"), ("new", "a"))
    with pytest.raises(DataError, match=r"1 of 2 texts of test\.csv were also seen in training, e\.g\. 'three'"):
        check_data(TRAIN, VALIDATION, test, strict=True)


def test_leakage_keeps_a_few_examples_of_many() -> None:
    rows = [(f"text {index}", "a") for index in range(50)]
    found = leakage((table("train.csv", *rows),), table("test.csv", *rows))
    assert (found.count, len(found.examples)) == (50, 3)


def test_a_validation_file_that_repeats_training_rows_is_warned_of() -> None:
    validation = table("dev.csv", ("three", "b"), ("new", "a"))
    report = check_data(TRAIN, validation, TEST, strict=True)
    assert report.warnings[0].startswith("1 of 2 texts of dev.csv were also seen in training")


def test_labels_that_training_lacks_are_named_with_their_rows() -> None:
    test = table("test.csv", ("x", "a"), ("y", "c"), ("z", "d"), ("w", "c"))
    with pytest.raises(
        DataError, match=r"test\.csv: labels that the training rows lack: 'c' \(line 3\), 'd' \(line 4\)"
    ):
        check_data(TRAIN, VALIDATION, test, strict=False)


def test_one_text_with_two_labels_is_warned_of() -> None:
    train = table("train.csv", ("same", "a"), ("Same", "b"), ("same", "b"), ("x", "b"))
    report = check_data(train, VALIDATION, TEST, strict=False)
    said = "1 texts have more than one label, e.g. 'Same' is 'a' (train.csv: line 2) and 'b' (train.csv: line 3)"
    assert report.warnings == (said,)
    assert report.train.repeated == 2


def test_labels_that_look_alike_and_classes_without_test_rows_are_warned_of() -> None:
    train = table("train.csv", ("x", "a"), ("y", "b"), ("z", "B "))
    report = check_data(train, VALIDATION, TEST, strict=False)
    assert report.warnings == (
        "labels that differ only in case or spaces: 'B ' and 'b'",
        "classes without a test row, so not measured: 'B '",
    )


def written(folder: Path, name: str, count: int, start: int = 0) -> str:
    rows = "".join(f"message {index},{'ab'[index % 2]}\n" for index in range(start, start + count))
    (folder / name).write_text("text,label\n" + rows)
    return name


def test_data_are_read_split_and_checked(tmp_path: Path) -> None:
    section = Data(train=written(tmp_path, "train.csv", 40), test=written(tmp_path, "test.csv", 10, start=100))
    data, report = load_data(section, seed=0, base=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 10)
    assert data.label_names == ("a", "b")
    assert data.validation.at(0).startswith(f"{tmp_path / 'train.csv'}: line ")
    assert report.train.classes == {"a": 18, "b": 18}
    assert load_data(section, seed=0, base=tmp_path)[0] == data
    assert load_data(section, seed=1, base=tmp_path)[0] != data


def test_without_test_rows_a_part_of_the_training_rows_certifies(tmp_path: Path) -> None:
    section = Data(train=str(tmp_path / written(tmp_path, "train.csv", 100)), validation=0.25)
    data, report = load_data(section, seed=0)
    assert (len(data.train), len(data.validation), len(data.test)) == (60, 20, 20)
    assert len({*data.train.rows, *data.validation.rows, *data.test.rows}) == 100
    assert report.leakage.count == 0


def test_too_few_rows_to_hold_any_out(tmp_path: Path) -> None:
    section = Data(train=str(tmp_path / written(tmp_path, "train.csv", 2)))
    with pytest.raises(DataError, match="2 rows are too few to hold out 20% of them"):
        load_data(section, seed=0)


def test_row_33_strict_of_the_recipe_refuses_leakage(tmp_path: Path) -> None:
    written(tmp_path, "train.csv", 40)
    section = Data(train="train.csv", test=written(tmp_path, "test.csv", 20, start=30), strict=True)
    with pytest.raises(DataError, match=r"10 of 20 texts of .*test\.csv were also seen in training"):
        load_data(section, seed=0, base=tmp_path)


def test_a_model_that_gives_one_answer_to_all_is_told() -> None:
    rows = table("dev.csv", ("one", "a"), ("two", "a"), ("three", "b"))
    said = no_better_than_one_answer(rows, "accuracy", 2 / 3)
    assert said is not None
    assert said.startswith("accuracy 66.67% on validation is no more than 'a' for every message would score (66.67%)")
    assert no_better_than_one_answer(rows, "accuracy", 1.0) is None
    spans = Table("dev.csv", ("one",), ((),), rows=(2,))
    assert no_better_than_one_answer(spans, "entity_f1", 0.0) is None
