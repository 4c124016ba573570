"""Faults before and behind the layers: each named by its stage, and nothing where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax

from deploykit.parity.ends import explain_labels, explain_output, explain_tokens

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(12, 5)).astype(np.float32) * 3


@pytest.mark.parametrize(
    ("made", "part", "words"),
    [
        (softmax(LOGITS, -1), "post-processing", "a softmax"),
        (log_softmax(LOGITS, -1), "post-processing", "a log-softmax"),
        (expit(LOGITS), "post-processing", "a sigmoid"),
        (LOGITS / 2, "post-processing", "a temperature of 2"),
        (LOGITS + 1, "post-processing", "plus 1"),
        (LOGITS[:, [1, 0, 2, 3, 4]], "labels", "2 of 5 outputs"),
        (LOGITS[[1, 0, *range(2, 12)]], "serving", "2 of 12 messages got the answer of another"),
    ],
)
def test_what_was_done_to_the_logits_is_said(made: Any, part: str, words: str) -> None:
    found = explain_output(LOGITS, made.astype(np.float32))
    assert found is not None
    assert found.part == part
    assert words in found.cause


@pytest.mark.parametrize(
    "made",
    [
        LOGITS,
        LOGITS + np.float32(1e-6),
        LOGITS @ np.random.default_rng(1).normal(size=(5, 5)),
        LOGITS * np.nan,
        LOGITS[:6],
    ],
)
def test_of_the_same_logits_and_of_others_nothing_is_said(made: Any) -> None:
    assert explain_output(LOGITS, made) is None


TEXTS = ["Hello there", "my card", "Lost CARD", "transfer money today please now"]
IDS = [[1, 5, 6, 2], [1, 7, 8, 2], [1, 9, 8, 2], [1, 10, 11, 12, 13, 14, 2]]


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([[1, 50, 6, 2], IDS[1], [1, 90, 80, 2], IDS[3]], "capital letters: lower-casing differs"),
        ([*IDS[:3], [1, 10, 11, 12, 2]], "truncates to 5 tokens"),
        ([*IDS[:3], [1, 10, 11, 12, 13, 14, 15, 2]], "keeps more than the reference's 7"),
        ([[number + 100 for number in ids] for ids in IDS], "another vocabulary"),
    ],
)
def test_what_is_wrong_with_tokens_is_said(ids: list[list[int]], words: str) -> None:
    found = explain_tokens(IDS, ids, TEXTS)
    assert found is not None
    assert found.part == "tokenizer"
    assert words in found.cause


def test_text_cut_at_its_beginning_is_told_from_text_cut_at_its_end() -> None:
    whole = list(range(10, 40))
    found = explain_tokens([[1, *whole[:14], 2]], [[1, *whole[4:18], 2]], ["long"])
    assert found is not None
    assert "beginning" in found.cause


def test_of_the_same_tokens_and_labels_nothing_is_said() -> None:
    assert explain_tokens(IDS, IDS, TEXTS) is None
    assert explain_labels(["a", "b"], ["a", "b"]) is None


def test_labels_in_another_order_are_told_from_other_labels() -> None:
    for labels, words in ((["b", "a", "c"], "2 of 3 labels stand"), (["a", "b", "x"], "1 are none")):
        found = explain_labels(["a", "b", "c"], labels)
        assert found is not None
        assert (found.part, words in found.cause) == ("labels", True)
