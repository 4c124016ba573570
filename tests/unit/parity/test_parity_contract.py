"""Two models that are asked and answer in the same terms, and the ways in which they are not."""

from __future__ import annotations

import pytest

from deploykit.errors import ParityError
from deploykit.parity.contract import judge_labels, judge_tokenizer, judge_trimmed_tokenizer
from deploykit.parity.verdict import Verdict


def test_labels_alike_pass() -> None:
    verdict = judge_labels(["a", "b"], ["a", "b"])
    assert (verdict.outcome, verdict.figure, verdict.n) == ("pass", 0, 2)


def test_row_48_labels_in_another_order_fail_and_name_the_first() -> None:
    verdict = judge_labels(["a", "b", "c"], ["a", "c", "b"])
    assert (verdict.outcome, verdict.figure) == ("fail", 2)
    assert verdict.details == (
        "label 1 is 'b' in the reference and 'c' in the candidate",
        "the same labels in another order",
    )


@pytest.mark.parametrize("candidate", [["a"], ["a", "b", "c"], ["a", "x"], []])
def test_row_48_other_labels_fail(candidate: list[str]) -> None:
    verdict = judge_labels(["a", "b"], candidate)
    assert verdict.outcome == "fail"
    assert verdict.details[1] == "not the same labels"


def test_no_labels_are_an_error() -> None:
    with pytest.raises(ParityError, match="no labels"):
        judge_labels([], [])


def test_row_49_equal_tokens_pass() -> None:
    verdict = judge_tokenizer([[101, 5, 102], []], [[101, 5, 102], []])
    assert (verdict.outcome, verdict.n) == ("pass", 2)


def test_row_49_another_tokenizer_fails_and_the_first_message_is_named() -> None:
    verdict = judge_tokenizer([[1, 2, 3], [1, 4, 3], [1, 5, 3]], [[1, 2, 3], [1, 9, 3], [1, 8, 3]])
    assert (verdict.outcome, verdict.figure) == ("fail", 2)
    assert verdict.details == ("2 of 3 messages differ", "message 1: token 1 is 9, not 4")
    assert "tokenizer.json" in verdict.next_step


def test_row_49_another_truncation_fails() -> None:
    verdict = judge_tokenizer([[1, 2, 3, 4]], [[1, 2]])
    assert verdict.details[1] == "message 0: 2 tokens, not 4, alike until one ends"


def test_row_49_no_tokens_are_an_error() -> None:
    with pytest.raises(ParityError, match="nothing to compare"):
        judge_tokenizer([], [])
    with pytest.raises(ParityError, match="no tokens"):
        judge_tokenizer([[], []], [[], []])
    with pytest.raises(ParityError, match="1 of the reference against 2"):
        judge_tokenizer([[1]], [[1], [2]])


WHOLE = [["[CLS]", "over", "##charge", "##d", "card", "[SEP]"], ["[CLS]", "card", "[SEP]"]]


def trimmed(*pieces: list[str], max_length: int = 16) -> Verdict:
    return judge_trimmed_tokenizer(WHOLE[: len(pieces)], pieces, max_length, "##")


def test_words_cut_finer_by_a_trimmed_tokenizer_pass_and_are_counted() -> None:
    verdict = trimmed(["[CLS]", "over", "##ch", "##ar", "##ge", "##d", "card", "[SEP]"], WHOLE[1])
    assert verdict.outcome == "pass"
    assert "1 of 2 messages" in verdict.details[0]
    assert trimmed(*WHOLE).details == ()


@pytest.mark.parametrize(
    "pieces",
    [
        ["[CLS]", "over", "##charge", "card", "[SEP]"],
        ["[CLS]", "over", "[UNK]", "card", "[SEP]"],
        ["over", "##charge", "##d", "card", "[SEP]"],
        ["[CLS]", "over", "##charge", "##d", "card", "##s", "[SEP]"],
    ],
)
def test_a_trimmed_tokenizer_that_loses_or_adds_something_fails(pieces: list[str]) -> None:
    verdict = trimmed(pieces)
    assert (verdict.outcome, verdict.figure) == ("fail", 1.0)
    assert "message 0" in verdict.details[-1]


def test_a_message_that_is_cut_finer_may_lose_its_end_at_the_length() -> None:
    pieces = ["[CLS]", "over", "##ch", "##ar", "##ge", "[SEP]"]
    assert trimmed(pieces, max_length=6).outcome == "pass"
    assert trimmed(pieces, max_length=7).outcome == "fail"
