"""The shipped histories: what they promise, and that their ceiling is what the best ranking comes to."""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise

import pytest

from deploykit.data.sample import offer_entries, offer_rows
from deploykit.data.sample.offers import OFFER_PLAN, next_shares

DIGEST = "d9c004910f21ed9f03965272d73b43304a1139c399bbc448520d7299e400c71e"


def gain(place: int) -> float:
    """What NDCG@10 gives for a place from 0."""
    return 1 / math.log2(2 + place) if place < 10 else 0.0


def test_the_rows_are_as_many_as_promised_and_always_the_same() -> None:
    train, test = (offer_rows(split) for split in ("train", "test"))
    assert (len(train), len(test)) == (6000, 2000)
    texts = [row.text for row in (*train, *test)]
    assert len(set(texts)) == len(texts)
    said = "\n".join(f"{row.text}|{row.label}" for row in (*train, *test))
    assert hashlib.sha256(said.encode()).hexdigest() == DIGEST
    assert {row.label for row in train} == {row.label for row in offer_entries()}


def test_items_are_told_apart() -> None:
    entries = offer_entries()
    assert len({row.label for row in entries}) == len({row.text for row in entries}) == 80
    assert all(row.text.startswith(f"{row.label}: ") for row in entries)


def test_a_text_says_what_happened_in_its_order() -> None:
    for row in offer_rows("test")[:200]:
        assert row.text.startswith(f"{row.account}: ")
        places = [row.text.split(": ")[1].split("; ")[number] for number in range(len(row.events))]
        assert all(event.item in place for event, place in zip(row.events, places, strict=True))


def test_the_shares_are_those_of_the_plan_where_they_are_known() -> None:
    """A kind of event that calls for nothing, of a history that says nothing else: the mixture over interests."""
    row = next(row for row in offer_rows("test") if row.events[-1].kind == "viewed often")
    shares = next_shares(row)
    assert math.fsum(shares.values()) == pytest.approx(1)
    assert shares[row.events[-1].item] > OFFER_PLAN.follow["viewed often"]
    blind = next_shares(row, features=False)
    assert math.fsum(blind.values()) == pytest.approx(1)
    assert blind[row.events[-1].item] < shares[row.events[-1].item]


def test_the_best_ranking_comes_to_the_ceiling_that_it_predicts() -> None:
    """Over 600 rows of which each gains 0 to 1 the mean is within 4 standard errors, 0.08 at most."""
    expected = reached = blind = 0.0
    rows = offer_rows("test")[:600]
    for row in rows:
        shares = next_shares(row)
        order = sorted(shares, key=lambda item: -shares[item])
        assert all(shares[first] >= shares[second] for first, second in pairwise(order))
        expected += sum(shares[item] * gain(place) for place, item in enumerate(order)) / len(rows)
        reached += gain(order.index(row.label)) / len(rows)
        without = next_shares(row, features=False)
        blind += gain(sorted(without, key=lambda item: -without[item]).index(row.label)) / len(rows)
    assert reached == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(len(rows)))
    assert 0.55 < expected < 0.65
    assert blind < reached
