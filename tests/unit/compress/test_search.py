"""The choice of levels: never over the budget, never worse than another that fits."""

from __future__ import annotations

import itertools
import random

import pytest

from deploykit.compress.search import LatencyTable, Option, cheapest, layer_options, spaced

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
