"""Pairs of like length in one step, counted in tokens: little padding, and steps of equal weight."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Int64

from pellucid.data.packing import random_for


class Groups:
    """Pairs of like length in groups of about as many tokens: one a step, every pair once in an epoch.

    lengths: of sources and targets, (pairs, 2). tokens: of targets in a group, on average; never fewer than those of
    the longest one. An epoch sorts all pairs by the length of their longer side, then of their source, those of equal
    lengths in an order of its own; it cuts them into groups, and reads these in an order of its own. count: how many
    groups there are, the same in every epoch.
    """

    def __init__(self, lengths: Int64[np.ndarray, "pairs 2"], tokens: int, seed: int):
        self.lengths, self.seed = lengths, seed
        total, longest = int(lengths[:, 1].sum()), int(lengths[:, 1].max())
        self.count = max(1, min(round(total / tokens), total // longest))  # so that no group is empty
        self._epochs = lru_cache(maxsize=2)(self._epoch)

    def rows(self, step: int) -> Int64[np.ndarray, " rows"]:
        """Numbers of the pairs of a step."""
        epoch, index = divmod(step, self.count)
        groups, order = self._epochs(epoch)
        return groups[order[index]]

    def _epoch(self, epoch: int) -> tuple[list[np.ndarray], Int64[np.ndarray, " groups"]]:
        rng = random_for(self.seed, epoch)
        sources, targets = self.lengths.T
        sort = np.lexsort((rng.random(len(sources)), sources, self.lengths.max(1)))
        before = targets[sort].cumsum() - targets[sort]
        number = before * self.count // int(targets.sum())
        groups = np.split(sort, np.flatnonzero(np.diff(number)) + 1)
        return groups, rng.permutation(len(groups))
