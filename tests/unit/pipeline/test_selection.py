"""What a report says of pruning's candidates."""

from __future__ import annotations

from deploykit.pipeline.selection import pruned_candidates

POINT = {"predicted_ms": 1.0, "size_mb": 5.0, "fits": True, "metric": 0.9}


def test_candidates_are_listed_the_fastest_first_with_the_front_among_them() -> None:
    points = [
        POINT | {"choice": [[4, 64], None], "measured_ms": 2.0, "loss": 0.5},
        POINT | {"choice": [None, [4, 64]], "measured_ms": 1.0, "loss": 0.6},
        POINT | {"choice": [[2, 64], None], "measured_ms": 1.5, "loss": 0.7},
        POINT | {"choice": [[4, 64], [2, 32]], "measured_ms": 3.0, "loss": None, "metric": None, "fits": False},
    ]
    found = pruned_candidates({"points": points, "choice": [[4, 64], None]})
    assert [candidate.measured_ms for candidate in found] == [1.0, 1.5, 2.0, 3.0]
    assert [candidate.front for candidate in found] == [True, False, True, False]
    assert [candidate.chosen for candidate in found] == [False, False, True, False]
    assert found[0].keeps == "layer 1: 4 heads, 64 columns"


def test_a_model_that_was_fast_enough_has_none() -> None:
    assert pruned_candidates({"points": [], "choice": [[4, 64]]}) == ()
