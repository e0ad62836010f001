"""Which blocks of a mask hold anything, found without looking at n² pairs: what sparse kernels walk along.

::

    a window of 96 over blocks of 64      ◣ partial: its pattern says who sees whom
    ◣ . . . .                             ■ full: no pattern is read
    ◣ ◣ . . .                             . empty: never touched, costs nothing
    ◣ ◣ ◣ . .
    . ◣ ◣ ◣ .      queries down, keys across; equal patterns are kept once, here three:
    . . ◣ ◣ ◣      the diagonal and the two edges

The mask's own ``bounds`` decide what is empty and what is full; only blocks between the two are evaluated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from pellucid.batch import Tokens
from pellucid.predicates import Mask, Place, SameSegment, Span

BLOCK = 64
FULL, NOBODY = 0, 1  # the patterns that every layout has
_FAR = 2**31 - 1  # a position beyond all others
_PIECE = 256  # blocks that are evaluated at once
# Measured on a CPU beside the fused kernel with a mask, both passes: they are even at half of the blocks, 512 tokens.
# Beyond 8192² pairs a mask as a tensor, and the float copy that a fused kernel makes, would be what fills the memory.
_LEAST, _DENSE, _MANY = 512, 0.4, 2**26
_WORTH = 16  # a group of its own costs as much as this many blocks of padding; larger ones are left unpadded
Array = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Layout:
    """The blocks to compute, as query blocks in groups that each see equally many key blocks.

    groups: one line a group: its row (-1: every row), its first query block in ``order``, how many it has, how many key
    blocks each of them sees, and where in ``pairs`` those begin. order: numbers of query blocks. pairs: for each query
    block the numbers of its key blocks, and of their patterns. These three stay on the CPU, where loops run.
    patterns: True where visible; number 0 (FULL) is all, number 1 (NOBODY) none: it fills up short lists.
    without_keys: True for queries that see nothing; None where there is none.
    live, total: how many blocks hold a visible pair, of how many.
    """

    block: int
    n_blocks: tuple[int, int]
    groups: Int[Tensor, "groups 5"]
    order: Int[Tensor, " members"]
    pairs: Int[Tensor, "2 pairs"]
    patterns: Bool[Tensor, "patterns block block"]
    without_keys: Bool[Tensor, "rows 1 query 1"] | None
    live: int
    total: int

    @property
    def density(self) -> float:
        """The part of all blocks that hold a visible pair."""
        return self.live / max(1, self.total)

    def grid(self, which: Callable[[Tensor], Tensor]) -> Bool[Tensor, "rows down across"]:
        """The blocks of which ``which``, asked for the numbers of their patterns, is true."""
        rows = self.total // max(1, self.n_blocks[0] * self.n_blocks[1])
        found = torch.zeros(rows, *self.n_blocks, dtype=torch.bool)
        for row, first, count, width, begin in self.groups.tolist():
            down = self.order[first : first + count].repeat_interleave(width)
            across, kinds = self.pairs[:, begin : begin + count * width]
            found[max(row, 0), down[which(kinds)], across[which(kinds)]] = True
        return found


# --- what the bounds say ----------------------------------------------------------------------------------------------


def _cut(x: Int[Tensor, "rows time"], block: int, fill: int) -> Int[Tensor, "rows blocks block"]:
    return F.pad(x, (0, -x.shape[1] % block), value=fill).unflatten(1, (-1, block))


def _blocks(tokens: Tokens, block: int) -> Place:
    """The places of each block's tokens, (rows, blocks, block) each; -1 fills up the last one."""
    return Place(*(_cut(x, block, -1) for x in tokens.place))


def _spans(tokens: Tokens, block: int) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """For each block: the ends of its span as ``Span`` lists them, whether any place holds a token, whether all do."""
    places = _blocks(tokens, block)
    token = places.pos >= 0
    ends = (end for x in places for end in (x.where(token, _FAR).amin(-1), x.where(token, -1).amax(-1)))
    return tuple(ends), token.any(-1), token.all(-1)


