"""The data section as a whole: what is read, held out and left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploykit.data.dataset import load_data, load_training_data
from deploykit.data.table import Columns
from deploykit.errors import DataError
from deploykit.recipe.schema import Data


@pytest.fixture
def files(tmp_path: Path) -> Path:
    rows = [f"message {number} of {label},{label}" for label in ("a", "b") for number in range(20)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (tmp_path / "test.csv").write_text("text,label\nheld out a,a\nheld out b,b\n")
    (tmp_path / "more.csv").write_text("text\nheld out a\nsomething new\nsomething else\n")
    return tmp_path


def test_unlabelled_messages_are_read_without_those_held_out(files: Path) -> None:
    section = Data(train="train.csv", test="test.csv", validation=0.2, unlabelled="more.csv")
    data, _ = load_data(section, 0, files)
    assert data.unlabelled == ("something new", "something else")
    assert load_data(section.model_copy(update={"unlabelled": None}), 0, files)[0].unlabelled == ()


def test_a_training_by_itself_takes_them_too(files: Path) -> None:
    data = load_training_data(
        str(files / "train.csv"), str(files / "test.csv"), Columns(), 0, unlabelled=str(files / "more.csv")
    )
    assert data.unlabelled == ("something new", "something else")


def test_a_file_that_is_not_there_is_named(files: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        load_data(Data(train="train.csv", test="test.csv", unlabelled="nowhere.csv"), 0, files)


def test_a_few_rows_of_each_label_are_drawn_by_the_seed(files: Path) -> None:
    section = Data(train="train.csv", test="test.csv", validation=0.2, per_label=3)
    data, other = (load_data(section, seed, files)[0] for seed in (0, 1))
    assert sorted(map(str, data.train.labels or ())) == ["a"] * 3 + ["b"] * 3
    assert len(data.validation) == 8
    assert data.train.texts == load_data(section, 0, files)[0].train.texts != other.train.texts


def test_rows_of_other_labels_are_left_out(files: Path) -> None:
    data, _ = load_data(Data(train="train.csv", test="test.csv", validation=0.2), 0, files)
    found = data.with_labels(("a", "new"))
    assert set(found.train.labels or ()) == {"a"}
    assert (found.label_names, len(found.test)) == (("a", "new"), 1)
    with pytest.raises(DataError, match="no row has one of the 1 entries"):
        data.with_labels(("new",))
