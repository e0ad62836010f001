"""How far apart two outputs are, and how far apart rounding alone can drive them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pellucid.nn.wide import wide_dtype
from pellucid.verify.subject import Subject

LARGEST_GROWTH = 256.0  # outputs that move this many times farther than estimated would hide small faults
UNSEEN = 4.0  # other roundings may move outputs this many times as far as the few that were tried
MARGIN = 32.0  # the largest of thousands of outputs is looked at, and norms and softmaxes amplify
MOST_SENSITIVE = 16.0  # sensitivity counts at most this many times towards the tolerance


@dataclass(frozen=True)
class Tolerance:
    """The largest error that says nothing, and why it is that. of_rounding: whether an error may be rounding at all."""

    value: float
    reason: str
    of_rounding: bool = False


EXACT = Tolerance(0.0, "the same numbers are combined in the same order: nothing may differ")


@dataclass(frozen=True)
class Measured:
    """What a check saw. error: its largest, on the scale of the tolerance. detail: where that was, or what it means."""

    error: float
    tolerance: Tolerance
    detail: str = ""

    @property
    def kept(self) -> bool:
        """Whether the promise was kept; an error that is not a number keeps nothing."""
        return self.error <= self.tolerance.value


def estimate(subject: Subject) -> tuple[float, int]:
    """What n independent roundings do to outputs, as a share of their root mean square; the terms of a sum in n."""
    terms = subject.width if subject.dtype in (torch.float32, torch.float64) else 1
    return torch.finfo(subject.dtype).eps * math.sqrt(terms * subject.depth), terms


def unclear(subject: Subject, measured: Measured) -> bool:
    """Whether rounding alone may have done it, in a model too chaotic to tell: neither kept nor broken."""
    if measured.kept or not measured.tolerance.of_rounding or math.isnan(measured.error):
        return False
    far = subject.turbulence
    return far > LARGEST_GROWTH * estimate(subject)[0] and measured.error <= UNSEEN * far


def rounding(subject: Subject) -> Tolerance:
    """What rounding may do to outputs, as a share of their root mean square.

    Each of n independent roundings moves a result by eps, all together by about eps sqrt(n) (Higham & Mary 2019). n:
    terms of a sum times layers in float32; layers in shorter types, whose products are summed in float32. A model that
    answers more strongly to a rounding of its first input is allowed that much, at most ``MOST_SENSITIVE`` times.
    """
    (expected, terms), name = estimate(subject), str(subject.dtype).removeprefix("torch.")
    seen = min(subject.sensitivity, MOST_SENSITIVE * expected)
    if seen > expected:
        reason = f"{MARGIN:g} × what one rounding of its input does ({seen:.0e} of the outputs)"
        return Tolerance(MARGIN * seen, reason, of_rounding=True)
    count = f"{subject.width} × {subject.depth}" if terms > 1 else f"{subject.depth}"
    return Tolerance(
        MARGIN * expected, f"{MARGIN:g} × {name} eps × √({count}) of the outputs: summed in another order", True
    )


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference as a share of b's root mean square; nan where one of them is not a number.

    Equal infinities are equal. Raises ValueError for other shapes.
    """
    if a.shape != b.shape:
        raise ValueError(f"outputs of shape {tuple(a.shape)} where {tuple(b.shape)} was expected")
    dtype = wide_dtype(a.dtype, b.dtype)
    a, b = a.to(dtype), b.to(dtype)
    gap = (a - b).abs().masked_fill(a == b, 0.0)
    finite = b.isfinite()
    size = float(torch.where(finite, b, 0.0).square().sum() / finite.sum().clamp(min=1)) ** 0.5
    return float(gap.max()) / max(size, torch.finfo(torch.float32).tiny)


@dataclass
class Worst:
    """The largest of several errors, and where it was seen."""

    error: float = 0.0
    where: str = ""
    seen: list[str] = field(default_factory=list[str])

    def see(self, error: float, where: str) -> None:
        """One more comparison; what is not a number is worse than any number."""
        if not self.seen or error > self.error or (math.isnan(error) and not math.isnan(self.error)):
            self.error, self.where = error, where
        self.seen.append(where)

    def measured(self, tolerance: Tolerance) -> Measured:
        """Raises RuntimeError where nothing was compared, which would look like a kept promise."""
        if not self.seen:
            raise RuntimeError("nothing was compared")
        return Measured(self.error, tolerance, f"largest: {self.where}" if self.error != 0 else "")