def classify(mask: Mask, queries: Tokens, keys: Tokens, block: int) -> tuple[Tensor, Tensor]:
    """(some, every), each (rows, query blocks, key blocks): what is not proved empty, and what is proved full."""
    if queries.seg is not None or keys.seg is not None:
        mask = mask & SameSegment()
    (q, q_any, q_all), (k, k_any, k_all) = _spans(queries, block), _spans(keys, block)
    some, every = mask.bounds(Span(*(x[:, :, None] for x in q)), Span(*(x[:, None, :] for x in k)))
    some = some & q_any[:, :, None] & k_any[:, None, :]
    return some, some & every & q_all[:, :, None] & k_all[:, None, :]


def _evaluate(
    mask: Mask, queries: Tokens, keys: Tokens, block: int, at: Int[Tensor, "3 blocks"]
) -> Bool[Tensor, "blocks block block"]:
    """The predicate itself, in the blocks at (row, query block, key block)."""
    packed = queries.seg is not None or keys.seg is not None
    row, down, across = at
    q = Place(*(x[row, down][:, :, None] for x in _blocks(queries, block)))
    k = Place(*(x[row, across][:, None] for x in _blocks(keys, block)))
    allowed = mask.allow(q, k) & (q.pos >= 0) & (k.pos >= 0)
    return allowed & (q.seg == k.seg) if packed else allowed


# --- layouts ----------------------------------------------------------------------------------------------------------


def make_layout(mask: Mask, queries: Tokens, keys: Tokens, block: int = BLOCK) -> Layout:
    """The layout for these places: of every row by itself, or of all together where both have one row."""
    (rows, n_q), device = queries.pos.shape, queries.pos.device
    some, every = classify(mask, queries, keys, block)
    at = (some & ~every).nonzero().T
    numbers, patterns = _patterns(mask, queries, keys, block, at)
    kinds = np.where(every.cpu().numpy(), FULL, NOBODY).astype(np.int64)
    kinds[tuple(at.cpu().numpy())] = numbers

    groups, orders, pairs = [], [np.zeros(0, np.int64)], [np.zeros((2, 0), np.int64)]
    sees = np.zeros((*kinds.shape[:2], block), dtype=bool)
    for row in range(rows):
        sees[row] = _who_sees(kinds[row], patterns)
        for members, table in _groups(kinds[row]):
            begins = sum(map(len, orders)), sum(p.shape[1] for p in pairs)
            groups.append((row if rows > 1 else -1, begins[0], len(members), table.shape[2], begins[1]))
            orders.append(members)
            pairs.append(table.reshape(2, -1))
    without_keys = ~torch.from_numpy(sees).flatten(1)[:, None, :n_q, None]
    return Layout(
        block,
        kinds.shape[1:],
        _any_length(torch.tensor(groups, dtype=torch.long).reshape(-1, 5)),
        _any_length(torch.from_numpy(np.concatenate(orders))),
        _any_length(torch.from_numpy(np.concatenate(pairs, axis=1)), 1),
        _any_length(torch.from_numpy(patterns).to(device)),
        without_keys.to(device) if without_keys.any() else None,
        int((kinds != NOBODY).sum()),
        kinds.size,
    )


def _patterns(mask: Mask, queries: Tokens, keys: Tokens, block: int, at: Tensor) -> tuple[Array, Bools]:
    """The number of each block's pattern, and the patterns, equal ones once."""
    every = np.packbits(np.ones(block * block, dtype=bool))
    numbers = {every.tobytes(): FULL, np.zeros_like(every).tobytes(): NOBODY}
    found: list[int] = []
    for piece in at.split(_PIECE, dim=1):
        bits = np.packbits(_evaluate(mask, queries, keys, block, piece).flatten(1).cpu().numpy(), axis=1)
        found += [numbers.setdefault(line.tobytes(), len(numbers)) for line in bits]
    bits = np.stack([np.frombuffer(key, np.uint8) for key in numbers])
    patterns = np.unpackbits(bits, axis=1, count=block * block).astype(bool)
    return np.array(found, dtype=np.int64), patterns.reshape(-1, block, block)


