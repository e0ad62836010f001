"""The algebra of masks: what a mask is asked, its leaves for dense attention, and and, or, not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from pellucid.errors import SpecError
from pellucid.values import Value

ORDINARY, PREFIX = 0, 1  # the parts that a token can play in its document


class Place(NamedTuple):
    """Where tokens stand, as numbers or as integer tensors that broadcast with those of another place.

    pos: position within the document, from 0; -1 where there is no token. seg: which document of its row. part: the
    token's role in its document, ORDINARY or PREFIX.
    """

    pos: Any
    seg: Any = 0
    part: Any = ORDINARY


@dataclass(frozen=True)
class Span:
    """What is known of a block of tokens: the least and greatest position, segment and part, all inclusive."""

    lo: Any
    hi: Any
    seg_lo: Any = 0
    seg_hi: Any = 0
    part_lo: Any = ORDINARY
    part_hi: Any = ORDINARY


Bounds = tuple[Any, Any]  # (some pair may be allowed, every pair is certainly allowed)


class Ahead(NamedTuple):
    """Which later tokens a query may see at most, as far as the form of a mask proves it.

    first: tokens among the first ``first`` positions of the document. marked: also tokens whose part is PREFIX. Reading
    these tokens in one piece, and the others in any pieces over a cache, gives what reading all at once gives.
    """

    first: int = 0
    marked: bool = False

    def __or__(self, other: Ahead) -> Ahead:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Ahead(max(self.first, other.first), self.marked or other.marked)


@dataclass(frozen=True)
class Mask(Value):
    """A predicate over places. Combine with ``&``, ``|`` and ``~``.

    ``allow`` and ``bounds`` use operators only, so they work on numbers and on (int64) tensors alike.
    """

    def allow(self, q: Place, k: Place) -> Any:
        """Whether a query at the place ``q`` may see a key at the place ``k``."""
        raise TypeError(f"{type(self).__name__} is not a mask")

    def bounds(self, q: Span, k: Span) -> Bounds:
        """(some, all): not some proves that no query of ``q`` sees any key of ``k``; all, that each sees every one.

        Between the two the block must be looked into. Here: nothing is proved.
        """
        some = (q.lo == q.lo) & (k.lo == k.lo)
        return some, negated(some)

    def reach(self) -> int | None:
        """How many positions back, itself included, a query sees at most; None where there is no bound."""
        return None

    def ahead(self) -> Ahead | None:
        """Which later tokens a query may see at most; None where nothing is proved."""
        return None

    @property
    def asks_part(self) -> bool:
        """Whether the answer may depend on the tokens' parts, which must then be told."""
        return False

    def causal(self) -> bool:
        """Whether it is proved that no query sees a later position."""
        return self.ahead() == Ahead()

    def __and__(self, other: Mask) -> Mask:
        return And(self, other)

    def __or__(self, other: Mask) -> Mask:
        return Or(self, other)

    def __invert__(self) -> Mask:
        return Not(self)


def negated(x: Any) -> Any:
    """The opposite of a bool, or of each entry of an array or tensor."""
    return x == False  # noqa: E712  (`not` and `~` differ on bool and Tensor)


def require(ok: bool, mask: Mask, problem: str, remedy: str) -> None:
    """Raise SpecError naming the mask's type, unless ``ok``."""
    if not ok:
        raise SpecError(f"{type(mask).__name__}: {problem}", remedy)


# --- leaves ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Full(Mask):
    """Everyone sees everyone."""

    def allow(self, q: Place, k: Place) -> Any:
        return (q.pos == q.pos) & (k.pos == k.pos)

    def bounds(self, q: Span, k: Span) -> Bounds:
        every = (q.lo == q.lo) & (k.lo == k.lo)
        return every, every


@dataclass(frozen=True)
class Causal(Mask):
    """A token sees itself and what came before."""

    def allow(self, q: Place, k: Place) -> Any:
        return k.pos <= q.pos

    def bounds(self, q: Span, k: Span) -> Bounds:
        return k.lo <= q.hi, k.hi <= q.lo

    def ahead(self) -> Ahead | None:
        return Ahead()


@dataclass(frozen=True)
class Window(Mask):
    """A token sees those fewer than ``size`` positions away: the window counts the token itself."""

    size: int

    def __post_init__(self) -> None:
        require(self.size >= 1, self, f"size is {self.size}", "a window holds at least the token itself: size >= 1")

    def allow(self, q: Place, k: Place) -> Any:
        return (q.pos - k.pos < self.size) & (k.pos - q.pos < self.size)

    def bounds(self, q: Span, k: Span) -> Bounds:
        some = (q.lo - k.hi < self.size) & (k.lo - q.hi < self.size)
        return some, (q.hi - k.lo < self.size) & (k.hi - q.lo < self.size)

    def reach(self) -> int | None:
        return self.size


