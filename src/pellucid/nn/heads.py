"""From the residual stream to logits, and to the loss without ever holding all logits."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pellucid.batch import IGNORE
from pellucid.spec import LMHeadSpec

CHUNK_BYTES = 128 << 20  # of logits at a time: enough for full matrix speed


class LMHead(nn.Module):
    """logits = x · weightᵀ (+ bias), then cap · tanh(logits / cap) with a soft cap.

    A tied head has no weight of its own: it is given the embedding's, so there is no second name to keep in step.
    """

    def __init__(self, spec: LMHeadSpec, vocab_size: int, d_model: int):
        super().__init__()
        self.soft_cap = spec.soft_cap
        self.weight = None if spec.tied else nn.Parameter(torch.zeros(vocab_size, d_model))
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if spec.bias else None

    def table(self, embedding: Float[Tensor, "vocab d_model"]) -> Float[Tensor, "vocab d_model"]:
        """The matrix that makes logits: its own, or the embedding's when tied."""
        return embedding if self.weight is None else self.weight

    def forward(
        self, x: Float[Tensor, "batch time d_model"], embedding: Float[Tensor, "vocab d_model"]
    ) -> Float[Tensor, "batch time vocab"]:
        logits = F.linear(x, self.table(embedding), self.bias)
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)

    def nll_sum(
        self,
        x: Float[Tensor, "batch time d_model"],
        labels: Int[Tensor, "batch time"],
        embedding: Float[Tensor, "vocab d_model"],
    ) -> Float[Tensor, ""]:
        """Sum over scored positions of -ln p(label), in nats; those labelled IGNORE cost nothing."""
        flat, targets = x.flatten(0, 1), labels.flatten()
        scored = targets != IGNORE
        if not bool(scored.all()):
            flat, targets = flat[scored], targets[scored]
        return _NLLSum.apply(flat, self.table(embedding), self.bias, targets, self.soft_cap)


class _NLLSum(torch.autograd.Function):
    """The gradient of a sum of cross-entropies is known in the forward (softmax minus one-hot): each chunk of logits is
    made, used for loss and gradients, and dropped: memory for one chunk, and no second product in the backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, soft_cap: float | None
    ) -> Tensor:
        compute = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        need_x, need_w, need_b = ctx.needs_input_grad[:3]
        grad_x = torch.empty_like(x) if need_x else None
        grad_w = torch.zeros_like(weight) if need_w else None
        grad_b = torch.zeros_like(bias) if bias is not None and need_b else None
        wide = torch.promote_types(compute, torch.float32)
        rows = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
        total = x.new_zeros((), dtype=wide)
        with torch.autocast(x.device.type, enabled=False):
            w = weight.to(compute)
            for start in range(0, len(labels), rows):
                chunk = slice(start, start + rows)
                part, target = x[chunk].to(compute), labels[chunk]
                logits = F.linear(part, w, None if bias is None else bias.to(compute)).to(wide)
                if soft_cap is not None:
                    logits = soft_cap * torch.tanh(logits / soft_cap)
                log_p = logits.log_softmax(-1)
                total -= log_p.gather(-1, target[:, None]).sum()
                if not (need_x or need_w or need_b):
                    continue
                slope = log_p.exp_()
                slope[torch.arange(len(target), device=target.device), target] -= 1.0
                if soft_cap is not None:
                    slope *= 1.0 - (logits / soft_cap).square()
                if grad_b is not None:
                    grad_b += slope.sum(0)
                slope = slope.to(compute)
                if grad_x is not None:
                    grad_x[chunk] = slope @ w
                if grad_w is not None:
                    if compute == grad_w.dtype:
                        grad_w.addmm_(slope.mT, part)
                    else:
                        grad_w += slope.mT @ part
        ctx.save_for_backward(grad_x, grad_w, grad_b)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return *(None if g is None else g * grad.to(g.dtype) for g in ctx.saved_tensors), None, None
