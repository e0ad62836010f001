"""Linear parts of a model, read backwards: from a direction of what leaves them to that of what enters them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pellucid.nn.norms import LayerNorm, RMSNorm
from pellucid.nn.wide import wide


def pull_back(linear: nn.Module, direction: Float[Tensor, "*axes d_out"], d_in: int) -> Float[Tensor, "*axes d_in"]:
    """Wᵀ · direction, for a module that computes W x + b: whatever holds W, plain, quantised or adapted."""
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.zeros(*direction.shape[:-1], d_in, dtype=direction.dtype, device=direction.device, requires_grad=True)
        (pulled,) = torch.autograd.grad(linear(x), x, direction.clone())
    return pulled


@torch.no_grad()
def matrix_of(linear: nn.Module, d_in: int, dtype: torch.dtype) -> Float[Tensor, "d_out d_in"]:
    """W of a module that computes W x + b, whatever holds it."""
    if type(linear) is nn.Linear:
        return linear.weight
    device = next(iter((*linear.parameters(), *linear.buffers()))).device
    rows = torch.eye(d_in, dtype=dtype, device=device)
    return (linear(rows) - linear(torch.zeros_like(rows[:1]))).T


@dataclass(frozen=True)
class FrozenNorm:
    """A norm with the scale that it had on one input: an affine map, so that its output is a sum over parts of that.

    scale: 1 / σ of each input vector, (*axes, 1); 1 where there is no norm.
    """

    norm: nn.Module
    scale: Float[Tensor, "*axes 1"]

    @staticmethod
    def at(norm: nn.Module, x: Float[Tensor, "*axes d"]) -> FrozenNorm:
        """``norm`` as it is on x."""
        x = wide(x)
        if isinstance(norm, LayerNorm):
            return FrozenNorm(norm, (x.var(-1, keepdim=True, unbiased=False) + norm.eps).rsqrt())
        if isinstance(norm, RMSNorm):
            return FrozenNorm(norm, (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt())
        return FrozenNorm(norm, torch.ones_like(x[..., :1]))

    def pull_back(self, direction: Float[Tensor, "*axes d"]) -> Float[Tensor, "*axes d"]:
        """The direction of the norm's input that moves this direction of its output, its scale held fixed."""
        if isinstance(self.norm, LayerNorm):
            moved = direction * self.norm.weight * self.scale
            return moved - moved.mean(-1, keepdim=True)
        if isinstance(self.norm, RMSNorm):
            return direction * (self.norm.weight + self.norm.offset) * self.scale
        return direction

    def constant(self, direction: Float[Tensor, "*axes d"]) -> Float[Tensor, "*axes"]:
        """What the norm's own bias adds along this direction of its output."""
        bias = getattr(self.norm, "bias", None)
        return torch.zeros_like(direction[..., 0]) if bias is None else (direction * bias).sum(-1)
