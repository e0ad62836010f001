"""Masks of sparse attention: more leaves of the algebra, and the layouts of papers as expressions of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pellucid.predicates.algebra import Bounds, Causal, Mask, Place, Span, Window, require


@dataclass(frozen=True)
class Strided(Mask):
    """A token sees those a multiple of ``stride`` positions away, itself among them."""

    stride: int

    def __post_init__(self) -> None:
        require(self.stride >= 1, self, f"stride is {self.stride}", "a distance in tokens: stride >= 1")

    def allow(self, q: Place, k: Place) -> Any:
        return (q.pos - k.pos) % self.stride == 0

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
        require(1 <= self.count <= self.stride, self, found, "a part of the stride: 1 <= count <= stride")

    def allow(self, q: Place, k: Place) -> Any:
        return (k.pos % self.stride >= self.stride - self.count) & (q.pos == q.pos)

    def bounds(self, q: Span, k: Span) -> Bounds:
        first = k.lo % self.stride
        last, begin = first + k.hi - k.lo, self.stride - self.count
        return (last >= begin) & (q.lo == q.lo), (first >= begin) & (last < self.stride) & (q.lo == q.lo)


@dataclass(frozen=True)
class GlobalTokens(Mask):
    """The first ``count`` positions see everyone and are seen by everyone."""

    count: int

    def __post_init__(self) -> None:
        require(self.count >= 0, self, f"count is {self.count}", "a number of tokens: count >= 0")

    def allow(self, q: Place, k: Place) -> Any:
        return (q.pos < self.count) | (k.pos < self.count)

    def bounds(self, q: Span, k: Span) -> Bounds:
        return (q.lo < self.count) | (k.lo < self.count), (q.hi < self.count) | (k.hi < self.count)


@dataclass(frozen=True)
class NearBlocks(Mask):
    """With positions cut into blocks of ``block``, a token sees its own block and those up to ``distance`` away."""

    block: int
    distance: int = 0

    def __post_init__(self) -> None:
        require(self.block >= 1, self, f"block is {self.block}", "a number of tokens: block >= 1")
        require(self.distance >= 0, self, f"distance is {self.distance}", "a number of blocks: distance >= 0")

    def allow(self, q: Place, k: Place) -> Any:
        return self._window().allow(Place(q.pos // self.block), Place(k.pos // self.block))

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
        require(self.seed >= 0, self, f"seed is {self.seed}", "a whole number that is not negative")
        require(self.block >= 1, self, f"block is {self.block}", "a number of tokens: block >= 1")
        require(self.count >= 1, self, f"count is {self.count}", "a number of blocks: count >= 1")
        found = f"among is {self.among}"
        require(self.among is None or self.among >= 1, self, found, "a number of blocks, at least 1, or None")

    def allow(self, q: Place, k: Place) -> Any:
        return self._drawn(q.pos // self.block, k.pos // self.block, k.pos // self.block)[0]

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
