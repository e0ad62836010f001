"""Every initialisation rule, in one table."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pellucid.nn.base import Model
from pellucid.nn.biases import BucketedBias
from pellucid.nn.models import AnyModel, build_model
from pellucid.nn.recurrent import open_forget_gates
from pellucid.spec import InitRule, ModelSpec

# what each rule draws, as a standard deviation; width is the fan-in of a matrix, L the number of layers
#
# weight                         normal              fan_in                    xavier
# -----------------------------  ------------------  ------------------------  ------------------------------
# token embedding                0.02                0.02                      1 / sqrt(d_model)
# positions, types, first place  0.02                0.02                      0.02
# into a layer: q k v, up, gate  0.02                1 / sqrt(width)           sqrt(2 / (fan-in + fan-out))
# patches, a wider embedding     as into a layer
# recurrent, router, experts     as into a layer, each expert a matrix of its own
# into the stream: o, down       0.02 / sqrt(2 L)    0: a block starts as id   sqrt(2 / (fan-in + fan-out))
# untied head                    0.02                0.02                      1 / sqrt(d_model)
# biases, score buckets          0                   0                         0
# an LSTM's forget gates: bias   1                   1                         1
# norms, layer scales, and what  as they were built: the module's own docstring says how
#   else says keeps_initial_weights
#
# normal: Radford et al. 2019. fan_in: LeCun et al. 1998 with zero residual branches (Zhang et al. 2019).
# xavier: Glorot & Bengio 2010, as in Vaswani et al.'s code (embeddings scaled by sqrt(d_model) on use).
Std = Callable[[str, int, int, int], float]

M = TypeVar("M", bound=Model)


def _normal(kind: str, fan_in: int, fan_out: int, n_layers: int) -> float:
    return 0.02 / math.sqrt(2 * n_layers) if kind == "out" else 0.02


def _fan_in(kind: str, fan_in: int, fan_out: int, n_layers: int) -> float:
    return {"in": fan_in**-0.5, "out": 0.0}.get(kind, 0.02)


def _xavier(kind: str, fan_in: int, fan_out: int, n_layers: int) -> float:
    if kind in ("in", "out"):
        return math.sqrt(2 / (fan_in + fan_out))
    return 0.02 if kind == "positions" else fan_in**-0.5


RULES: dict[InitRule, Std] = {"normal": _normal, "fan_in": _fan_in, "xavier": _xavier}


def _kind(name: str) -> str:
    parts = name.split(".")
    if parts[0] in ("encoder", "decoder"):
        parts = parts[1:]
    if parts[0] == "embed" and "project" not in parts:
        return "embed" if "tokens" in parts else "positions"
    if parts[0] == "head":
        return "in" if "dense" in parts else "head"
    return "out" if {"o", "down"} & set(parts[-2:]) else "in"


def initialise(model: M, rule: InitRule = "normal", seed: int = 0) -> M:
    """Draw every weight by the rule's column of the table above, reproducibly; returns the same model.

    The same seed gives the same weights, whatever was drawn from torch's global generator before.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    n_layers = model.spec.n_layers
    built = [m for m in model.modules() if getattr(m, "keeps_initial_weights", False)]
    keep = {id(p) for m in built for p in m.parameters(recurse=False)}
    buckets = {id(p) for m in model.modules() if isinstance(m, BucketedBias) for p in m.parameters()}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if id(weight) in keep:
                continue
            if weight.ndim < 2 or name.endswith(".bias") or id(weight) in buckets:  # experts' biases are a table
                weight.zero_()
                continue
            fan_out, fan_in = weight.shape[-2:]
            std = RULES[rule](_kind(name), fan_in, fan_out, n_layers)
            weight.copy_(_draw(weight, std, generator))
    for module in model.modules():
        if isinstance(module, nn.LSTM | nn.LSTMCell):
            open_forget_gates(module)
    return model


def _draw(weight: Tensor, std: float, generator: torch.Generator) -> Tensor:
    return torch.randn(weight.shape, generator=generator) * std


class _Undrawn(TorchFunctionMode):
    """While it is on, what modules draw for their weights is not drawn: the memory is reserved, and not yet touched."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def build_undrawn(spec: ModelSpec) -> AnyModel:
    """The model of a spec for one who has its weights: they hold anything until they are copied in."""
    with _Undrawn():
        return build_model(spec)
