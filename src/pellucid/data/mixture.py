"""Several texts, read by weight: which of them gives a row, and which of its rows, is a function of the row's number.

A text's share is wᵢ^(1/T) / Σ wⱼ^(1/T): T = 1 leaves the weights as they are, a higher temperature makes rare texts
less rare (Raffel et al. 2019, section 3.5.2). Rows are dealt out evenly rather than drawn, so that every step has the
shares to within a row or two, and what has been read of each text after any number of steps is a closed formula, so
nothing needs to be remembered to go on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt, UInt16

from pellucid.data.packing import Packed
from pellucid.data.store import TokenStore
from pellucid.errors import DataError
from pellucid.predicates import Ahead

UNIT = 1 << 32  # shares are multiples of 1 / UNIT, rounded up so that a third of three rows is one


class Read(NamedTuple):
    """What has been read of a text. share: of all rows, as long as it lasts. epochs: how often its tokens were read."""

    name: str
    share: float
    rows: int
    tokens: int
    epochs: float


@dataclass(frozen=True, eq=False)
class Mixture:
    """Stores of one vocabulary, with names and weights. epochs: how often each may be read before it is left out.

    Stands for a store where a feed asks for what all its rows have in common.
    """

    names: tuple[str, ...]
    stores: tuple[TokenStore, ...]
    weights: tuple[float, ...]
    temperature: float = 1.0
    epochs: float | None = None

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each text in all rows, as long as all last."""
        largest = max(self.weights)
        powers = [(weight / largest) ** (1 / self.temperature) for weight in self.weights]
        return tuple(power / math.fsum(powers) for power in powers)

    @property
    def eot(self) -> int:
        """Id of ``<|endoftext|>``."""
        return self.stores[0].eot

    @property
    def token_bytes(self) -> UInt16[np.ndarray, " vocab"]:
        """How many bytes each id of the vocabulary stands for."""
        return self.stores[0].token_bytes

    @property
    def n_tokens(self) -> int:
        """Tokens of all texts together."""
        return sum(store.n_tokens for store in self.stores)

    @property
    def hash(self) -> str:
        """Equal exactly where the same rows are read in the same order, for the same seed and context."""
        said = repr((tuple(store.hash for store in self.stores), self.shares, self.epochs))
        return hashlib.sha256(said.encode()).hexdigest()


class Deal:
    """Which of several piles each of the numbers 0, 1, 2, … goes to, and as which of that pile's own.

    shares: of the piles. most: how many each takes; None: any number. A full pile is left out and the others share what
    is its own; when all are full, all begin anew. After n numbers, pile i has n times its share to within the number of
    piles, as long as none is full.
    """

    def __init__(self, shares: Sequence[float], most: Sequence[int] | None = None):
        self.shares, self.most = tuple(shares), None if most is None else tuple(most)
        self._phases: list[_Phase] = []
        self.round = 0  # numbers until all piles are full; 0 where none ever is
        if self.most is not None:
            self._plan(self.most)
        else:
            self._phases.append(_Phase(0, tuple(range(len(self.shares))), (0,) * len(self.shares), self.shares))

    def _plan(self, most: tuple[int, ...]) -> None:
        first, had = 0, [0] * len(self.shares)
        while open_ones := tuple(pile for pile in range(len(had)) if had[pile] < most[pile]):
            phase = _Phase(first, open_ones, tuple(had), self.shares)
            self._phases.append(phase)
            low, high = 0, sum(most[pile] - had[pile] for pile in open_ones) + 1
            while high - low > 1:  # the longest beginning in which no pile overflows
                middle = (low + high) // 2
                fits = all(had[p] + taken <= most[p] for p, taken in zip(open_ones, phase.taken(middle), strict=True))
                low, high = (middle, high) if fits else (low, middle)
            for pile, taken in zip(open_ones, phase.taken(low), strict=True):
                had[pile] += taken
            first += low
        self.round = first

    def counts(self, n: int) -> tuple[int, ...]:
        """How many of the numbers below ``n`` each pile has."""
        rounds, rest = divmod(n, self.round) if self.round else (0, n)
        full = self._within(self.round) if rounds else (0,) * len(self.shares)
        return tuple(rounds * whole + part for whole, part in zip(full, self._within(rest), strict=True))

    def _within(self, n: int) -> tuple[int, ...]:
        phase = next(phase for phase in reversed(self._phases) if phase.first <= n)
        found = list(phase.had)
        for pile, taken in zip(phase.piles, phase.taken(n - phase.first), strict=True):
            found[pile] += taken
        return tuple(found)

    def place(self, number: int) -> tuple[int, int]:
        """(pile, which of its own numbers this is)."""
        before, after = self.counts(number), self.counts(number + 1)
        pile = next(i for i, (a, b) in enumerate(zip(before, after, strict=True)) if b > a)
        return pile, before[pile]


class _Phase:
    """While the same piles are open. first: its first number. had: what each pile had before."""

    def __init__(self, first: int, piles: tuple[int, ...], had: tuple[int, ...], shares: Sequence[float]):
        self.first, self.piles, self.had = first, piles, had
        left = [math.fsum(shares[pile] for pile in piles[i:]) for i in range(len(piles))]
        self._parts = [
            UNIT if i + 1 == len(piles) else min(UNIT, math.ceil(shares[pile] / left[i] * UNIT))
            for i, pile in enumerate(piles)
        ]

    def taken(self, n: int) -> list[int]:
        """How many of this phase's first ``n`` numbers each open pile has: the first takes ⌊n·s⌋, the next the same
        share of what is left, and so on."""
        found: list[int] = []
        for part in self._parts:
            taken = (n * part) >> 32
            found.append(taken)
            n -= taken
        return found


class MixedRows(Packed):
    """Rows of ``context`` tokens, each of one of a mixture's texts, which is packed by itself (``Packed``)."""

    def __init__(self, store: Mixture, context: int, seed: int, ahead: Ahead | None = None):
        """Raises DataError, which names it, where a text is too short for a single row."""
        self.mixture, self.sources = store, list[Packed]()
        for name, one in zip(store.names, store.stores, strict=True):
            try:
                self.sources.append(Packed(one, context, seed, ahead))
            except DataError as error:
                raise DataError(f"{name}: {error.problem}", error.remedy) from error
        self.context, self.seed, self.ahead = context, seed, ahead or Ahead()
        self.store = store
        self.rows = sum(source.rows for source in self.sources)
        limits = None
        if store.epochs is not None:
            limits = [max(1, round(store.epochs * source.rows)) for source in self.sources]
        self.deal = Deal(store.shares, limits)

    def windows(self, first: int, count: int) -> UInt[np.ndarray, "count labelled"]:
        """The tokens of samples first, first + 1, … and the one behind each, (count, context + 1)."""
        places = [self.deal.place(number) for number in range(first, first + count)]
        return np.concatenate([self.sources[source].windows(number, 1) for source, number in places])

    def read(self, samples: int) -> list[Read]:
        """What has been read of each text after so many samples."""
        counted = zip(self.mixture.names, self.mixture.shares, self.sources, self.deal.counts(samples), strict=True)
        return [
            Read(name, share, rows, rows * self.context, rows / source.rows) for name, share, source, rows in counted
        ]


def rows_of(store: TokenStore | Mixture, context: int, seed: int, ahead: Ahead | None = None) -> Packed:
    """The rows of a text, or of a mixture of texts. Raises DataError where one is too short for a single row."""
    if isinstance(store, Mixture):
        return MixedRows(store, context, seed, ahead)
    return Packed(store, context, seed, ahead)