@dataclass(frozen=True)
class SameSegment(Mask):
    """A token sees its own document of a packed row. Models apply it to every packed batch: rarely written out."""

    def allow(self, q: Place, k: Place) -> Any:
        return q.seg == k.seg

    def bounds(self, q: Span, k: Span) -> Bounds:
        some = (q.seg_lo <= k.seg_hi) & (k.seg_lo <= q.seg_hi)
        return some, (q.seg_lo == q.seg_hi) & (k.seg_lo == k.seg_hi) & (q.seg_lo == k.seg_lo)


@dataclass(frozen=True)
class Prefix(Mask):
    """Everyone sees the first ``length`` positions: ``Causal() | Prefix(n)`` is the prefix language model."""

    length: int

    def __post_init__(self) -> None:
        require(self.length >= 0, self, f"length is {self.length}", "a number of tokens: length >= 0")

    def allow(self, q: Place, k: Place) -> Any:
        return (k.pos < self.length) & (q.pos == q.pos)

    def bounds(self, q: Span, k: Span) -> Bounds:
        return (k.lo < self.length) & (q.lo == q.lo), (k.hi < self.length) & (q.lo == q.lo)

    def ahead(self) -> Ahead | None:
        return Ahead(first=self.length)


@dataclass(frozen=True)
class PrefixPart(Mask):
    """Tokens of the prefix see each other: ``Causal() | PrefixPart()`` is a prefix language model (Raffel et al. 2020,
    section 3.2.1) in which each document has a prefix of its own length, or none: the tokens whose part is PREFIX."""

    def allow(self, q: Place, k: Place) -> Any:
        return (q.part == PREFIX) & (k.part == PREFIX) & (q.pos == q.pos) & (k.pos == k.pos)

    def bounds(self, q: Span, k: Span) -> Bounds:
        some = (q.part_lo <= PREFIX) & (q.part_hi >= PREFIX) & (k.part_lo <= PREFIX) & (k.part_hi >= PREFIX)
        every = (q.part_lo == PREFIX) & (q.part_hi == PREFIX) & (k.part_lo == PREFIX) & (k.part_hi == PREFIX)
        here = (q.lo == q.lo) & (k.lo == k.lo)
        return some & here, every & here

    def ahead(self) -> Ahead | None:
        return Ahead(marked=True)

    @property
    def asks_part(self) -> bool:
        return True


# --- the algebra -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class And(Mask):
    """``a & b``: visible where both let a query see a key."""

    a: Mask
    b: Mask

    def allow(self, q: Place, k: Place) -> Any:
        return self.a.allow(q, k) & self.b.allow(q, k)

    def bounds(self, q: Span, k: Span) -> Bounds:
        (some_a, all_a), (some_b, all_b) = self.a.bounds(q, k), self.b.bounds(q, k)
        return some_a & some_b, all_a & all_b

    def reach(self) -> int | None:
        return min((n for n in (self.a.reach(), self.b.reach()) if n is not None), default=None)

    def ahead(self) -> Ahead | None:
        """Each of the two is a bound; the one that can be told from positions alone is the better."""
        known = [ahead for ahead in (self.a.ahead(), self.b.ahead()) if ahead is not None]
        return min(known, key=lambda ahead: (ahead.marked, ahead.first), default=None)

    @property
    def asks_part(self) -> bool:
        return self.a.asks_part or self.b.asks_part


@dataclass(frozen=True)
class Or(Mask):
    """``a | b``: visible where one of them lets a query see a key."""

    a: Mask
    b: Mask

    def allow(self, q: Place, k: Place) -> Any:
        return self.a.allow(q, k) | self.b.allow(q, k)

    def bounds(self, q: Span, k: Span) -> Bounds:
        (some_a, all_a), (some_b, all_b) = self.a.bounds(q, k), self.b.bounds(q, k)
        return some_a | some_b, all_a | all_b

    def reach(self) -> int | None:
        a, b = self.a.reach(), self.b.reach()
        return None if a is None or b is None else max(a, b)

    def ahead(self) -> Ahead | None:
        a, b = self.a.ahead(), self.b.ahead()
        return None if a is None or b is None else a | b

    @property
    def asks_part(self) -> bool:
        return self.a.asks_part or self.b.asks_part


@dataclass(frozen=True)
class Not(Mask):
    """``~a``: visible exactly where ``a`` hides a key."""

    a: Mask

    def allow(self, q: Place, k: Place) -> Any:
        return negated(self.a.allow(q, k))

    def bounds(self, q: Span, k: Span) -> Bounds:
        some, every = self.a.bounds(q, k)
        return negated(every), negated(some)

    @property
    def asks_part(self) -> bool:
        return self.a.asks_part
