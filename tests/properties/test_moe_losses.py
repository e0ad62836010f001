"""The router's losses are their formulas, by hand; padding has no part in them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pellucid.errors import UsageError
from pellucid.nn.moe import load_balance, router_z


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("filler", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_losses_never_touch_padding(filler: float) -> None:
    valid = torch.tensor([[True, True, False], [False, True, False]])
    logits = draw(2, 3, 5)
    for loss in (lambda z, v: load_balance(z, 2, v), router_z):
        dirty = logits.masked_fill(~valid[..., None], filler).requires_grad_()
        got = loss(dirty, valid)
        got.backward()
        torch.testing.assert_close(got, loss(logits[valid][None], None))
        assert dirty.grad is not None and dirty.grad.isfinite().all()
        assert not dirty.grad[~valid].any() and dirty.grad[valid].any()


def test_without_a_token_the_losses_are_zero() -> None:
    logits, nobody = draw(1, 3, 4).requires_grad_(), torch.zeros(1, 3, dtype=torch.bool)
    total = load_balance(logits, 1, nobody) + router_z(logits, nobody)
    total.backward()
    assert total.item() == 0.0 and logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize(("n", "top_k"), [(2, 1), (4, 1), (4, 2), (8, 8)])
def test_balance_of_an_even_router_is_one(n: int, top_k: int) -> None:
    assert load_balance(torch.zeros(2, 3, n), top_k).item() == pytest.approx(1.0)
    in_turn = 50.0 * torch.eye(n).repeat(3, 1)[None]  # each expert has its tokens, certainly
    assert load_balance(in_turn, 1).item() == pytest.approx(1.0)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_balance_of_a_collapsed_router_is_the_number_of_experts(n: int) -> None:
    one = torch.zeros(2, 3, n)
    one[..., 1] = 50.0
    assert load_balance(one, 1).item() == pytest.approx(n)
    both = one.clone()
    both[..., 0] = 50.0  # all on the same two of n
    assert load_balance(both, 2).item() == pytest.approx(n / 2)


def test_balance_by_hand() -> None:
    """Two tokens, three experts: p = (1/2, 1/4, 1/4) and (1/8, 3/4, 1/8)."""
    p = torch.tensor([[[1 / 2, 1 / 4, 1 / 4], [1 / 8, 3 / 4, 1 / 8]]], dtype=torch.float64)
    mean = (5 / 16, 1 / 2, 3 / 16)
    assert load_balance(p.log(), 1).item() == pytest.approx(3 * (mean[0] / 2 + mean[1] / 2))
    assert load_balance(p.log() + 7.0, 3).item() == pytest.approx(3 * sum(mean) / 3)
    assert router_z(p.log()).item() == pytest.approx(0.0, abs=1e-12)
    shifted = p.log() + torch.tensor([[[2.0], [-3.0]]])
    assert router_z(shifted).item() == pytest.approx((4.0 + 9.0) / 2)
    assert router_z(shifted, torch.tensor([[False, True]])).item() == pytest.approx(9.0)


def test_descending_the_balance_loss_balances() -> None:
    """A router that sends everyone to one expert, and plain gradient descent."""
    x = draw(4, 32, 8)
    x[..., 0] = 1.0
    router = draw(4, 8, 1)[..., 0] * 0.1
    router[:, 0] = torch.tensor([3.0, 0.0, 0.0, 0.0])
    router.requires_grad_()
    before = load_balance(x @ router.T, 1).item()
    for _ in range(30):
        (grad,) = torch.autograd.grad(load_balance(x @ router.T, 1), [router])
        with torch.no_grad():
            router -= 4.0 * grad
    assert before > 3.0 and load_balance(x @ router.T, 1).item() < 1.2


def test_losses_are_computed_in_float32() -> None:
    logits = (draw(2, 64, 8) * 4).bfloat16()
    for half, full in (
        (load_balance(logits, 2), load_balance(logits.double(), 2)),
        (router_z(logits), router_z(logits.double())),
    ):
        assert half.dtype == torch.float32
        torch.testing.assert_close(half.double(), full, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("top_k", [0, 5])
def test_an_impossible_top_k_is_refused(top_k: int) -> None:
    with pytest.raises(UsageError, match=rf"top_k = {top_k} of n_experts = 4"):
        load_balance(torch.zeros(1, 1, 4), top_k)
