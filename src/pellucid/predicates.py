"""Who may look at whom: a mask is a predicate over positions and segments, a value, and closed under and, or, not.

Specs hold masks (``pellucid.spec`` names them all again); ``nn.masks`` lowers them to what a kernel can use. Sparse
attention is no other kind of mask: the layouts of its papers, at the end, are expressions like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pellucid.errors import SpecError
from pellucid.values import Value


@dataclass(frozen=True)
class Span:
    """What is known of a block of tokens: positions within [lo, hi] and segments within [seg_lo, seg_hi]."""

    lo: Any
    hi: Any
    seg_lo: Any = 0
    seg_hi: Any = 0


Bounds = tuple[Any, Any]  # (some pair may be allowed, every pair is certainly allowed)


@dataclass(frozen=True)
class Mask(Value):
    """A predicate over positions. Combine with ``&``, ``|`` and ``~``.

    ``allow`` and ``bounds`` use operators only, so they work on numbers and on (int64) tensors alike.
    """

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        """Whether a query at (position, segment) may see a key at (position, segment)."""
        raise TypeError(f"{type(self).__name__} is not a mask")

    def bounds(self, q: Span, k: Span) -> Bounds:
        """(some, all): not some proves that no query of ``q`` sees any key of ``k``; all, that each sees every one.

        Between the two the block must be looked into. Here: nothing is proved.
        """
        some = (q.lo == q.lo) & (k.lo == k.lo)
        return some, _not(some)

    def reach(self) -> int | None:
        """How many positions back, itself included, a query sees at most; None where there is no bound."""
        return None

    def causal(self, prefix: bool = False) -> bool:
        """Whether it is proved that no query sees a later position (with ``prefix``: but for a fixed prefix)."""
        return False

    def __and__(self, other: Mask) -> Mask:
        return And(self, other)

    def __or__(self, other: Mask) -> Mask:
        return Or(self, other)

    def __invert__(self) -> Mask:
        return Not(self)


def _not(x: Any) -> Any:
    return x == False  # noqa: E712  (`not` and `~` differ on bool and Tensor)


def _require(ok: bool, mask: Mask, problem: str, remedy: str) -> None:
    if not ok:
        raise SpecError(f"{type(mask).__name__}: {problem}", remedy)


# --- leaves ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Full(Mask):
    """Everyone sees everyone."""

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        return (q_pos == q_pos) & (k_pos == k_pos)

    def bounds(self, q: Span, k: Span) -> Bounds:
        every = (q.lo == q.lo) & (k.lo == k.lo)
        return every, every


@dataclass(frozen=True)
class Causal(Mask):
    """A token sees itself and what came before."""

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        return k_pos <= q_pos

    def bounds(self, q: Span, k: Span) -> Bounds:
        return k.lo <= q.hi, k.hi <= q.lo

    def causal(self, prefix: bool = False) -> bool:
        return True


@dataclass(frozen=True)
class Window(Mask):
    """A token sees those fewer than ``size`` positions away: the window counts the token itself."""

    size: int

    def __post_init__(self) -> None:
        _require(self.size >= 1, self, f"size is {self.size}", "a window holds at least the token itself: size >= 1")

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        return (q_pos - k_pos < self.size) & (k_pos - q_pos < self.size)

    def bounds(self, q: Span, k: Span) -> Bounds:
        some = (q.lo - k.hi < self.size) & (k.lo - q.hi < self.size)
        return some, (q.hi - k.lo < self.size) & (k.hi - q.lo < self.size)

    def reach(self) -> int | None:
        return self.size


@dataclass(frozen=True)
class SameSegment(Mask):
    """A token sees its own document of a packed row. Models apply it to every packed batch: rarely written out."""

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        return q_seg == k_seg

    def bounds(self, q: Span, k: Span) -> Bounds:
        some = (q.seg_lo <= k.seg_hi) & (k.seg_lo <= q.seg_hi)
        return some, (q.seg_lo == q.seg_hi) & (k.seg_lo == k.seg_hi) & (q.seg_lo == k.seg_lo)


@dataclass(frozen=True)
class Prefix(Mask):
    """Everyone sees the first ``length`` positions: ``Causal() | Prefix(n)`` is the prefix language model."""

    length: int

    def __post_init__(self) -> None:
        _require(self.length >= 0, self, f"length is {self.length}", "a number of tokens: length >= 0")

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        return (k_pos < self.length) & (q_pos == q_pos)

    def bounds(self, q: Span, k: Span) -> Bounds:
        return (k.lo < self.length) & (q.lo == q.lo), (k.hi < self.length) & (q.lo == q.lo)

    def causal(self, prefix: bool = False) -> bool:
        return prefix


@dataclass(frozen=True)
class Strided(Mask):
    """A token sees those a multiple of ``stride`` positions away, itself among them."""

    stride: int

    def __post_init__(self) -> None:
        _require(self.stride >= 1, self, f"stride is {self.stride}", "a distance in tokens: stride >= 1")

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        return (q_pos - k_pos) % self.stride == 0

    def bounds(self, q: Span, k: Span) -> Bounds:
        least, most = q.lo - k.hi, q.hi - k.lo
        some = most // self.stride * self.stride >= least  # the greatest multiple up to ``most`` is among them
        return some, (least == most) & some if self.stride > 1 else some


@dataclass(frozen=True)
class Summary(Mask):
    """Everyone sees the last ``count`` of every ``stride`` positions: places where a row may sum up its past."""

    stride: int
    count: int

    def __post_init__(self) -> None:
        found = f"count is {self.count}, stride {self.stride}"
        _require(1 <= self.count <= self.stride, self, found, "a part of the stride: 1 <= count <= stride")

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        return (k_pos % self.stride >= self.stride - self.count) & (q_pos == q_pos)

    def bounds(self, q: Span, k: Span) -> Bounds:
        first = k.lo % self.stride
        last, begin = first + k.hi - k.lo, self.stride - self.count
        return (last >= begin) & (q.lo == q.lo), (first >= begin) & (last < self.stride) & (q.lo == q.lo)


@dataclass(frozen=True)
class GlobalTokens(Mask):
    """The first ``count`` positions see everyone and are seen by everyone."""

    count: int

    def __post_init__(self) -> None:
        _require(self.count >= 0, self, f"count is {self.count}", "a number of tokens: count >= 0")

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        return (q_pos < self.count) | (k_pos < self.count)

    def bounds(self, q: Span, k: Span) -> Bounds:
        return (q.lo < self.count) | (k.lo < self.count), (q.hi < self.count) | (k.hi < self.count)


@dataclass(frozen=True)
class NearBlocks(Mask):
    """With positions cut into blocks of ``block``, a token sees its own block and those up to ``distance`` away."""

    block: int
    distance: int = 0

    def __post_init__(self) -> None:
        _require(self.block >= 1, self, f"block is {self.block}", "a number of tokens: block >= 1")
        _require(self.distance >= 0, self, f"distance is {self.distance}", "a number of blocks: distance >= 0")

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        return self._window().allow(q_pos // self.block, k_pos // self.block, q_seg, k_seg)

    def bounds(self, q: Span, k: Span) -> Bounds:
        b = self.block
        return self._window().bounds(Span(q.lo // b, q.hi // b), Span(k.lo // b, k.hi // b))

    def reach(self) -> int | None:
        return (self.distance + 1) * self.block

    def _window(self) -> Window:
        return Window(self.distance + 1)


@dataclass(frozen=True)
class RandomBlocks(Mask):
    """With positions cut into blocks of ``block``, each query block sees ``count`` key blocks drawn by ``seed``.

    One is drawn from each of ``count`` equal stretches, so that they differ: of the blocks up to the query's own, which
    is what a causal model can use, or of the first ``among`` blocks, which for an encoder is its length in blocks.
    A pure function of seed and block numbers: the same in every layer, process, batch and chunk.
    """

    block: int
    count: int
    seed: int = 0
    among: int | None = None

    def __post_init__(self) -> None:
        _require(self.seed >= 0, self, f"seed is {self.seed}", "a whole number that is not negative")
        _require(self.block >= 1, self, f"block is {self.block}", "a number of tokens: block >= 1")
        _require(self.count >= 1, self, f"count is {self.count}", "a number of blocks: count >= 1")
        found = f"among is {self.among}"
        _require(self.among is None or self.among >= 1, self, found, "a number of blocks, at least 1, or None")

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        return self._drawn(q_pos // self.block, k_pos // self.block, k_pos // self.block)[0]

    def bounds(self, q: Span, k: Span) -> Bounds:
        first, last, lo, hi = q.lo // self.block, q.hi // self.block, k.lo // self.block, k.hi // self.block
        some, every = self._drawn(first, lo, hi)
        for further in range(1, 8):  # a span over more query blocks than these is looked into
            one, each = self._drawn(first + further, lo, hi)
            some, every = some | one & (first + further <= last), every & (each | (first + further > last))
        return some | (last - first >= 8), every & (last - first < 8)

    def _drawn(self, query: Any, lo: Any, hi: Any) -> Bounds:
        """Whether some, and whether all, of the key blocks lo..hi are drawn for this query block."""
        query = query * (query >= 0)  # -1, no token, must not divide by zero
        pool = query + 1 if self.among is None else self.among + query * 0
        some = (query < 0) & (lo < 0)
        for part in range(self.count):
            begin = part * pool // self.count
            size = (part + 1) * pool // self.count - begin
            salt = _scramble(_scramble(self.seed & 0x7FFFFFFF) + part + 1)
            drawn = begin + _scramble(query ^ salt) % (size + (size == 0))
            some = some | (lo <= drawn) & (drawn <= hi)
        return some, some & (lo == hi)


def _scramble(x: Any) -> Any:
    """31 pseudo-random bits of 31; no product on the way exceeds 63, so that numbers and int64 tensors agree."""
    x = (x >> 16 ^ x) * 0x45D9F3B & 0x7FFFFFFF
    x = (x >> 15 ^ x) * 0x2C1B3C6D & 0x7FFFFFFF
    return x >> 12 ^ x


# --- the algebra -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class And(Mask):
    a: Mask
    b: Mask

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        return self.a.allow(q_pos, k_pos, q_seg, k_seg) & self.b.allow(q_pos, k_pos, q_seg, k_seg)

    def bounds(self, q: Span, k: Span) -> Bounds:
        (some_a, all_a), (some_b, all_b) = self.a.bounds(q, k), self.b.bounds(q, k)
        return some_a & some_b, all_a & all_b

    def reach(self) -> int | None:
        return min((n for n in (self.a.reach(), self.b.reach()) if n is not None), default=None)

    def causal(self, prefix: bool = False) -> bool:
        return self.a.causal(prefix) or self.b.causal(prefix)


@dataclass(frozen=True)
class Or(Mask):
    a: Mask
    b: Mask

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        return self.a.allow(q_pos, k_pos, q_seg, k_seg) | self.b.allow(q_pos, k_pos, q_seg, k_seg)

    def bounds(self, q: Span, k: Span) -> Bounds:
        (some_a, all_a), (some_b, all_b) = self.a.bounds(q, k), self.b.bounds(q, k)
        return some_a | some_b, all_a | all_b

    def reach(self) -> int | None:
        a, b = self.a.reach(), self.b.reach()
        return None if a is None or b is None else max(a, b)

    def causal(self, prefix: bool = False) -> bool:
        return self.a.causal(prefix) and self.b.causal(prefix)


@dataclass(frozen=True)
class Not(Mask):
    a: Mask

    def allow(self, q_pos: Any, k_pos: Any, q_seg: Any, k_seg: Any) -> Any:
        return _not(self.a.allow(q_pos, k_pos, q_seg, k_seg))

    def bounds(self, q: Span, k: Span) -> Bounds:
        some, every = self.a.bounds(q, k)
        return _not(every), _not(some)


# --- layouts of papers -----------------------------------------------------------------------------------------------


def sparse_transformer(stride: int) -> Mask:
    """Strided attention (Child et al. 2019, section 4.3): the last ``stride`` tokens, then every ``stride``-th.

    The paper's two sets, which it also gives to different heads, as one: each head sees both.
    """
    return Causal() & (Window(stride) | Strided(stride))


def sparse_transformer_fixed(stride: int, summary: int) -> Mask:
    """Fixed attention (Child et al. 2019, section 4.3): the own block, and the last ``summary`` tokens of each block.

    Paper names: l is ``stride``, c is ``summary``.
    """
    return Causal() & (NearBlocks(stride) | Summary(stride, summary))


def longformer(window: int, n_global: int) -> Mask:
    """A window, and some tokens that see all and are seen by all (Beltagy et al. 2020, section 3.1).

    The paper's window w has w/2 tokens on each side: ``window`` is w/2 + 1.
    """
    return Window(window) | GlobalTokens(n_global)


def big_bird(
    block: int, *, near: int = 1, n_global: int = 2, n_random: int = 3, seed: int = 0, length: int | None = None
) -> Mask:
    """Blocks nearby, global and random (Zaheer et al. 2020, section 2 and appendix D); all counts are of blocks.

    The defaults are the paper's: a window of three blocks (``near`` one on each side), two global, three random; random
    ones may fall on the others. An encoder gives its ``length`` in tokens, a decoder takes ``Causal() & big_bird(64)``.
    """
    among = None if length is None else -(-length // block)
    random = RandomBlocks(block, n_random, seed, among)
    return NearBlocks(block, near) | GlobalTokens(n_global * block) | random
