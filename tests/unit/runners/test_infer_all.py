"""All messages through a runner: each once, in their order, or an error."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest

from deploykit.errors import ParityError, UsageError
from deploykit.runners import Target, infer_all, open_runner, target_from_text


class Lengths:
    """A runner that answers with the length of each message; `shape` changes what it says of a batch."""

    name = "lengths"

    def __init__(self, columns: Any = lambda batch: 2, rows: Any = len) -> None:
        self.columns, self.rows, self.batches = columns, rows, list[list[str]]()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def infer(self, messages: Any) -> dict[str, Any]:
        self.batches.append(list(messages))
        lengths = np.array([len(message) for message in messages], dtype=np.float32)
        lengths = np.resize(lengths, self.rows(messages))
        labels = np.array([f"label {message}" for message in messages], dtype=np.object_)
        return {"logits": np.tile(lengths[:, None], (1, self.columns(messages))), "label": labels}


MESSAGES = ["a", "bb", "ccc", "dddd"]


def test_outputs_come_in_the_order_of_the_messages_whatever_the_batches() -> None:
    runner = Lengths()
    outputs = infer_all(runner, MESSAGES, ([index] if index < 1 else [3, 1, 2] for index in range(2)))
    assert runner.batches == [["a"], ["dddd", "bb", "ccc"]]
    np.testing.assert_array_equal(outputs["logits"][:, 0], [1, 2, 3, 4])
    assert outputs["logits"].dtype == np.float32
    assert outputs["label"].tolist() == [f"label {message}" for message in MESSAGES]


def test_no_messages_are_refused() -> None:
    with pytest.raises(ParityError, match="no messages"):
        infer_all(Lengths(), [], [])


@pytest.mark.parametrize(
    "batches",
    [
        [],
        [[0, 1]],
        [[0, 1], [2]],
        [[0, 1], [2, 2]],  # as many as there are messages, but one is missing
        [[0, 1], [2, 3], [3]],
        [[0, 1, 2, 3], []],
        [[0, 1, 2, 4]],
        [[0, 1, 2, -1]],
    ],
)
def test_batches_that_do_not_cover_each_message_once_are_refused(batches: list[list[int]]) -> None:
    with pytest.raises(ParityError, match="batch"):
        infer_all(Lengths(), MESSAGES, batches)


def test_outputs_by_token_are_as_long_as_the_longest_message() -> None:
    class Tokens(Lengths):
        def infer(self, messages: Any) -> Any:
            longest = max(map(len, messages))
            return {"logits": np.stack([np.full((longest, 2), len(message)) for message in messages])}

    messages = ["a", "four", "is", "seven??"]
    (short, rest) = (
        infer_all(Tokens(), messages, batches)["logits"] for batches in ([[0, 2], [1, 3]], [[3], [0, 1, 2]])
    )
    assert short.shape == rest.shape == (4, 7, 2)
    assert short[0, :, 0].tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert rest[1, :, 1].tolist() == [4, 4, 4, 4, 0, 0, 0]


@pytest.mark.parametrize(
    "runner",
    [
        Lengths(rows=lambda messages: 1),  # would be spread over the batch in silence
        Lengths(rows=lambda messages: len(messages) + 1),
        Lengths(columns=lambda messages: 1 if "a" in messages else 2),
    ],
)
def test_an_output_without_a_row_for_each_message_is_refused(runner: Lengths) -> None:
    with pytest.raises(ParityError, match="'logits' has shape"):
        infer_all(runner, MESSAGES, [[0, 1], [2, 3]])


def test_targets_by_what_is_written(tmp_path: Any) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "config.json").touch()
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "config.json").touch()
    (tmp_path / "onnx" / "model.onnx").touch()
    assert target_from_text(str(tmp_path / "torch")).kind == "torch"
    assert target_from_text(str(tmp_path / "onnx")).kind == "onnxruntime"
    assert target_from_text(str(tmp_path / "onnx" / "model.onnx"), tokenizer="there").tokenizer == "there"
    assert target_from_text("grpc://localhost:8001/intents").kind == "triton"
    for text, what in ((str(tmp_path), "has neither"), (str(tmp_path / "absent"), "is not there")):
        with pytest.raises(UsageError, match=what) as caught:
            target_from_text(text)
        assert caught.value.hint
    assert type(open_runner(Target("triton", "grpc://localhost:8001/intents"))).__name__ == "TritonRunner"
