"""The choice of levels: never over the budget, never worse than another that fits."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from deploykit.compress.search import LatencyTable, Option, Options, cheapest, fit_table, layer_options, spaced

TABLE = LatencyTable(0.3, {2: 0.1, 4: 0.2}, {32: 0.1, 128: 0.3}, {32: 0.1, 128: 0.3}, 10.0)
FIRST_TOKEN = LatencyTable(0.3, {2: 0.1, 4: 0.2}, {32: 0.1, 128: 0.3}, {32: 0.01, 128: 0.02}, 10.0)


def test_times_add_up_and_are_interpolated() -> None:
    assert TABLE.layer_ms((4, 128)) == pytest.approx(0.5)
    assert TABLE.layer_ms((3, 80)) == pytest.approx(0.15 + 0.2)
    assert TABLE.layer_ms((1, 16)) == pytest.approx(0.05 + 0.05)
    assert TABLE.layer_ms((8, 128)) == pytest.approx(0.4 + 0.3)
    assert TABLE.model_ms([(4, 128), None, (2, 32)]) == pytest.approx(0.3 + 0.5 + 0.2)
    assert FIRST_TOKEN.model_ms([(4, 128), (2, 32), None]) == pytest.approx(0.3 + 0.5 + 0.1 + 0.01)
    assert FIRST_TOKEN.model_ms([None, (4, 128), None]) == pytest.approx(0.3 + 0.2 + 0.02)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_that_fits_is_better(seed: int) -> None:
    rng = random.Random(seed)
    choices = [(h, c) for h in (1, 2, 4) for c in (32, 64, 128)]
    layers = []
    for _ in range(3):
        errors = {choice: rng.random() for choice in choices}
        inner = [Option((h, c), h * 0.05 + c * 0.002, errors[h, c]) for h, c in choices]
        last = [Option((h, c), h * 0.05 + c * 0.0005, errors[h, c]) for h, c in choices]
        layers.append(Options((Option(None, 0.0, 2.0), *inner), tuple(last)))
    weights = [rng.uniform(0.1, 10) for _ in layers]
    budget = rng.uniform(0.2, 1.0)
    found = cheapest(layers, weights, budget)
    assert found is not None

    def options_of(choice: tuple[Any, ...]) -> list[Option]:
        last = max(number for number, each in enumerate(choice) if each)
        return [
            next(option for option in (layer.last if number == last else layer.inner) if option.choice == each)
            for number, (layer, each) in enumerate(zip(layers, choice, strict=True))
        ]

    def loss(options: list[Option]) -> float:
        return sum(weight * option.error for weight, option in zip(weights, options, strict=True))

    assert sum(option.ms for option in options_of(found)) <= budget + 1e-9
    # What rounding costs is allowed for: a hair less time.
    every = [options_of(each) for each in itertools.product([None, *choices], repeat=3) if any(each)]
    fits = [options for options in every if sum(option.ms for option in options) <= budget * 0.998]
    assert loss(options_of(found)) <= min(loss(options) for options in fits) + 1e-9


def test_where_the_last_layer_works_for_one_token_its_columns_stay() -> None:
    layers = [layer_options({4: 0.0}, {128: 0.0, 32: 0.1}, FIRST_TOKEN)] * 2
    assert cheapest(layers, [1, 1], 0.53) == ((4, 32), (4, 128))
    assert cheapest(layers, [1, 1], 0.25) in (((4, 128), None), (None, (4, 128)))


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
    options = [layer_options({4: 0.0, 2: 0.5}, {128: 0.0, 32: 0.6}, FIRST_TOKEN)] * 6
    assert spaced(options, 0.73)[1] == [(4, 128), None, None, None, None, (4, 128)]


def clock(shapes: list[tuple[int, int]]) -> float:
    """The last layer's FFN takes a quarter of what others take."""
    *inner, (heads, columns) = shapes
    return 0.2 + sum(0.05 * h + 0.002 * c for h, c in inner) + 0.05 * heads + 0.0005 * columns


SHAPES = [[(12, 1536)], [(12, 1536)] * 2, [(12, 1536)] * 6]
SHAPES += [[(heads, 1536)] * 2 for heads in (6, 2)] + [[(12, columns), (12, 1536)] for columns in (768, 96)]
SHAPES += [[(12, 96)]]


def test_the_table_explains_the_clock_and_foretells_it() -> None:
    table = fit_table([(shape, clock(shape)) for shape in SHAPES], (2, 6, 12), (96, 768, 1536), 20.0)
    for shape in (*SHAPES, [(2, 96)], [(4, 300), (12, 1536), (6, 96)], [(12, 96), (2, 700)]):
        assert table.model_ms(shape) == pytest.approx(clock(shape), rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_noise_does_not_make_more_cost_less(seed: int) -> None:
    rng = random.Random(seed)
    timed = [(shape, clock(shape) * rng.uniform(0.7, 1.3)) for shape in SHAPES]
    table = fit_table(timed, (2, 6, 12), (96, 768, 1536), 20.0)
    for levels in (table.heads_ms, table.columns_ms, table.last_columns_ms):
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
