"""Masked tokens whose places others take: a feed for encoders that tell what was replaced (Clark et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from pellucid.data.masked import MaskedText


class ReplacedText(MaskedText):
    """Masked text in which every drawn token is hidden. Labels are what a generator must fill in; ``draws`` decide what
    it gives. Measured in bits a token: how well the model tells replaced tokens from those of the text, beside what it
    would take to know only how many are replaced."""

    shares: ClassVar[tuple[float, float]] = (1.0, 0.0)
    draws: ClassVar[bool] = True

    def score(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Bits that the model needs to say of a token whether it was replaced, over all tokens; and the bits that it
        takes without reading, from the share of replaced tokens alone: a model that has learned needs fewer."""
        if not sums["count"]:
            return {}
        share = sums.get("marked", 0.0) / sums["count"]
        unread = -sum(p * math.log2(p) for p in (share, 1 - share) if p > 0)
        return {"bits_per_token": sums["nats"] / math.log(2) / sums["count"], "unread_bits_per_token": unread}
