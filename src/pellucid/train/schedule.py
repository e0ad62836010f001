"""Learning-rate schedules: pure functions from step to a factor in (0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pellucid.errors import UsageError
from pellucid.values import Value

ScheduleName = Literal["wsd", "cosine", "inverse_sqrt"]


@dataclass(frozen=True)
class Decision(Value):
    """What was decided on the way, from the speed that was measured. It holds from before ``step`` (0-based) on.

    steps: how many there are in all. threads: with how many is computed. batches: how many held-out ones are measured
    at the end. None leaves each as it was.
    """

    step: int
    steps: int | None = None
    threads: int | None = None
    batches: int | None = None


def position(step: int, steps: int, decisions: Sequence[Decision] = ()) -> float:
    """Where ``step`` stands in a schedule of ``steps``: at ``step`` itself, unless decisions have changed their number.

    What is left of the schedule is always spread evenly over the steps that are left. So the position rises from 0 to
    ``steps`` without a jump, whatever is decided, and reaches the end with the last step.
    """
    at, since, end = 0.0, 0, steps
    for decision in decisions:
        if decision.steps is not None and decision.step <= step:
            at += (steps - at) * (decision.step - since) / max(end - since, 1)
            since, end = decision.step, decision.steps
    return at + (steps - at) * (step - since) / max(end - since, 1)


def factor(
    name: ScheduleName,
    step: int,
    steps: int,
    warmup: int,
    floor: float = 0.0,
    decay: float = 0.5,
    at: float | None = None,
) -> float:
    """What the peak learning rate is multiplied by at ``step`` (0-based) of ``steps``; at: its ``position``.

    All rise linearly over ``warmup`` steps. ``cosine`` then falls to ``floor`` along half a cosine (Loshchilov &
    Hutter 2016); ``wsd`` stays at 1 and falls linearly over the last ``decay`` share, or what the warm-up leaves
    of it (warm-up, stable, decay; Hu et al. 2024); ``inverse_sqrt`` falls with 1/√step, however many steps there are
    (Vaswani et al. 2017, equation 3, where the peak rate is (d_model · warmup)^(−1/2)).
    """
    at = step if at is None else at
    if step < warmup:
        return (step + 1) / warmup
    if name == "inverse_sqrt":
        return math.sqrt(max(warmup, 1) / (step + 1))
    if name == "cosine":
        progress = (at - warmup) / max(steps - warmup, 1)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    if name == "wsd":
        start = max(warmup, steps - round(steps * decay))
        progress = (at - start) / max(steps - start, 1)
        return floor + (1 - floor) * (1 - min(max(progress, 0.0), 1.0))
    raise UsageError(f"unknown schedule {name!r}", "use wsd, cosine or inverse_sqrt")


def too_short(steps: int, warmup: int) -> str:
    """A word about a run that ends within its warm-up; "" for any other."""
    if steps > warmup:
        return ""
    return (
        f"the run ends within its warm-up: it has {steps:,} steps of {warmup:,}, so the learning rate gets to "
        f"{steps / max(warmup, 1):.0%} of its peak; train for longer, take smaller steps, or choose "
        f"--warmup {max(1, steps // 20)}"
    )
