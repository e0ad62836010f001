"""A layer in words: one ``Part`` for the tables, the drawing in a terminal, and the diagram."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Literal

from pellucid.predicates import And, Full, Mask, Not, Or
from pellucid.spec.parts import BiasSpec, NormSpec, RotarySpec


@dataclass(frozen=True)
class Part:
    """One sublayer: its title, what is particular about it, its matrices ("q 64→64"); the mask where it attends.

    reads_encoder: whether it attends to an encoder's states. computed: how, where that is no choice of a kernel.
    """

    kind: Literal["attention", "linear", "recurrent", "ffn"]
    title: str
    details: tuple[str, ...]
    matrices: tuple[str, ...]
    mask: Mask | None = None
    reads_encoder: bool = False
    computed: str = ""


def norm_name(spec: NormSpec | None) -> str:
    """The norm's name, or "no norm"."""
    return "no norm" if spec is None else spec.name


def describe(mask: Mask) -> str:
    """A mask as it is combined: causal & window(256)."""
    if isinstance(mask, And | Or):
        sides = (mask.a, mask.b)
        mixed = [isinstance(side, And | Or) and type(side) is not type(mask) for side in sides]
        a, b = (f"({describe(side)})" if odd else describe(side) for side, odd in zip(sides, mixed, strict=True))
        return f"{a} {'&' if isinstance(mask, And) else '|'} {b}"
    if isinstance(mask, Not):
        return f"~({describe(mask.a)})"
    if isinstance(mask, Full):
        return "sees all"
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(mask).__name__).lower()
    values = [getattr(mask, field.name) for field in fields(mask) if getattr(mask, field.name) != field.default]
    return f"{name}({', '.join(map(str, values))})" if values else name


def times(x: float) -> str:
    """A factor; a root of a whole number, or one over it, where that says more than its digits."""
    if not x or float(f"{x:.3g}") == x:
        return f"{x:g}"
    square = x * x if x * x > 1 else 1 / (x * x)
    if x < 0 or abs(square - round(square)) > 1e-9 * square:
        return f"{x:.4g}"
    return f"√{round(square)}" if x > 1 else f"1/√{round(square)}"


def rotary_words(spec: RotarySpec | None) -> list[str]:
    """Rotary positions, and where they differ from the usual ones; nothing for None."""
    if spec is None:
        return []
    more = [f"base {spec.base:,.0f}"] if spec.base != 10_000 else []
    more += [f"{spec.fraction:.0%} of a head"] if spec.fraction != 1 else []
    more += [f"stretched {spec.scaling.factor:g} times, {spec.scaling.name}"] if spec.scaling else []
    return [f"rotary ({', '.join(more)})" if more else "rotary"]


def projection_biases(inner: bool, out: bool) -> list[str]:
    """Which projections of a mixer have biases; nothing for none."""
    if not inner:
        return ["bias on o"] * out
    return ["biases"] if out else ["biases on q, k, v"]


def bias_words(bias: BiasSpec | None) -> list[str]:
    """A score term; nothing for None."""
    return [] if bias is None else [bias.words]
