"""Timing in processes of their own: order, protocol, and what happens when one fails."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from deploykit.errors import LatencyError
from deploykit.events import Progress
from deploykit.latency import measure as module
from deploykit.latency.measure import Samples, measure
from deploykit.runners import Target

MESSAGES = ["where is my parcel", "cancel it please", "invoice", "a much longer message about my account and password"]


@pytest.fixture
def no_child_is_left() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.fixture
def target(exported: Callable[[str], Any]) -> Target:
    return Target("onnxruntime", str(exported("bert").folder), threads=1)


@pytest.fixture
def startup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Code that every further Python process runs as it starts."""

    def run(code: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return run


class FakeWorkers:
    """In place of processes: each message takes its length in milliseconds, and who is asked what is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, list[str], list[str]]] = []
        self.open = 0
        monkeypatch.setattr(module, "open_worker", self.worker)

    @contextlib.contextmanager
    def worker(self, name: str, target: Target, command: object) -> Iterator[Any]:
        fake = self

        class Worker:
            def ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
                fake.asked.append((name, order["messages"], order["warmup"]))
                return {"seconds": [len(message) / 1e3 for message in order["messages"]]}

        self.open += 1
        try:
            yield Worker()
        finally:
            self.open -= 1


A, B, C = (Target("onnxruntime", name) for name in "abc")


def test_the_order_turns_round_every_other_block(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWorkers(monkeypatch)
    messages = [letter * (number + 1) for number, letter in enumerate("uvwxyz")]
    events: list[Any] = []
    samples = measure({"a": A, "b": B, "c": C}, messages, blocks=3, warmup=8, listener=events.append)
    assert [name for name, _, _ in fake.asked] == [*"abc", *"cba", *"abc"]
    assert [block for name, block, _ in fake.asked if name == "b"] == [messages[:2], messages[2:4], messages[4:]]
    assert {tuple(warmup) for _, _, warmup in fake.asked} == {(*messages, *messages[:2])}
    assert [block.tolist() for block in samples["b"].blocks] == [[1, 2], [3, 4], [5, 6]]  # milliseconds
    assert [(event.done, event.total) for event in events if isinstance(event, Progress)] == [
        (n, 9) for n in range(1, 10)
    ]
    assert fake.open == 0


def test_there_are_no_more_blocks_than_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeWorkers(monkeypatch)
    assert len(measure({"a": A}, MESSAGES[:2], blocks=9, warmup=0)["a"].blocks) == 2


def test_samples_by_hand() -> None:
    samples = Samples("a", (np.array([1.0, 2.0, 9.0]), np.array([4.0, 5.0])))
    assert samples.n == 5
    assert samples.p50_ms == 4
    assert samples.p50_range_ms == (2, 4.5)
    assert samples.quantile_ms(1) == 9
    assert samples.p99_ms == pytest.approx(9 - 0.04 * 4)


@pytest.mark.parametrize(
    ("targets", "messages", "blocks"), [({}, MESSAGES, 5), ({"a": A}, [], 5), ({"a": A}, MESSAGES, 0)]
)
def test_nothing_to_time_is_an_error(targets: dict[str, Target], messages: list[str], blocks: int) -> None:
    with pytest.raises(LatencyError, match="nothing to time"):
        measure(targets, messages, blocks=blocks)


@pytest.mark.usefixtures("no_child_is_left")
def test_targets_are_timed_from_text_to_answer(target: Target, exported: Callable[[str], Any]) -> None:
    targets = {"onnx": target, "torch": Target("torch", str(exported("bert").checkpoint), threads=1)}
    samples = measure(targets, MESSAGES, blocks=2, warmup=1)
    assert list(samples) == ["onnx", "torch"]
    for found in samples.values():
        assert [len(block) for block in found.blocks] == [2, 2]
        assert min(block.min() for block in found.blocks) > 0
        assert 0 <= found.stolen <= 1


@pytest.mark.usefixtures("no_child_is_left")
def test_an_error_in_a_process_comes_back_with_its_hint(target: Target, tmp_path: Path) -> None:
    broken = Target("onnxruntime", str(tmp_path / "absent"))
    with pytest.raises(LatencyError, match=r"broken: .*absent.* does not exist") as caught:
        measure({"fine": target, "broken": broken}, MESSAGES)
    assert caught.value.hint == "name an .onnx file"


NOISE = """
import os, sys, time
print("started")
print('["a list"]')
os.write(1, b"{half a line\\n")
real = time.perf_counter
def noisy():
    print("{}")
    sys.stdout.flush()
    os.write(1, b'{"seconds": [0]}\\n')
    return real()
time.perf_counter = noisy
"""


@pytest.mark.usefixtures("no_child_is_left")
def test_what_libraries_print_is_no_reply(target: Target, startup: Callable[[str], None]) -> None:
    startup(NOISE)
    samples = measure({"noisy": target}, MESSAGES, blocks=1, warmup=0)["noisy"]
    assert samples.n == len(MESSAGES)
    assert samples.blocks[0].min() > 0


DEATH = """
import os, sys, time
def die():
    sys.stderr.write("terminate called: out of luck\\n\\n")
    sys.stderr.flush()
    os._exit(9)
time.perf_counter = die
"""


@pytest.mark.usefixtures("no_child_is_left")
@pytest.mark.parametrize("size", [1, 1_000_000])
def test_a_process_that_dies_is_reported_with_its_last_words(
    size: int, target: Target, startup: Callable[[str], None]
) -> None:
    startup(DEATH)
    with pytest.raises(LatencyError, match=r"times doomed ended \(exit status 9\): terminate called: out of luck"):
        measure({"doomed": target}, ["parcel " * size], blocks=1, warmup=0)


@pytest.mark.usefixtures("no_child_is_left")
def test_a_process_that_dies_before_it_reads_is_reported(target: Target, startup: Callable[[str], None]) -> None:
    startup("import os; os._exit(3)")
    long = dataclasses.replace(target, location="x" * 1_000_000)  # more than a pipe holds
    with pytest.raises(LatencyError, match=r"ended \(exit status 3\): it said nothing"):
        measure({"doomed": long}, MESSAGES)
