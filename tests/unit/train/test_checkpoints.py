"""Which training checkpoints count as complete."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deploykit.events import Event, Warn
from deploykit.train.checkpoints import last_complete, seal


def checkpoint(workspace: Path, step: int, *, sealed: bool = True) -> Path:
    folder = workspace / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    (folder / "optimizer.pt").write_bytes(b"moments" * 50)
    (folder / "trainer_state.json").write_text('{"global_step": 1}')
    if sealed:
        seal(folder)
    return folder


def look(workspace: Path) -> tuple[Path | None, list[str]]:
    said: list[Event] = []
    found = last_complete(workspace, said.append)
    assert all(isinstance(event, Warn) for event in said)
    return found, [event.message for event in said if isinstance(event, Warn)]


def test_the_newest_complete_one_by_step_and_not_by_name(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-last").mkdir()
    (tmp_path / "runs").mkdir()
    found, warnings = look(tmp_path)
    assert found == tmp_path / "checkpoint-100"
    assert warnings == []


def test_nothing_there(tmp_path: Path) -> None:
    assert look(tmp_path) == (None, [])
    assert look(tmp_path / "absent") == (None, [])


def test_row_25_one_that_was_not_written_to_its_end_is_passed_over_and_removed(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path, 10)
    torn = checkpoint(tmp_path, 20, sealed=False)
    found, warnings = look(tmp_path)
    assert found == whole
    assert warnings == ["training checkpoint checkpoint-20 is passed over: it was not written to its end"]
    assert not torn.exists()  # it would count as the newest when room is made


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda folder: (folder / "trainer_state.json").write_text('{"global'), "trainer_state.json has 8 bytes"),
        (lambda folder: (folder / "trainer_state.json").unlink(), "trainer_state.json is missing"),
        (lambda folder: (folder / "trainer_state.json").write_text("{" * 18), "trainer_state.json can't be read"),
        (lambda folder: (folder / "optimizer.pt").write_bytes(b"moments"), "optimizer.pt has 7 bytes and not 350"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "complete.json").write_text("{"), "complete.json is damaged"),
        (lambda folder: (folder / "complete.json").write_text("[1]"), "complete.json is damaged"),
    ],
)
def test_row_26_a_damaged_one_is_passed_over_with_the_reason(
    harm: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    whole, damaged = checkpoint(tmp_path, 10), checkpoint(tmp_path, 20)
    harm(damaged)
    found, warnings = look(tmp_path)
    assert found == whole
    assert len(warnings) == 1
    assert f"checkpoint-20 is passed over: {reason}" in warnings[0].replace("its ", "")


def test_all_damaged_means_a_fresh_start(tmp_path: Path) -> None:
    for step in (10, 20):
        (checkpoint(tmp_path, step) / "model.safetensors").unlink()
    found, warnings = look(tmp_path)
    assert found is None
    assert len(warnings) == 2


def test_a_checkpoint_saved_twice_is_sealed_anew(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 10)
    (folder / "optimizer.pt").write_bytes(b"later")
    seal(folder)
    seal(folder)
    assert look(tmp_path) == (folder, [])
