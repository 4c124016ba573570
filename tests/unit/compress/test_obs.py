"""The optimal brain surgeon's scores and updates, against brute force and least squares."""

from __future__ import annotations

import itertools

import pytest
import torch

from deploykit.compress.obs import prune_levels


def problem(outputs: int, inputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, inputs with correlated columns, and H."""
    torch.manual_seed(seed)
    mixing = torch.randn(inputs, inputs) * 0.3 + torch.eye(inputs)
    x = torch.randn(400, inputs) @ mixing
    return torch.randn(outputs, inputs), x, x.T @ x


def best_error(weight: torch.Tensor, x: torch.Tensor, columns: list[int]) -> float:
    """The error when the kept columns are fitted anew by least squares."""
    target = (x @ weight.T).double()
    solution = torch.linalg.lstsq(x[:, columns].double(), target).solution
    return float((x[:, columns].double() @ solution - target).square().sum() / target.square().sum())


def test_the_weights_that_stay_are_the_least_squares_ones() -> None:
    weight, x, hessian = problem(6, 12)
    found = prune_levels(weight, hessian, 1, [12, 8, 4], damping=1e-7)
    assert torch.equal(found[12].weight, weight)
    assert found[12].error == pytest.approx(0, abs=1e-9)
    for count in (8, 4):
        level = found[count]
        assert len(level.kept) == count == level.weight.shape[1]
        assert level.error == pytest.approx(best_error(weight, x, list(level.kept)), rel=1e-3)
        change = x[:, list(level.kept)] @ level.weight.T - x @ weight.T
        assert level.error == pytest.approx(float(change.square().sum() / (x @ weight.T).square().sum()), rel=1e-3)


def test_the_first_to_go_is_the_cheapest_of_all() -> None:
    weight, x, hessian = problem(5, 8, seed=1)
    kept = list(prune_levels(weight, hessian, 1, [7], damping=1e-7)[7].kept)
    errors = {tuple(rest): best_error(weight, x, list(rest)) for rest in itertools.combinations(range(8), 7)}
    assert tuple(kept) == min(errors, key=lambda rest: errors[rest])


def test_structures_go_whole_and_the_cheapest_first() -> None:
    weight, x, hessian = problem(5, 12, seed=2)
    weight[:, 4:8] *= 0.01
    level = prune_levels(weight, hessian, 4, [2, 1], damping=1e-7)[2]
    assert level.kept == (0, 2)
    assert level.weight.shape == (5, 8)
    assert level.error == pytest.approx(best_error(weight, x, [0, 1, 2, 3, 8, 9, 10, 11]), rel=1e-2)


def test_inputs_that_are_always_zero_cost_nothing() -> None:
    weight, x, _ = problem(4, 6, seed=3)
    x[:, [1, 5]] = 0
    level = prune_levels(weight, x.T @ x, 1, [4])[4]
    assert level.kept == (0, 2, 3, 4)
    assert level.error == pytest.approx(0, abs=1e-6)
