"""A training that is stopped or killed, in a process of its own, and what the next call does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from deploykit.events import Note, Progress, Warn
from deploykit.recipe import Finetune
from deploykit.tasks import find_task
from deploykit.train import checkpoints
from deploykit.train import trainer as module
from deploykit.train.finetune import FinetuneResult, finetune

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and POSIX signals")
SETTINGS = Finetune(epochs=3, batch_size=16, learning_rate=1e-3)
EPOCH, STEPS = 8, 24
INTERRUPTED = 77


@pytest.fixture(scope="module")
def call(
    tiny_checkpoint: Callable[..., Path], toy_data: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., FinetuneResult]:
    """Trains a one-layer model on 128 messages in the given folder."""
    model = tiny_checkpoint("bert", num_hidden_layers=1, initializer_range=0.05)
    data = replace(toy_data, train=toy_data.train.take(range(128)), validation=toy_data.validation.take(range(32)))
    task = find_task("text-classification")

    def train(folder: Path, listener: Any = lambda event: None, settings: Finetune = SETTINGS) -> FinetuneResult:
        return finetune(model, data, settings, task, folder / "out", workspace=folder / "work", listener=listener)

    return train


@pytest.fixture(scope="module")
def uninterrupted(call: Callable[..., FinetuneResult], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, call(folder)


@pytest.fixture
def in_child(call: Callable[..., FinetuneResult]) -> Callable[..., int]:
    """Trains in a forked process and gives its exit status; `at(event, pid)` sees each event before it goes on."""
    context = multiprocessing.get_context("fork")

    def start(folder: Path, at: Callable[[Any, int], None], prepare: Callable[[], None] = lambda: None) -> int:
        ours, theirs = context.Pipe()

        def child(pipe: Connection) -> None:
            def tell(event: Any) -> None:
                pipe.send(event)
                pipe.recv()

            prepare()
            try:
                call(folder, tell)
            except KeyboardInterrupt:
                os._exit(INTERRUPTED)
            os._exit(0)

        process = context.Process(target=child, args=(theirs,))
        process.start()
        theirs.close()
        try:
            while True:
                try:
                    event = ours.recv()
                except (EOFError, ConnectionError):
                    break
                at(event, process.pid or 0)
                try:
                    ours.send(None)
                except BrokenPipeError:
                    break
            process.join(60)
            assert process.exitcode is not None
            return process.exitcode
        finally:
            process.kill()
            process.join()

    return start


def signal_at(step: int, number: int) -> Callable[[Any, int], None]:
    def at(event: Any, pid: int) -> None:
        if isinstance(event, Progress) and event.done == step:
            os.kill(pid, number)

    return at


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "out" / "model.safetensors") for folder in (one, other))
    return set(first) == set(second) and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("step", "number"),
    [
        (11, signal.SIGINT),  # within an epoch
        (EPOCH, signal.SIGTERM),  # at its end
        (STEPS, signal.SIGINT),  # at the very last step
    ],
)
def test_row_29_an_interrupted_training_goes_on_to_the_same_end(
    step: int,
    number: int,
    in_child: Callable[..., int],
    call: Callable[..., FinetuneResult],
    uninterrupted: tuple[Path, FinetuneResult],
    tmp_path: Path,
) -> None:
    assert in_child(tmp_path, signal_at(step, number)) == INTERRUPTED
    assert not (tmp_path / "out").exists()
    said: list[Any] = []
    result = call(tmp_path, said.append)
    # The event of a step comes before the step's end, so the signal is heeded in it, or at most one later.
    assert result.resumed_from in (step, min(step + 1, STEPS))
    assert [event.message for event in said if isinstance(event, Note)] == [
        f"going on from training step {result.resumed_from} of {STEPS}"
    ]
    whole, expected = uninterrupted
    assert result.steps == expected.steps == STEPS
    assert result.metrics == expected.metrics
    assert [step for step, _ in result.curve] == [step for step, _ in expected.curve]
    assert same_weights(whole, tmp_path)


def test_row_29_a_second_interrupt_ends_it_at_once(in_child: Callable[..., int], tmp_path: Path) -> None:
    def at(event: Any, pid: int) -> None:
        if isinstance(event, Progress) and event.done == 3:
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)

    assert in_child(tmp_path, at) == INTERRUPTED
    assert not (tmp_path / "out").exists()


def test_row_25_killed_while_a_checkpoint_is_written(
    in_child: Callable[..., int],
    call: Callable[..., FinetuneResult],
    uninterrupted: tuple[Path, FinetuneResult],
    tmp_path: Path,
) -> None:
    def die_at_the_second() -> None:
        seal = checkpoints.seal

        def die(folder: Path) -> None:
            if folder.name == f"checkpoint-{2 * EPOCH}":
                (folder / "optimizer.pt").write_bytes((folder / "optimizer.pt").read_bytes()[:100])
                os.kill(os.getpid(), signal.SIGKILL)
            seal(folder)

        module.seal = die

    assert in_child(tmp_path, lambda event, pid: None, die_at_the_second) == -signal.SIGKILL
    assert (tmp_path / "work" / f"checkpoint-{2 * EPOCH}").is_dir()
    said: list[Any] = []
    result = call(tmp_path, said.append)
    assert result.resumed_from == EPOCH
    warnings = [event.message for event in said if isinstance(event, Warn) and "checkpoint" in event.message]
    assert warnings == [f"training checkpoint checkpoint-{2 * EPOCH} is passed over: it was not written to its end"]
    assert result.metrics == uninterrupted[1].metrics
    assert same_weights(uninterrupted[0], tmp_path)


def test_row_26_a_truncated_trainer_state_is_passed_over(
    in_child: Callable[..., int], call: Callable[..., FinetuneResult], tmp_path: Path
) -> None:
    assert in_child(tmp_path, signal_at(STEPS - 3, signal.SIGINT)) == INTERRUPTED
    newest = max((tmp_path / "work").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    state = newest / "trainer_state.json"
    state.write_bytes(state.read_bytes()[:200])
    said: list[Any] = []
    result = call(tmp_path, said.append)
    assert result.resumed_from == 2 * EPOCH
    assert any(isinstance(event, Warn) and newest.name in event.message for event in said)


def test_checkpoints_are_saved_now_and_then_and_room_is_made(
    call: Callable[..., FinetuneResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SAVE_EVERY_S", -1.0)
    seen: list[set[str]] = []
    call(tmp_path, lambda event: seen.append({path.name for path in (tmp_path / "work").glob("checkpoint-*")}))
    assert {f"checkpoint-{step}" for step in range(1, STEPS)} <= set().union(*seen)
    assert max(len(names) for names in seen) <= 3
    kept = list((tmp_path / "work").glob("checkpoint-*"))
    assert {path.name for path in kept} == {f"checkpoint-{STEPS - 1}", f"checkpoint-{STEPS}"}
    assert all((path / "complete.json").is_file() for path in kept)


def test_early_stopping_remembers_how_long_it_waited(
    call: Callable[..., FinetuneResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 9.0, "learning_rate": 1e-12, "early_stopping": 3})
    whole = call(tmp_path / "whole", settings=settings)
    assert whole.steps == 4 * EPOCH  # nothing gets better: the first epoch and three more

    def stop(event: Any) -> None:
        if isinstance(event, Progress) and event.done == 3 * EPOCH + 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        call(tmp_path / "parts", stop, settings)
    parts = call(tmp_path / "parts", settings=settings)
    assert parts.resumed_from == 3 * EPOCH + 1
    assert parts.steps == whole.steps
    assert parts.metrics == whole.metrics
