"""From the residual stream to what a model is for: logits (and their loss without ever holding them all), one vector
or class a row, one class a token."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pellucid.batch import IGNORE, Tokens
from pellucid.errors import DataError
from pellucid.nn.ffn import ACTIVATIONS
from pellucid.nn.norms import build_norm
from pellucid.spec import ClassifierHeadSpec, LMHeadSpec, MaskedLMHeadSpec, PoolerHeadSpec, TaggerHeadSpec
from pellucid.taps import Tapped

CHUNK_BYTES = 128 << 20  # of logits at a time: enough for full matrix speed


class LMHead(nn.Module):
    """logits = scale · x · weightᵀ (+ bias), then cap · tanh(logits / cap) with a soft cap.

    A tied head has no weight of its own: it is given the embedding's, so there is no second name to keep in step.
    """

    def __init__(self, spec: LMHeadSpec, vocab_size: int, d_model: int):
        super().__init__()
        self.soft_cap, self.scale = spec.soft_cap, spec.scale
        self.weight = None if spec.tied else nn.Parameter(nn.init.constant_(torch.empty(vocab_size, d_model), 0.0))
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if spec.bias else None

    def table(self, embedding: Float[Tensor, "vocab d_embed"]) -> Float[Tensor, "vocab d_head"]:
        """The matrix that makes logits: its own, or the embedding's when tied."""
        return embedding if self.weight is None else self.weight

    def transform(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_model"]:
        """What is multiplied by the table."""
        return x if self.scale == 1.0 else x * self.scale

    def forward(
        self, x: Float[Tensor, "batch time d_model"], embedding: Float[Tensor, "vocab d_embed"]
    ) -> Float[Tensor, "batch time vocab"]:
        logits = F.linear(self.transform(x), self.table(embedding), self.bias)
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)

    def nll_sum(
        self,
        x: Float[Tensor, "batch time d_model"],
        labels: Int[Tensor, "batch time"],
        embedding: Float[Tensor, "vocab d_embed"],
    ) -> Float[Tensor, ""]:
        """Sum over scored positions of -ln p(label), in nats; those labelled IGNORE cost nothing."""
        flat, targets = x.flatten(0, 1), labels.flatten()
        scored = targets != IGNORE
        if not bool(scored.all()):
            flat, targets = flat[scored], targets[scored]
        return _NLLSum.apply(self.transform(flat), self.table(embedding), self.bias, targets, self.soft_cap)


class MaskedLMHead(LMHead):
    """logits = norm(act(dense(x))) · weightᵀ + bias (Devlin et al. 2018, in their code); dense: d_model to d_embed."""

    def __init__(self, spec: MaskedLMHeadSpec, vocab_size: int, d_model: int, d_embed: int):
        super().__init__(LMHeadSpec(spec.tied, spec.bias), vocab_size, d_embed)
        self.dense = nn.Linear(d_model, d_embed)
        self.activation = ACTIVATIONS[spec.activation]
        self.norm = build_norm(spec.norm, d_embed)

    def transform(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_embed"]:
        return self.norm(self.activation(self.dense(x)))


class PoolerHead(Tapped):
    """One vector a row; padding has no part in it, and a row without a token gives what no token gives: zeros pooled.

    Point: ``pooled`` (batch, d_model).
    """

    def __init__(self, spec: PoolerHeadSpec, d_model: int):
        super().__init__()
        self.take, self.normalise = spec.take, spec.normalise
        self.dense = nn.Linear(d_model, d_model) if spec.dense else None
        self.activation = torch.tanh if spec.activation == "tanh" else torch.relu

    def points(self) -> dict[str, str]:
        return {"pooled": "batch d_model"}

    def pool(self, x: Float[Tensor, "batch time d_model"], tokens: Tokens) -> Float[Tensor, "batch d_model"]:
        """The first or last token's state, or the mean or maximum over tokens."""
        valid = (tokens.pos >= 0)[..., None]  # (batch, time, 1)
        if self.take == "mean":
            return (x * valid).sum(1) / valid.sum(1).clamp(min=1)
        if self.take == "max":
            return torch.where(valid.any(1), x.masked_fill(~valid, -torch.inf).amax(1), torch.zeros_like(x[:, 0]))
        places = torch.arange(x.shape[1], device=x.device)[None, :, None].expand_as(valid)
        far = x.shape[1] if self.take == "first" else -1
        places = places.masked_fill(~valid, far)
        chosen = places.amin(1) if self.take == "first" else places.amax(1)  # (batch, 1)
        none = chosen == far
        picked = x.gather(1, chosen.masked_fill(none, 0)[..., None].expand(-1, -1, x.shape[-1]))[:, 0]
        return picked.masked_fill(none, 0.0)

    def forward(self, x: Float[Tensor, "batch time d_model"], tokens: Tokens) -> Float[Tensor, "batch d_model"]:
        """Raises DataError for packed rows, which hold several texts."""
        if tokens.seg is not None:
            raise DataError("a packed row is several texts, and has no one vector", "give each text a row of its own")
        y = self.pool(x, tokens)
        y = y if self.dense is None else self.activation(self.dense(y))
        return self.tap("pooled", F.normalize(y, dim=-1) if self.normalise else y)


class ClassifierHead(nn.Module):
    """Logits of each row's class: W pooled(x) + b."""

    def __init__(self, spec: ClassifierHeadSpec, d_model: int):
        super().__init__()
        self.pooler = PoolerHead(spec.pooler, d_model)
        self.out = nn.Linear(d_model, spec.n_classes)

    def forward(self, x: Float[Tensor, "batch time d_model"], tokens: Tokens) -> Float[Tensor, "batch 1 classes"]:
        return self.out(self.pooler(x, tokens))[:, None]


class TaggerHead(nn.Module):
    """Logits of each token's class: W x + b."""

    def __init__(self, spec: TaggerHeadSpec, d_model: int):
        super().__init__()
        self.out = nn.Linear(d_model, spec.n_classes)

    def forward(self, x: Float[Tensor, "batch time d_model"], tokens: Tokens) -> Float[Tensor, "batch time classes"]:
        return self.out(x)


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
