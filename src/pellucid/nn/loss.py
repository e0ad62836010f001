"""-ln p(label) from states and a head's matrix, in chunks: the logits of all tokens never exist at once.

For a state x and its label y, over a vocabulary of V tokens, with logits l = cap(W x + b)::

    -ln p(y) = ln Σᵥ exp(lᵥ) - l_y
    smoothed = (1 - s) · -ln p(y) + s / V · Σᵥ -ln p(v)         (Szegedy et al. 2015, section 7)
    d smoothed / d l = softmax(l) - (1 - s) · onehot(y) - s / V

A logit is four bytes a token and vocabulary entry: 8,192 tokens × 50,000 entries would be 1.6 GB, and their gradient
as much again. So one chunk of tokens after the other makes its logits, uses them and drops them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pellucid.batch import IGNORE
from pellucid.nn.wide import wide, wide_dtype

CHUNK_BYTES = 128 << 20  # of logits at a time: enough for full matrix speed
Reduction = Literal["sum", "tokens"]
# What makes logits of states: a matrix (vocab, d), or a function (..., d) -> (..., vocab) where something else than a
# plain matrix stands there: an adapted, quantised or sharded one.
Product: TypeAlias = Tensor | Callable[[Tensor], Tensor]


def logits_of(
    x: Float[Tensor, "*axes d"], table: Product, bias: Tensor | None = None, soft_cap: float | None = None
) -> Float[Tensor, "*axes vocab"]:
    """cap · tanh((W x + b) / cap), or W x + b without a soft cap (Gemma Team 2024, section 2)."""
    logits = F.linear(x, table, bias) if isinstance(table, Tensor) else table(x)
    if bias is not None and not isinstance(table, Tensor):
        logits = logits + bias
    return logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)


def nll(
    x: Float[Tensor, "*axes d"],
    table: Product,
    labels: Int[Tensor, "*axes"],
    *,
    bias: Float[Tensor, " vocab"] | None = None,
    soft_cap: float | None = None,
    smoothing: float = 0.0,
    weights: Float[Tensor, "*axes"] | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    reduction: Reduction = "sum",
) -> Float[Tensor, "*reduced"]:
    """-ln p(label) in nats, their sum () or each (*axes); 0 where the label is IGNORE. Differentiable once.

    smoothing: the share of each label that is given to all of the vocabulary alike, 0 <= smoothing < 1. weights: a
    factor for each token. transform: what is done to states before the product; only scored ones go through it. Numbers
    are float32 or wider, whatever the dtype of the products (that of ``x``, or autocast's).
    """
    flat, targets = x.flatten(0, -2), labels.flatten()
    each = None if weights is None else weights.flatten()
    scored = targets != IGNORE
    all_scored = bool(scored.all())
    if not all_scored:
        flat, targets = flat[scored], targets[scored]
        each = None if each is None else each[scored]
    flat = flat if transform is None else transform(flat)
    rule = _Rule(soft_cap, smoothing)
    if reduction == "sum" and isinstance(table, Tensor) and not (each is not None and each.requires_grad):
        return _Sum.apply(flat, table, bias, targets, each, rule)
    if isinstance(table, Tensor):
        tokens = _Tokens.apply(flat, table, bias, targets, rule)
    else:
        tokens = _by_function(flat, table, bias, targets, rule)
    tokens = tokens if each is None else tokens * each
    if reduction == "sum":
        return tokens.sum()
    if not all_scored:
        tokens = tokens.new_zeros(scored.shape).masked_scatter(scored, tokens)
    return tokens.view(labels.shape)


@dataclass(frozen=True, eq=False)
class Predictions:
    """A distribution over the vocabulary for each of (batch, places), kept as what makes its logits.

    states: (batch, places, d_model). The others are arguments of ``nll``.
    """

    states: Float[Tensor, "batch places d_model"]
    table: Product
    bias: Float[Tensor, " vocab"] | None = None
    soft_cap: float | None = None
    transform: Callable[[Tensor], Tensor] | None = None

    def logits(self) -> Float[Tensor, "batch places vocab"]:
        """All of them at once."""
        x = self.states if self.transform is None else self.transform(self.states)
        return logits_of(x, self.table, self.bias, self.soft_cap)

    def nll(
        self,
        labels: Int[Tensor, "batch places"],
        *,
        smoothing: float = 0.0,
        weights: Float[Tensor, "batch places"] | None = None,
        reduction: Reduction = "sum",
    ) -> Float[Tensor, "*reduced"]:
        """-ln p(label) in nats, their sum () or each (batch, places); see ``nll``."""
        return nll(
            self.states, self.table, labels, bias=self.bias, soft_cap=self.soft_cap, smoothing=smoothing,
            weights=weights, transform=self.transform, reduction=reduction,
        )  # fmt: skip

    @torch.no_grad()
    def likeliest(self) -> Int[Tensor, "batch places"]:
        """The entry with the largest logit at each place, the first of equal ones, found chunk by chunk."""
        x = self.states.flatten(0, 1)
        x = x if self.transform is None else self.transform(x)
        parts = (x[chunk] for chunk in _chunks(x, self.table))
        best = [logits_of(part, self.table, self.bias, self.soft_cap).argmax(-1) for part in parts]
        return torch.cat(best).view(self.states.shape[:2])


def _chunks(x: Float[Tensor, "tokens d"], table: Product) -> Iterator[slice]:
    """Parts of the tokens whose logits are small enough to exist at once; one empty part where there are no tokens."""
    vocab = table.shape[0] if isinstance(table, Tensor) else table(x[:1]).shape[-1]
    rows = max(1, CHUNK_BYTES // (4 * vocab))
    return (slice(start, start + rows) for start in range(0, max(1, len(x)), rows))


@dataclass(frozen=True)
class _Rule:
    """From products to losses, and from these back to the gradient of the products."""

    soft_cap: float | None
    smoothing: float

    def losses(self, products: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(the loss of each token, logits, ln p of every entry)."""
        logits = products if self.soft_cap is None else self.soft_cap * torch.tanh(products / self.soft_cap)
        log_p = logits.log_softmax(-1)
        picked = -log_p.gather(-1, targets[:, None])[:, 0]
        if self.smoothing:
            picked = (1.0 - self.smoothing) * picked - self.smoothing * log_p.mean(-1)
        return picked, logits, log_p

    def slope(self, logits: Tensor, log_p: Tensor, targets: Tensor, factor: Tensor | None) -> Tensor:
        """The gradient of ``factor`` · loss by the products, (tokens, vocab); written over ``log_p``."""
        slope = log_p.exp_()
        if self.smoothing:
            slope -= self.smoothing / slope.shape[-1]
        slope[torch.arange(len(targets), device=targets.device), targets] -= 1.0 - self.smoothing
        if self.soft_cap is not None:
            slope *= 1.0 - (logits / self.soft_cap).square()
        return slope if factor is None else slope.mul_(factor[:, None])


def _by_function(
    x: Tensor, function: Callable[[Tensor], Tensor], bias: Tensor | None, targets: Tensor, rule: _Rule
) -> Tensor:
    """The loss of each token where a function makes logits; where chunks are several, the backward makes each again."""

    def one(x: Tensor, targets: Tensor) -> Tensor:
        products = logits_of(x, function, bias)
        return rule.losses(wide(products), targets)[0]

    chunks = list(_chunks(x, function))
    if len(chunks) == 1:
        return one(x, targets)
    return torch.cat([checkpoint(one, x[chunk], targets[chunk], use_reentrant=False) for chunk in chunks])


Gradients: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor | None]  # of x, table and bias


