"""Feed-forward layers, plain and gated: the same function of every token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.nn.registry import computes
from pellucid.spec import Activation, FFNSpec, GatedFFNSpec
from pellucid.taps import Tapped


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)² (So et al. 2021)."""
    return F.relu(x).square()


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu2": relu_squared,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # another function than exact GELU, up to 5e-4 apart
    "silu": F.silu,
}


@computes(FFNSpec, GatedFFNSpec)
class FeedForward(Tapped):
    """down(act(up(x))), or with a gate down(act(gate(x)) · up(x)).

    Points, (batch, time, d_ff) each: ``ffn_pre``, what enters the activation; of a gated layer ``gate``, what leaves
    it, and ``up``; ``ffn_act``, what ``down`` reads, with a gate the product of these two.
    """

    def __init__(self, spec: FFNSpec | GatedFFNSpec, d_model: int):
        super().__init__()
        self.activation = ACTIVATIONS[spec.activation]
        self.up = nn.Linear(d_model, spec.d_ff, bias=spec.bias)
        self.gate = nn.Linear(d_model, spec.d_ff, bias=spec.bias) if spec.gated else None
        self.down = nn.Linear(spec.d_ff, d_model, bias=spec.bias)

    def points(self) -> dict[str, str]:
        names = ("ffn_pre", "ffn_act") if self.gate is None else ("ffn_pre", "gate", "up", "ffn_act")
        return dict.fromkeys(names, "batch time d_ff")

    def forward(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch time d_model"]:
        if self.gate is None:
            act = self.activation(self.tap("ffn_pre", self.up(x)))
        else:
            gate = self.tap("gate", self.activation(self.tap("ffn_pre", self.gate(x))))
            act = gate * self.tap("up", self.up(x))
        return self.down(self.tap("ffn_act", act))
