"""Who may look at whom: a mask is a predicate over positions and segments, a value, and closed under and, or, not.

Specs hold masks (``pellucid.spec`` names them all again); ``nn.masks`` lowers them to what a kernel can use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pellucid.errors import SpecError
from pellucid.values import Value


@dataclass(frozen=True)
class Mask(Value):
    """A predicate over positions. Combine with ``&``, ``|`` and ``~``.

    ``allow`` uses operators only, so it works on numbers and on tensors alike; nn.masks lowers it for each kernel.
    """

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        """Whether a query at (position, segment) may see a key at (position, segment)."""
        raise TypeError(f"{type(self).__name__} is not a mask")

    def reach(self) -> int | None:
        """How many positions back, itself included, a query sees at most; None where there is no bound."""
        return None

    def __and__(self, other: Mask) -> Mask:
        return And(self, other)

    def __or__(self, other: Mask) -> Mask:
        return Or(self, other)

    def __invert__(self) -> Mask:
        return Not(self)


@dataclass(frozen=True)
class Full(Mask):
    """Everyone sees everyone."""

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        return (q_pos == q_pos) & (k_pos == k_pos)


@dataclass(frozen=True)
class Causal(Mask):
    """A token sees itself and what came before."""

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        return k_pos <= q_pos


@dataclass(frozen=True)
class Window(Mask):
    """A token sees those fewer than ``size`` positions away: the window counts the token itself."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise SpecError(f"Window: size is {self.size}", "a window holds at least the token itself: size >= 1")

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        return (q_pos - k_pos < self.size) & (k_pos - q_pos < self.size)

    def reach(self) -> int | None:
        return self.size


@dataclass(frozen=True)
class SameSegment(Mask):
    """A token sees its own document of a packed row. Models apply it to every packed batch: rarely written out."""

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        return q_seg == k_seg


@dataclass(frozen=True)
class Prefix(Mask):
    """Everyone sees the first ``length`` positions: ``Causal() | Prefix(n)`` is the prefix language model."""

    length: int

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        return (k_pos < self.length) & (q_pos == q_pos)


@dataclass(frozen=True)
class And(Mask):
    a: Mask
    b: Mask

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        return self.a.allow(q_pos, k_pos, q_seg, k_seg) & self.b.allow(q_pos, k_pos, q_seg, k_seg)

    def reach(self) -> int | None:
        return min((n for n in (self.a.reach(), self.b.reach()) if n is not None), default=None)


@dataclass(frozen=True)
class Or(Mask):
    a: Mask
    b: Mask

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        return self.a.allow(q_pos, k_pos, q_seg, k_seg) | self.b.allow(q_pos, k_pos, q_seg, k_seg)

    def reach(self) -> int | None:
        a, b = self.a.reach(), self.b.reach()
        return None if a is None or b is None else max(a, b)


@dataclass(frozen=True)
class Not(Mask):
    a: Mask

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        return self.a.allow(q_pos, k_pos, q_seg, k_seg) == False  # noqa: E712  (`not` and `~` differ on bool and Tensor)
