"""The choice of levels: never over the budget, never worse than another that fits."""

from __future__ import annotations

import itertools
import random

import pytest

from deploykit.compress.search import LatencyTable, Option, cheapest, fit_table, layer_options, spaced

TABLE = LatencyTable(0.3, {2: 0.1, 4: 0.2}, {32: 0.1, 128: 0.3}, 10.0)


def test_times_add_up_and_are_interpolated() -> None:
    assert TABLE.layer_ms((4, 128)) == pytest.approx(0.5)
    assert TABLE.layer_ms((3, 80)) == pytest.approx(0.15 + 0.2)
    assert TABLE.layer_ms((1, 16)) == pytest.approx(0.05 + 0.05)
    assert TABLE.layer_ms((8, 128)) == pytest.approx(0.4 + 0.3)
    assert TABLE.model_ms([(4, 128), None, (2, 32)]) == pytest.approx(0.3 + 0.5 + 0.2)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_that_fits_is_better(seed: int) -> None:
    rng = random.Random(seed)
    layers = [
        [Option(None, 0.0, 2.0)]
        + [Option((h, c), h * 0.05 + c * 0.002, rng.random()) for h in (1, 2, 4) for c in (32, 64, 128)]
        for _ in range(3)
    ]
    weights = [rng.uniform(0.1, 10) for _ in layers]
    budget = rng.uniform(0.2, 1.0)
    found = cheapest(layers, weights, budget)
    assert found is not None
    chosen = [next(o for o in options if o.choice == choice) for options, choice in zip(layers, found, strict=True)]
    assert sum(option.ms for option in chosen) <= budget + 1e-9

    def loss(options: tuple[Option, ...]) -> float:
        return sum(weight * option.error for weight, option in zip(weights, options, strict=True))

    # What rounding costs is allowed for: a hair less time.
    fits = [o for o in itertools.product(*layers) if sum(each.ms for each in o) <= budget * 0.998]
    assert loss(tuple(chosen)) <= min(loss(options) for options in fits) + 1e-9


def test_no_budget_for_a_layer_is_no_choice() -> None:
    layers = [layer_options({4: 0.0}, {128: 0.0}, TABLE)] * 2
    assert cheapest(layers, [1, 1], 0.4) is None
    assert cheapest(layers, [1, 1], -1) is None
    assert cheapest(layers, [1, 1], 0.6) in (((4, 128), None), (None, (4, 128)))
    assert cheapest(layers, [1, 1], 5.0) == ((4, 128), (4, 128))
    assert cheapest(layers, [1, 9], 0.6) == (None, (4, 128)), "the layer that matters more stays"


def test_spaced_layers_run_from_the_first_to_the_last_and_use_the_budget() -> None:
    options = [layer_options({4: 0.0, 2: 0.5}, {128: 0.0, 32: 0.6}, TABLE)] * 6  # 0.5 ms whole, 0.2 ms least
    assert spaced(options, 0.1) == []
    found = spaced(options, 1.0)
    kept = [[number for number, layer in enumerate(choice) if layer is not None] for choice in found]
    assert kept == [[0], [0, 5], [0, 2, 5], [0, 2, 3, 5], [0, 1, 2, 4, 5]]
    assert found[0][0] == (4, 128)
    assert found[1] == [(4, 128), None, None, None, None, (4, 128)]
    assert all(sum(TABLE.layer_ms(layer) for layer in choice) <= 1.0 + 1e-9 for choice in found)
    assert len(found) == 5, "six layers take 1.2 ms at least"


def clock(shapes: list[tuple[int, int]]) -> float:
    return 0.2 + sum(0.05 * heads + 0.002 * columns for heads, columns in shapes)


SHAPES = [[(12, 1536)], [(12, 1536)] * 2, [(12, 1536)] * 6]
SHAPES += [[(heads, 1536)] * 2 for heads in (6, 2)] + [[(12, columns)] * 2 for columns in (768, 96)]


def test_the_table_explains_the_clock_and_foretells_it() -> None:
    table = fit_table([(shape, clock(shape)) for shape in SHAPES], (2, 6, 12), (96, 768, 1536), 20.0)
    assert table.fixed_ms == pytest.approx(0.2, rel=0.01)
    for shape in (*SHAPES, [(2, 96)], [(4, 300), (12, 1536), (6, 96)]):
        assert table.model_ms(shape) == pytest.approx(clock(shape), rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_noise_does_not_make_more_cost_less(seed: int) -> None:
    rng = random.Random(seed)
    timed = [(shape, clock(shape) * rng.uniform(0.7, 1.3)) for shape in SHAPES]
    table = fit_table(timed, (2, 6, 12), (96, 768, 1536), 20.0)
    for levels in (table.heads_ms, table.columns_ms):
        ordered = [levels[level] for level in sorted(levels)]
        assert ordered == sorted(ordered)
        assert ordered[0] >= 0
    assert table.fixed_ms >= 0


def test_what_is_timed_more_often_counts_more() -> None:
    timed = [(shape, clock(shape)) for shape in SHAPES]
    wrong = [((6, 96), None, (6, 96))]
    before = fit_table(timed, (2, 6, 12), (96, 768, 1536), 20.0).model_ms(wrong[0])
    once, thrice = (
        fit_table([*timed, *[(wrong[0], 2 * before)] * count], (2, 6, 12), (96, 768, 1536), 20.0).model_ms(wrong[0])
        for count in (1, 3)
    )
    assert before < once < thrice < 2 * before
