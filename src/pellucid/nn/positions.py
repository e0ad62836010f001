"""Positions added to the embedding: sinusoidal and learned."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pellucid.batch import Tokens
from pellucid.errors import DataError
from pellucid.spec import LearnedSpec, PositionSpec


def distinct_rows(tokens: Tokens) -> Tensor:
    """Positions (batch, time), or (1, time) where all rows are known to be equal: tables are then made once."""
    return tokens.pos if tokens.start is None else tokens.pos[:1]


class Sinusoidal(nn.Module):
    """PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i+1) = cos(same angle) (Vaswani et al. 2017, section 3.5).

    ``halves``: the same values in another order, PE(pos, i) = sin and PE(pos, d/2 + i) = cos.
    """

    def __init__(self, d_model: int, halves: bool = False):
        super().__init__()
        self.d_model, self.halves = d_model, halves

    def forward(self, tokens: Tokens) -> Float[Tensor, "rows time d_model"]:
        pos = distinct_rows(tokens)
        wide = torch.float32 if pos.device.type == "mps" else torch.float64  # which that device does not have
        i = torch.arange(0, self.d_model, 2, dtype=wide, device=pos.device)
        angle = pos[..., None] * torch.exp(i * (-math.log(10_000.0) / self.d_model))  # (rows, time, d_model / 2)
        return torch.stack((angle.sin(), angle.cos()), dim=-2 if self.halves else -1).flatten(-2)


class Learned(nn.Module):
    """One vector a position, up to ``context``, after ``offset`` unused rows. Raises DataError beyond it."""

    def __init__(self, context: int, d_model: int, offset: int = 0):
        super().__init__()
        self.offset = offset
        self.weight = nn.Parameter(torch.zeros(context + offset, d_model))

    def forward(self, tokens: Tokens) -> Float[Tensor, "rows time d_model"]:
        """The vector of each token's position; one row where all are alike. Raises DataError beyond ``context``."""
        pos, context = distinct_rows(tokens), self.weight.shape[0] - self.offset
        needed = 0 if tokens.start is None else tokens.start + pos.shape[1]
        if tokens.start is None and pos.device.type == "cpu" and pos.numel() and not torch.compiler.is_compiling():
            needed = int(pos.max()) + 1  # elsewhere the check would wait for the device
        if needed > context:
            raise DataError(
                f"{needed} positions, but the model has learned {context}",
                "shorten the text, or use a model with a longer context",
            )
        return nn.functional.embedding(pos.clamp(min=0) + self.offset, self.weight)


def build_positions(spec: PositionSpec | None, context: int, d_model: int) -> Sinusoidal | Learned | None:
    """The module that a spec describes; None where positions enter elsewhere (rotary, biases) or not at all."""
    if spec is None:
        return None
    if isinstance(spec, LearnedSpec):
        return Learned(context, d_model, spec.offset)
    return Sinusoidal(d_model, spec.layout == "halves")
