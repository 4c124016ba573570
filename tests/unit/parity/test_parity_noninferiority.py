"""A drop passes only when it is shown to be below the margin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import multinomial

from deploykit.errors import ParityError
from deploykit.parity.intervals import (
    drop_is_below,
    paired_drop_bootstrap,
    paired_drop_lower,
    paired_drop_upper,
)
from deploykit.parity.noninferiority import (
    discordant_counts,
    items_needed,
    judge_drop,
    judge_score_drop,
    pass_probability,
    score_drop_bounds,
    score_interval,
)
from deploykit.tasks import Scores

Pair = tuple[NDArray[np.bool_], NDArray[np.bool_]]


def pairs(b: int, c: int, n: int) -> Pair:
    """n items, b right to wrong, c wrong to right, the rest right on both sides."""
    reference, candidate = np.ones(n, dtype=np.bool_), np.ones(n, dtype=np.bool_)
    candidate[:b] = False
    reference[b : b + c] = False
    return reference, candidate


def test_no_change_on_3080_items_passes_a_point() -> None:
    verdict = judge_drop(*pairs(0, 0, 3080), margin=0.01)
    assert verdict.outcome == "pass"
    assert verdict.figure == 0
    assert verdict.bound == pytest.approx(0.00088, abs=5e-6)
    assert (verdict.n, verdict.limit, verdict.next_step) == (3080, 0.01, "")


def test_no_change_on_ten_items_is_inconclusive_and_says_how_many_would_do() -> None:
    verdict = judge_drop(*pairs(0, 0, 10), margin=0.01)
    assert verdict.outcome == "inconclusive"
    assert "about 340 items" in verdict.next_step  # 270 by the score bound alone: 0.99 ** 270 is 6.6 %
    assert "about" not in verdict.check


def test_a_drop_shown_to_exceed_the_margin_fails() -> None:
    verdict = judge_drop(*pairs(120, 20, 3080), margin=0.01)
    assert verdict.outcome == "fail"
    assert paired_drop_lower(120, 20, 3080) > 0.01


def test_a_drop_above_the_margin_but_not_shown_is_inconclusive_and_more_items_will_not_help() -> None:
    verdict = judge_drop(*pairs(6, 0, 400), margin=0.01)
    assert verdict.outcome == "inconclusive"
    assert "unless the true drop is smaller" in verdict.next_step


def test_an_insignificant_difference_is_not_a_pass() -> None:
    # Three lost of 60: McNemar's test says p = 0.25, and a drop of ten points is quite possible.
    assert judge_drop(*pairs(3, 0, 60), margin=0.05).outcome == "inconclusive"


def test_an_exactly_met_margin_does_not_pass() -> None:
    margin = paired_drop_upper(4, 2, 500)
    assert judge_drop(*pairs(4, 2, 500), margin=margin).outcome == "inconclusive"


def test_a_margin_of_nothing_needs_a_better_model() -> None:
    assert judge_drop(*pairs(0, 0, 3080), margin=0.0).outcome == "inconclusive"
    assert judge_drop(*pairs(1, 40, 3080), margin=0.0).outcome == "pass"


@given(st.integers(1, 3000), st.data(), st.sampled_from([0.005, 0.01, 0.05]))
def test_items_needed_are_just_enough(n: int, data: st.DataObject, margin: float) -> None:
    b = data.draw(st.integers(0, min(n, 60)))
    c = data.draw(st.integers(0, min(n - b, 60)))
    needed = items_needed(b, c, n, margin)
    if needed is None:
        assert (b - c) / n >= margin
    else:
        assert drop_is_below(margin, b / n * needed, c / n * needed, needed)
        assert paired_drop_upper(b / n * needed, c / n * needed, needed) < margin + 1e-12
        if needed > 1:
            fewer = needed - 1
            assert not drop_is_below(margin, b / n * fewer, c / n * fewer, fewer)


@given(st.integers(1, 2000), st.data(), st.sampled_from([0.0, 0.01, 0.1]))
def test_the_outcome_follows_from_the_bounds(n: int, data: st.DataObject, margin: float) -> None:
    b = data.draw(st.integers(0, n))
    c = data.draw(st.integers(0, n - b))
    verdict = judge_drop(*pairs(b, c, n), margin=margin)
    upper, lower = paired_drop_upper(b, c, n), paired_drop_lower(b, c, n)
    assert verdict.bound == upper
    low, high = paired_drop_bootstrap(b, c, n)
    asked = b + c >= 20
    passes = upper < margin and drop_is_below(margin, b, c, n)
    fails = lower > margin and drop_is_below(-margin, c, b, n)
    assert (verdict.outcome == "pass") == (passes and (not asked or high < margin))
    assert (verdict.outcome == "fail") == (fails and (not asked or low > margin))
    assert bool(verdict.next_step) == (verdict.outcome != "pass")


@pytest.mark.parametrize(
    ("n", "margin", "discordant"), [(50, 0.05, 0.05), (200, 0.03, 0.03), (300, 0.02, 0.02), (600, 0.01, 0.01)]
)
def test_few_discordant_pairs_at_the_margin_pass_no_oftener_than_many(n: int, margin: float, discordant: float) -> None:
    # All for the worse: the score bound alone lets 5.5 to 6 % of these pass. Exact, by summing over all outcomes.
    lost = (discordant + margin) / 2
    won = max(discordant - lost, 0.0)
    worst = sum(
        multinomial.pmf([b, c, n - b - c], n, [lost, won, 1 - lost - won])
        for b in range(n + 1)
        for c in range(min(n - b, 0 if won == 0 else n) + 1)
        if judge_drop(*pairs(b, c, n), margin=margin).outcome == "pass"
    )
    assert worst <= 0.045


@pytest.mark.parametrize(("lost", "won", "n", "margin"), [(0.01, 0.01, 500, 0.02), (0.03, 0.0, 80, 0.1)])
def test_the_power_is_how_often_it_passes(lost: float, won: float, n: int, margin: float) -> None:
    exact = sum(
        multinomial.pmf([b, c, n - b - c], n, [lost, won, 1 - lost - won])
        for b in range(60)
        for c in range(60)
        if b + c <= n and drop_is_below(margin, b, c, n)
    )
    assert pass_probability(lost, won, n, margin) == pytest.approx(exact, abs=1e-6)


def test_more_items_have_more_power() -> None:
    powers = [pass_probability(0.01, 0.01, n, 0.01) for n in (300, 1000, 3000)]
    assert powers == sorted(powers)
    assert powers[-1] > 0.9


def test_bounds_that_disagree_are_inconclusive() -> None:
    found = [
        judge_drop(*pairs(b, 5, 400), margin=margin)
        for b in range(15, 40, 5)
        for margin in np.arange(0.02, 0.14, 0.0005)
    ]
    torn = [verdict for verdict in found if any("the bootstrap" in line and "says" in line for line in verdict.details)]
    assert torn, "the two bounds are not equal, so some margin lies between them"
    assert {verdict.outcome for verdict in torn} == {"inconclusive"}
    assert len(torn) < len(found) / 10
    assert not any("bootstrap" in line for line in judge_drop(*pairs(12, 5, 400), margin=0.05).details)


def test_a_true_drop_at_the_margin_passes_at_most_one_time_in_twenty() -> None:
    # 1.5 % lost and 0.5 % won is a true drop of exactly one point; 0.0575 leaves room for 4,000 draws (2.5 sigma).
    draws = np.random.default_rng(11).multinomial(3080, [0.015, 0.005, 0.98], size=4000)
    outcomes, counts = np.unique(draws[:, :2], axis=0, return_counts=True)
    passed = sum(
        int(count)
        for (b, c), count in zip(outcomes.tolist(), counts, strict=True)
        if judge_drop(*pairs(b, c, 3080), margin=0.01).outcome == "pass"
    )
    assert passed / 4000 <= 0.0575


def test_counts_are_of_both_directions() -> None:
    reference = np.array([True, True, False, False, True])
    candidate = np.array([True, False, True, False, False])
    assert discordant_counts(reference, candidate) == (2, 1, 5)


def test_an_empty_comparison_is_an_error() -> None:
    nothing = np.zeros(0, dtype=np.bool_)
    with pytest.raises(ParityError, match="nothing to compare"):
        judge_drop(nothing, nothing, margin=0.01)


def test_arrays_that_are_not_bool_are_refused() -> None:
    # A share of NaN would otherwise count as right: NaN is true.
    floats = np.full(10, np.nan)
    with pytest.raises(ParityError, match="not bool"):
        judge_drop(np.ones(10, dtype=np.bool_), floats, margin=0.01)  # type: ignore[arg-type]
    with pytest.raises(ParityError, match="not bool"):
        judge_drop(np.ones((5, 2), dtype=np.bool_), np.ones((5, 2), dtype=np.bool_), margin=0.01)
    with pytest.raises(ParityError, match="5 of the reference against 4"):
        judge_drop(*pairs(0, 0, 5)[:1], pairs(0, 0, 4)[1], margin=0.01)


@pytest.mark.parametrize("margin", [-0.01, 1.0, 1, float("nan")])
def test_a_margin_that_is_no_fraction_is_refused(margin: float) -> None:
    with pytest.raises(ParityError, match="margin"):
        judge_drop(*pairs(0, 0, 10), margin=margin)


def spans(messages: int, *, lost: int = 0, won: int = 0, found: float = 0.9, seed: int = 0) -> tuple[Scores, Scores]:
    """Scores as entity F1 has them; the candidate lost a span in some messages and won one in others."""
    generator = np.random.default_rng(seed)
    marked = generator.integers(0, 4, messages).astype(float)
    right = generator.binomial(marked.astype(int), found).astype(float)
    after = right.copy()
    after[np.flatnonzero(right > 0)[:lost]] -= 1
    after[np.flatnonzero(right < marked)[:won]] += 1
    return Scores(2 * right, right + marked), Scores(2 * after, after + marked)


def test_a_share_of_right_answers_is_judged_as_before() -> None:
    before, after = pairs(20, 5, 3080)
    ours, theirs = (Scores(side.astype(float), np.ones(len(side))) for side in (before, after))
    assert judge_score_drop(ours, theirs, 0.01, metric="accuracy") == judge_drop(before, after, 0.01)
    assert score_drop_bounds(ours, theirs) == (paired_drop_lower(20, 5, 3080), paired_drop_upper(20, 5, 3080))


def test_the_drop_of_a_ratio_passes_fails_or_needs_more() -> None:
    verdict = judge_score_drop(*spans(3000), 0.01, metric="entity F1")
    assert (verdict.outcome, verdict.figure, verdict.check) == ("pass", 0, "entity F1 drop")
    assert verdict.bound is not None
    assert 0 < verdict.bound < 0.002
    assert judge_score_drop(*spans(3000, lost=200), 0.01, metric="entity F1").outcome == "fail"
    assert judge_score_drop(*spans(3000, won=200), 0.01, metric="entity F1").outcome == "pass"
    between = judge_score_drop(*spans(3000, lost=75), 0.01, metric="entity F1")
    assert between.outcome == "inconclusive"
    assert between.figure is not None
    assert between.figure < 0.01 < (between.bound or 0)
    assert "Needs about" in between.next_step


def test_no_change_on_ten_messages_is_no_proof_for_a_ratio_either() -> None:
    """Where nothing changed a plain bootstrap has the bound 0."""
    verdict = judge_score_drop(*spans(10), 0.01, metric="entity F1")
    assert verdict.outcome == "inconclusive"
    assert verdict.bound is not None
    assert verdict.bound > 0.1


def test_the_bounds_of_a_ratio_are_mirror_images_and_hold_the_drop() -> None:
    reference, candidate = spans(800, lost=12, won=5)
    lower, upper = score_drop_bounds(reference, candidate)
    drop = reference.value - candidate.value
    assert lower < drop < upper
    assert score_drop_bounds(candidate, reference) == (pytest.approx(-upper), pytest.approx(-lower))
    low, high = score_interval(reference)
    assert low < reference.value < high
    assert high - low < 0.05


def test_a_bound_of_a_ratio_covers_the_truth() -> None:
    rare = [spans(300, lost=int(np.random.default_rng(seed).binomial(300, 0.01)), seed=seed) for seed in range(60)]
    true = float(np.mean([before.value - after.value for before, after in rare]))
    bounds = [score_drop_bounds(before, after)[1] for before, after in rare]
    assert sum(bound >= true for bound in bounds) >= 57


def test_nothing_that_could_be_earned_is_no_pass() -> None:
    nothing = Scores(np.zeros(5), np.zeros(5))
    with pytest.raises(ParityError, match="no item could earn anything"):
        judge_score_drop(nothing, nothing, 0.01, metric="entity F1")
    with pytest.raises(ParityError, match="nothing to compare"):
        score_drop_bounds(Scores(np.zeros(0), np.zeros(0)), Scores(np.zeros(0), np.zeros(0)))
    with pytest.raises(ParityError, match="margin 2 is not a fraction"):
        judge_score_drop(*spans(10), 2, metric="entity F1")