def _pass(
    x: Tensor, table: Tensor, bias: Tensor | None, targets: Tensor, rule: _Rule, compute: torch.dtype,
    needed: Sequence[bool] = (False, False, False), factor: Tensor | None = None,
) -> tuple[Tensor, Gradients]:  # fmt: skip
    """The loss of each token, and of the sum of ``factor`` · loss the gradients that are ``needed``."""
    losses = x.new_empty(len(x), dtype=wide_dtype(compute))
    grad_x = torch.empty_like(x) if needed[0] else None
    grad_w = torch.zeros_like(table) if needed[1] else None
    grad_b = torch.zeros_like(bias) if bias is not None and needed[2] else None
    with torch.autocast(x.device.type, enabled=False):
        w, b = table.to(compute), None if bias is None else bias.to(compute)
        for chunk in _chunks(x, table):
            part, target = x[chunk].to(compute), targets[chunk]
            losses[chunk], logits, log_p = rule.losses(wide(F.linear(part, w, b)), target)
            if not any(needed):
                continue
            slope = rule.slope(logits, log_p, target, None if factor is None else factor[chunk].to(losses.dtype))
            if grad_b is not None:
                grad_b += slope.sum(0)
            slope = slope.to(compute)
            if grad_x is not None:
                grad_x[chunk] = slope @ w
            if grad_w is not None and compute == grad_w.dtype:
                grad_w.addmm_(slope.mT, part)
            elif grad_w is not None:
                grad_w += slope.mT @ part
    return losses, (grad_x, grad_w, grad_b)


def _product_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class _Sum(torch.autograd.Function):
    """The sum of losses. Its gradients are known in the forward, but for one factor: each chunk of logits is used for
    loss and gradients and dropped, and the backward needs no second product."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, table: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor | None, rule: _Rule
    ) -> Tensor:
        needed = ctx.needs_input_grad[:3]
        losses, gradients = _pass(x, table, bias, targets, rule, _product_dtype(x), needed, weights)
        ctx.save_for_backward(*gradients)
        return losses.sum() if weights is None else losses @ weights.to(losses.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return *(None if g is None else g * grad.to(g.dtype) for g in ctx.saved_tensors), None, None, None


class _Tokens(torch.autograd.Function):
    """The loss of each token. What gradient each gets is not known before the backward, which makes every chunk of
    logits a second time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, bias: Tensor | None, targets: Tensor, rule: _Rule) -> Tensor:
        ctx.rule, ctx.compute = rule, _product_dtype(x)
        ctx.save_for_backward(x, table, bias, targets)
        return _pass(x, table, bias, targets, rule, ctx.compute)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, table, bias, targets = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        return *_pass(x, table, bias, targets, ctx.rule, ctx.compute, needed, grad)[1], None, None
