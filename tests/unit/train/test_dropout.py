"""Dropout on a CPU: the right rate and scale, repeatable, and attention unchanged but for it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from deploykit.train.dropout import cheap_dropout


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_rate_and_the_scale_hold(rate: float) -> None:
    values = torch.ones(1000, 1003, requires_grad=True)
    torch.manual_seed(3)
    with cheap_dropout():
        out = torch.nn.Dropout(rate)(values)
    share = (out == 0).float().mean(0)
    assert share.mean().item() == pytest.approx(rate, abs=0.002)
    assert (share - rate).abs().max() < 6 * (rate * (1 - rate) / 1000) ** 0.5, "no column is dropped more than others"
    assert out.mean().item() == pytest.approx(1, abs=0.005)
    out.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, out), "what was dropped has no gradient"


def test_the_seed_decides() -> None:
    values = torch.ones(7, 5)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        with cheap_dropout():
            return functional.dropout(values, 0.5)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_nothing_is_dropped_outside_training_and_all_at_rate_one() -> None:
    values = torch.ones(4, 4)
    with cheap_dropout():
        assert torch.equal(torch.nn.Dropout(0.5).eval()(values), values)
        assert torch.equal(functional.dropout(values, 1.0), torch.zeros(4, 4))
        assert torch.equal(functional.dropout(values, 0.0), values)


@pytest.mark.parametrize("boolean", [True, False])
def test_attention_is_attention_but_for_what_is_dropped(boolean: bool) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 6, 8).unbind(0)
    kept = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    kept[1, :, :, 4:] = False
    mask = kept if boolean else torch.zeros(kept.shape).masked_fill(~kept, torch.finfo(torch.float32).min)
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    with cheap_dropout():
        draws = [
            functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=0.2)
            for _ in range(2000)
        ]
    assert not torch.allclose(draws[0], draws[1])
    assert torch.allclose(torch.stack(draws).mean(0), expected, atol=0.08)
