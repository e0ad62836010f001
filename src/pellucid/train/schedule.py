"""Learning-rate schedules: pure functions from step to a factor in (0, 1]."""

from __future__ import annotations

import math
from typing import Literal

from pellucid.errors import UsageError

ScheduleName = Literal["wsd", "cosine", "inverse_sqrt"]


def factor(name: ScheduleName, step: int, steps: int, warmup: int, floor: float = 0.0, decay: float = 0.5) -> float:
    """What the peak learning rate is multiplied by at ``step`` (0-based) of ``steps``.

    All rise linearly over ``warmup`` steps. ``cosine`` then falls to ``floor`` along half a cosine (Loshchilov &
    Hutter 2016); ``wsd`` stays at 1 and falls linearly over the last ``decay`` share, or what the warm-up leaves
    of it (warm-up, stable, decay; Hu et al. 2024); ``inverse_sqrt`` falls with 1/√step, however many steps there are
    (Vaswani et al. 2017, equation 3, where the peak rate is (d_model · warmup)^(−1/2)).
    """
    if step < warmup:
        return (step + 1) / warmup
    if name == "inverse_sqrt":
        return math.sqrt(max(warmup, 1) / (step + 1))
    if name == "cosine":
        progress = (step - warmup) / max(steps - warmup, 1)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if name == "wsd":
        start = max(warmup, steps - round(steps * decay))
        progress = (step - start) / max(steps - start, 1)
        return floor + (1 - floor) * (1 - min(max(progress, 0.0), 1.0))
    raise UsageError(f"unknown schedule {name!r}", "use wsd, cosine or inverse_sqrt")
