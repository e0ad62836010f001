"""How a cost grows, and how surely: straight lines in log-log, means, both with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Student's t at 97.5 % for 1, 2, ... degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_NORMAL = 1.959964


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; nan bounds where there is too little to tell."""

    middle: float
    low: float
    high: float

    def show(self, form: str = ".2f") -> str:
        if math.isnan(self.middle):
            return "–"
        if math.isnan(self.low):
            return format(self.middle, form)
        return f"{self.middle:{form}} ({self.low:{form}}–{self.high:{form}})"

    def record(self) -> dict[str, float | None]:
        """For JSON, which knows no nan."""
        return {name: None if math.isnan(value) else value for name, value in vars(self).items()}


UNKNOWN = Interval(math.nan, math.nan, math.nan)


def t_quantile(freedom: int) -> float:
    """Half the width of a 95 % interval in standard errors. Beyond the table: Cornish & Fisher's first term."""
    if freedom < 1:
        return math.nan
    return _T[freedom - 1] if freedom <= len(_T) else _NORMAL + (_NORMAL**3 + _NORMAL) / (4 * freedom)


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of independent measurements, and its t-interval."""
    n = len(values)
    if n == 0:
        return UNKNOWN
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, math.nan, math.nan)
    half = t_quantile(n - 1) * math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1) / n)
    return Interval(mean, mean - half, mean + half)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> Interval:
    """b of cost = a · sizeᵇ, by least squares in logarithms; the interval is the t-interval of what the line leaves.

    It therefore tells how straight the line is, too. nan bounds for two points, which always lie on one.
    """
    n = len(sizes)
    if n < 2:
        return UNKNOWN
    xs, ys = [math.log(x) for x in sizes], [math.log(y) for y in costs]
    mean_x, mean_y = math.fsum(xs) / n, math.fsum(ys) / n
    spread = math.fsum((x - mean_x) ** 2 for x in xs)
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    if n == 2:
        return Interval(slope, math.nan, math.nan)
    left = math.fsum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in zip(xs, ys, strict=True))
    half = t_quantile(n - 2) * math.sqrt(left / (n - 2) / spread)
    return Interval(slope, slope - half, slope + half)


def exponent_over_rounds(sizes: Sequence[float], rounds: Sequence[Sequence[float]]) -> Interval:
    """The same from whole rounds, one line each: what slows a machine for a while slows one round, and no more.

    rounds: the costs at ``sizes``, round by round. The interval is that of the rounds' mean slope.
    """
    return mean_interval([exponent(sizes, costs).middle for costs in rounds])
