"""The processes that train one model together. One alone is the rule; ``ALONE`` is that world."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class World:
    """Where this process stands among all, and what they do together; this class is a world of one process.

    device: where this process computes. rank: its number, from 0. size: how many processes there are.
    A world of several overrides ``sum`` and ``barrier``. Every process must call both in the same order.
    """

    device: torch.device = torch.device("cpu")
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that decides and writes: everything on the disk is written by it alone."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum of ``value`` over all processes, on each of them; any shape, on any device."""
        return value

    def barrier(self) -> None:
        """Return when all processes have called it."""

    def total(self, value: int | float) -> int | float:
        """The sum of a number over all processes, on each of them."""
        if self.size == 1:
            return value
        return float(self.sum(torch.tensor(value, dtype=torch.float64, device=self.device)))

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is True in any process; on each of them."""
        return self.total(flag) > 0


ALONE = World()
