"""Many values lie on disk and read as those in memory do; what reads tables and trains on them sees no difference."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from deploykit.data import spill
from deploykit.data.checks import check_data
from deploykit.data.dataset import hold_out, load_training_data
from deploykit.data.kept import read_table, write_table
from deploykit.data.marks import MarkedSpans
from deploykit.data.readers import read_rows
from deploykit.data.spill import Gathering, Stored, gathered_texts
from deploykit.data.table import Columns, Table
from deploykit.errors import ArtifactError
from deploykit.recipe import Finetune
from deploykit.tasks import find_task
from deploykit.train.finetune import finetune


@pytest.fixture
def spilled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly anything stays in memory."""
    monkeypatch.setattr(spill, "IN_MEMORY_BYTES", 50)


@given(values=st.lists(st.text(st.characters(codec="utf-8"))), limit=st.integers(0, 40), data=st.data())
def test_what_is_gathered_reads_as_a_tuple_does(values: list[str], limit: int, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "IN_MEMORY_BYTES", limit)
        gathering = gathered_texts()
        half = len(values) // 2
        gathering.extend(values[:half])
        before = gathering.done()
        gathering.extend(values[half:])
        found = gathering.done()
    assert isinstance(found, Stored) == (sum(len(each.encode()) for each in values) > limit)
    assert (list(found), list(before)) == (values, values[:half])
    assert (len(found), list(found[1:5:2]), list(found[::-1])) == (len(values), values[1:5:2], values[::-1])
    order = data.draw(st.lists(st.integers(0, len(values) - 1))) if values else []
    chosen = spill.taken(found, order)
    assert list(chosen) == [values[index] for index in order]
    assert [chosen[-place - 1] for place in range(len(order))] == [values[index] for index in reversed(order)]
    with pytest.raises(IndexError):
        found[len(values)]
    with pytest.raises(IndexError):
        found[-len(values) - 1]


def test_many_values_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is gathered may be larger than memory: here it is ten times what was ever held."""
    monkeypatch.setattr(spill, "IN_MEMORY_BYTES", 2**18)
    text = "where is my parcel " * 50
    tracemalloc.start()
    try:
        gathering: Gathering[str] = gathered_texts()
        for number in range(10_000):
            gathering.append(f"{number} {text}")
        found = gathering.done()
        read = sum(len(each) for each in found)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(found, Stored)
    assert read > 9.5e6
    assert peak < read / 10


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
@pytest.mark.parametrize("text", ["word", "word " * 10_000])
def test_a_full_disk_is_said_in_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "IN_MEMORY_BYTES", 5)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: Path("/dev/full").open("wb"))  # noqa: SIM115

    def gather() -> None:
        gathering = gathered_texts()
        gathering.extend([text] * 3)
        gathering.done()

    with pytest.raises(ArtifactError, match=f"no space left for {tempfile.gettempdir()}"):
        gather()


@pytest.fixture
def rows_file(toy_data: Any, tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    table = toy_data.train.take(range(96))
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(table.texts, table.labels, strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_table_on_disk_is_read_held_out_checked_and_kept_as_one_in_memory(
    rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def results(table: Table) -> Any:
        kept, held_out = hold_out(table, 0.25, 3, "validation")
        write_table(tmp_path / "table.jsonl", kept)
        again = read_table(tmp_path / "table.jsonl")
        assert again.digest() == kept.digest() != table.digest()
        parts = [
            (list(each.texts), list(each.labels or ()), list(each.rows)) for each in (table, kept, held_out, again)
        ]
        return parts, check_data(kept, held_out, held_out, strict=False), table.at(7), again.at(7), again.source

    in_memory = read_rows(str(rows_file), Columns())
    assert isinstance(in_memory.texts, tuple)
    expected = results(in_memory)
    monkeypatch.setattr(spill, "IN_MEMORY_BYTES", 50)
    on_disk = read_rows(str(rows_file), Columns())
    assert isinstance(on_disk.texts, Stored)
    assert isinstance(on_disk.labels, Stored)
    assert isinstance(on_disk.rows, Stored)
    assert isinstance(on_disk.take([1, 2]).texts, Stored)
    assert results(on_disk) == expected


@pytest.mark.usefixtures("spilled")
def test_marked_spans_come_back(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    marked = [
        {"text": f"order {number} now", "entities": [{"start": 6, "end": 7, "label": "id"}]} for number in range(9)
    ]
    path.write_text("\n".join(map(json.dumps, marked)), encoding="utf-8")
    table = read_rows(str(path), Columns("text", MarkedSpans(("entities",))))
    assert isinstance(table.labels, Stored)
    assert table.labels[3] == ((6, 7, "id"),)
    assert table.labels[3][0].label == "id"


@pytest.mark.parametrize("augment", [(), ("typos", "synonyms")])
def test_training_from_disk_gives_the_same_weights(
    augment: tuple[str, ...],
    rows_file: Path,
    tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = {}
    settings = Finetune(epochs=1, batch_size=16, learning_rate=1e-3, augment=augment)
    source = tiny_checkpoint("bert", num_hidden_layers=1, initializer_range=0.05)
    for name, limit in (("memory", 2**24), ("disk", 50)):
        monkeypatch.setattr(spill, "IN_MEMORY_BYTES", limit)
        data = load_training_data(str(rows_file), 0.2, Columns(), 0)
        out = tmp_path / name
        finetune(source, data, settings, find_task("text-classification"), out, workspace=tmp_path / f"{name}-work")
        found[name] = load_file(out / "model.safetensors")
    assert all(np.array_equal(found["memory"][name], found["disk"][name]) for name in found["memory"])
