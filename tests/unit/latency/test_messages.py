"""Messages of a given length have it, in tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploykit.errors import LatencyError
from deploykit.latency.messages import timed_messages
from deploykit.runners.tokenize import Encoder


def test_lengths_take_turns(tiny_checkpoint: Callable[..., Path], toy_data: Any) -> None:
    folder = tiny_checkpoint("bert")
    found = timed_messages(toy_data.validation.texts, 9, (3, 16, 64), folder)
    assert Encoder(folder).lengths(found).tolist() == [3, 16, 64] * 3
    assert len(set(found)) > 3, "not one message again and again"


def test_the_datas_own_are_spread_over_it(tiny_checkpoint: Callable[..., Path], toy_data: Any) -> None:
    texts = toy_data.validation.texts
    found = timed_messages(texts, 8, "data", tiny_checkpoint("bert"))
    assert len(found) == 8
    assert set(found) <= set(texts)


def test_more_tokens_than_the_model_takes_are_refused(tiny_checkpoint: Callable[..., Path], toy_data: Any) -> None:
    with pytest.raises(LatencyError, match="65 tokens are asked for, and the model truncates to 64"):
        timed_messages(toy_data.validation.texts, 4, (8, 65), tiny_checkpoint("bert"))
