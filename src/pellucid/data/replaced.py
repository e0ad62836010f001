"""Masked tokens whose places others take: a feed for encoders that tell what was replaced (Clark et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from pellucid.data.masked import MaskedText


class ReplacedText(MaskedText):
    """Masked text in which every drawn token is hidden. Labels are what a generator must fill in; ``draws`` decide what
    it gives. Measured in bits a token: how well the model tells replaced tokens from those of the text."""

    shares: ClassVar[tuple[float, float]] = (1.0, 0.0)
    draws: ClassVar[bool] = True

    def score(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Bits that the model needs to say of a token whether it was replaced, over all tokens."""
        return {"bits_per_token": sums["nats"] / math.log(2) / sums["count"]} if sums["count"] else {}