def _who_sees(kinds: Array, patterns: Bools) -> Bools:
    """Which queries of each query block see anything, (query blocks, block)."""
    down, across = np.nonzero(kinds != NOBODY)
    sees = np.zeros((len(kinds), patterns.shape[-1]), dtype=bool)
    if len(down):
        anyone: Bools = np.any(patterns, axis=-1)
        first = np.flatnonzero(np.diff(down, prepend=-1))
        sees[down[first]] = np.logical_or.reduceat(anyone[kinds[down, across]], first)
    return sees


def _groups(kinds: Array) -> list[tuple[Array, Array]]:
    """Query blocks and their (2, blocks, width) pairs, wide ones first.

    Small groups are merged into a wider one by padding. Large ones are not: a window that slides along can be read
    without a copy, and padding would force one.
    """
    down, across = np.nonzero(kinds != NOBODY)
    widths = np.bincount(down, minlength=len(kinds))
    rank = np.arange(len(down)) - (np.cumsum(widths) - widths)[down]
    made: list[tuple[int, list[int]]] = []
    for width in np.unique(widths[widths > 0])[::-1].tolist():
        members = np.flatnonzero(widths == width).tolist()
        if made and len(made[-1][1]) <= _WORTH and (made[-1][0] - width) * len(members) <= _WORTH:
            made[-1][1].extend(members)
        else:
            made.append((width, members))
    found: list[tuple[Array, Array]] = []
    for width, members in made:
        members, place = np.sort(np.array(members)), np.full(len(kinds), -1)
        place[members] = np.arange(len(members))
        here = place[down] >= 0
        table = np.stack((np.zeros((len(members), width), np.int64), np.full((len(members), width), NOBODY)))
        table[:, place[down[here]], rank[here]] = across[here], kinds[down[here], across[here]]
        found.append((members, table))
    return found


def _any_length(x: Tensor, axis: int = 0) -> Tensor:
    """Its length is of this batch: a compiled block must not be compiled again for the next one."""
    if "torch._dynamo" in sys.modules:  # who compiles has loaded it
        sys.modules["torch._dynamo"].maybe_mark_dynamic(x, axis)
    return x


# --- where it is worth having -----------------------------------------------------------------------------------------


def find_layout(mask: Mask, queries: Tokens, keys: Tokens) -> Layout | None:
    """The layout, or None: rows are short, or too few of their blocks are empty.

    For rows without gaps it is a pure function of mask, lengths and starts, and made once.
    """
    n_q, n_k = queries.pos.shape[1], keys.pos.shape[1]
    if n_q < _LEAST or n_k < _LEAST or queries.pos.is_meta:
        return None
    if queries.alike and keys.alike:
        assert queries.start is not None and keys.start is not None
        return _plain(mask, n_q, queries.start, n_k, keys.start, queries.pos.device)
    return _where_it_pays(mask, queries, keys)


@lru_cache(maxsize=64)
def _plain(mask: Mask, n_q: int, q_start: int, n_k: int, k_start: int, device: torch.device) -> Layout | None:
    with torch.inference_mode(False):  # whoever trains later shares it
        return _where_it_pays(mask, Tokens.plain(1, n_q, q_start, device), Tokens.plain(1, n_k, k_start, device))


def _where_it_pays(mask: Mask, queries: Tokens, keys: Tokens) -> Layout | None:
    some, _ = classify(mask, queries, keys, BLOCK)
    pairs = queries.pos.shape[1] * keys.pos.shape[1]
    return make_layout(mask, queries, keys) if pairs >= _MANY or some.float().mean() <= _DENSE else None
