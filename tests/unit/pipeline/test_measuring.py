"""What a target gives: as much as it can answer; and PyTorch's outputs from a file, if that can be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import DataError, ModelError
from deploykit.pipeline.measuring import NO_ANSWER, OutputCache, padded_batches, try_target
from deploykit.runners import Target
from deploykit.tasks import find_task

TASK = find_task("text-classification")
LIKE = np.zeros((4, 2), np.float32)
LABELS = ("no", "yes")


class Answers:
    """A runner that gives what a function says."""

    name = "made up"

    def __init__(self, infer: Callable[[Sequence[str]], dict[str, Any]]) -> None:
        self.infer = infer


def given(infer: Callable[[Sequence[str]], dict[str, Any]], texts: Sequence[str] = "abcd") -> Any:
    batches = [[index] for index in range(len(texts))]
    return try_target(Answers(infer), list(texts), TASK, LABELS, batches, like=LIKE)  # type: ignore[arg-type]


def yes(texts: Sequence[str]) -> dict[str, Any]:
    return {"logits": np.array([[0.0, 1.0]] * len(texts), np.float32)}


def test_row_54_a_message_that_is_refused_has_no_answer_and_a_reason() -> None:
    def infer(texts: Sequence[str]) -> dict[str, Any]:
        if texts == ["b"]:
            raise DataError("no b here")
        return yes(texts)

    found = given(infer)
    assert found.answers[1] == NO_ANSWER
    assert [str(answer) for answer in found.answers] == ["yes", "(no answer)", "yes", "yes"]
    assert dict(found.failures) == {1: "no b here"}
    assert np.isnan(found.outputs["logits"][1]).all()


def test_a_model_that_answers_nothing_is_soon_given_up() -> None:
    asked = []

    def infer(texts: Sequence[str]) -> dict[str, Any]:
        asked.append(texts)
        raise ModelError("the batch is frozen at 8")

    found = given(infer, "abcdefghijklmnop")
    assert len(asked) == 5
    assert set(found.answers) == {NO_ANSWER}
    assert found.outputs["logits"].shape == (16, 2)
    assert set(found.failures.values()) == {"the batch is frozen at 8", "not tried after others had failed"}


def test_row_48_outputs_of_another_shape_are_findings() -> None:
    assert "no output 'logits'" in given(lambda texts: {"other": LIKE[:1]}).failures[0]
    assert "has shape [4, 2] for 1 messages" in given(lambda texts: {"logits": LIKE}).failures[0]
    wide = given(lambda texts: {"logits": np.arange(5, dtype=np.float32)[None]})
    assert not wide.failures
    assert str(wide.answers[0]) == "(class 4)"


def test_batches_hold_every_message_once() -> None:
    texts = ["x" * (7 * index % 50) for index in range(101)]
    batches = padded_batches(texts)
    assert sorted(index for batch in batches for index in batch) == list(range(101))
    assert max(map(len, batches)) == 16


def test_outputs_are_kept_by_all_that_decides_them(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    cache = OutputCache(tmp_path / "outputs")
    first, other = (Target("torch", str(tiny_checkpoint("bert", seed=seed))) for seed in (0, 1))
    keys = {
        cache.key(first, [["a"]], [[[0]]]),
        cache.key(other, [["a"]], [[[0]]]),
        cache.key(first, [["\ud800"]], [[[0]]]),
        cache.key(first, [["a", "b"]], [[[0], [1]]]),
        cache.key(first, [["a", "b"]], [[[0, 1]]]),
    }
    assert len(keys) == 5
    key = cache.key(first, [["a"]], [[[0]]])
    assert key in keys
    assert cache.get(key) is None
    cache.put(key, [LIKE, LIKE + 1])
    found = cache.get(key)
    assert found is not None
    assert [part.tolist() for part in found] == [LIKE.tolist(), (LIKE + 1).tolist()]


def test_row_30_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    cache = OutputCache(tmp_path)
    cache.put("key", [LIKE])
    whole = (tmp_path / "key.npz").read_bytes()
    for damage in (b"", whole[:40], whole[:-30], b"no archive"):
        (tmp_path / "key.npz").write_bytes(damage)
        assert cache.get("key") is None
    cache.put("key", [LIKE])
    assert cache.get("key") is not None


def test_row_5_a_folder_that_can_not_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    OutputCache(tmp_path / "file" / "outputs").put("key", [LIKE])
    assert OutputCache(tmp_path / "file" / "outputs").get("key") is None
