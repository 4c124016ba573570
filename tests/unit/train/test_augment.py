"""Altered messages: of the pieces of the data, with their special tokens, the same for the same seed."""

from __future__ import annotations

import numpy as np
import torch

from deploykit.train.augment import altered_rows, altered_texts, nearest_pieces, with_neighbours

ROWS = [[1, *range(10 + number, 16 + number), 2] for number in range(20)] + [[1, 2], [1, 9, 2]]
NEAREST = np.arange(50)[:, None].repeat(2, axis=1)


def test_rows_keep_their_ends_and_are_of_the_pieces_there_are() -> None:
    rows = altered_rows(ROWS, NEAREST, 3, seed=0)
    assert len(rows) == 3 * len(ROWS)
    known = {piece for row in ROWS for piece in row}
    for row, source in zip(rows, ROWS * 3, strict=True):
        assert (row[0], row[-1]) == (1, 2)
        assert set(row[1:-1]) <= known - {1, 2}
        assert len(row) <= max(map(len, ROWS))
        assert len(source) > 3 or len(row) >= 2
    changed = sum(row != source for row, source in zip(rows, ROWS * 3, strict=True))
    assert changed > len(ROWS)


def test_the_seed_decides() -> None:
    assert altered_rows(ROWS, NEAREST, 2, seed=4) == altered_rows(ROWS, NEAREST, 2, seed=4)
    assert altered_rows(ROWS, NEAREST, 2, seed=4) != altered_rows(ROWS, NEAREST, 2, seed=5)


def test_neighbours_are_the_nearest_of_the_data_by_angle() -> None:
    table = torch.tensor([[1.0, 0], [2, 0.1], [0, 1], [0.1, 3], [-1, -1], [5, 0.01]])
    found = nearest_pieces(table, used=[0, 1, 2, 3, 4], fixed=[4])
    assert found.shape == (6, 3)
    assert [row[0] for row in found[:4]] == [1, 0, 3, 2]
    assert (found[4] == 4).all(), "special tokens stay"
    assert (found[5] == 5).all(), "and pieces that the data has not"


def test_one_piece_has_no_neighbour() -> None:
    assert nearest_pieces(torch.randn(4, 3), used=[2], fixed=[]).tolist() == [[0], [1], [2], [3]]


TEXTS = [
    "where is my parcel, it should have arrived on monday",
    "I can't log in",
    "",
    "hé 👍",
    "größer Überweisung",
] * 40


def test_words_are_left_out_and_never_all_of_them() -> None:
    altered = altered_texts(TEXTS, {"word_dropout"}, [3, 0])
    for text, found in zip(TEXTS, altered, strict=True):
        assert bool(found) == bool(text)
        words = iter(text.split())
        assert all(word in words for word in found.split()), "in their order"  # what `in` passes over is gone
    lost = 1 - sum(len(text.split()) for text in altered) / sum(len(text.split()) for text in TEXTS)
    assert 0.04 < lost < 0.14


def test_typos_are_slips_of_one_letter() -> None:
    altered = altered_texts(TEXTS, {"typos"}, [3, 0])
    changed = 0
    for text, found in zip(TEXTS, altered, strict=True):
        for ours, theirs in zip(text.split(), found.split(), strict=True):
            if ours != theirs:
                changed += 1
                assert ours[0] == theirs[0]
                assert len(ours.strip(",")) >= 4
                assert abs(len(ours) - len(theirs)) <= 1
    assert changed > 10
    assert altered == altered_texts(TEXTS, {"typos"}, [3, 0])
    assert altered != altered_texts(TEXTS, {"typos"}, [3, 1])


def test_neighbours_take_the_place_of_single_pieces() -> None:
    nearest = np.arange(50)[:, None].repeat(2, axis=1)
    nearest[10:30] += 1
    random = np.random.default_rng([0, 0])
    rows = [with_neighbours(row, nearest, random) for row in ROWS]
    assert [len(row) for row in rows] == [len(row) for row in ROWS]
    replaced = sum(
        ours != theirs for row, other in zip(ROWS, rows, strict=True) for ours, theirs in zip(row, other, strict=True)
    )
    assert 3 < replaced < 40
    assert all(row[0] == 1 and row[-1] == 2 for row in rows)
