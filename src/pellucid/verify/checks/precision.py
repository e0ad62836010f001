"""Fewer bits change a model a little: as much as rounding so many numbers does, and no more."""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.verify.checks import Check
from pellucid.verify.measure import Measured, Tolerance, Worst
from pellucid.verify.subject import NotApplicable, Subject
from pellucid.verify.trial import Trial

# times what rounding the weights to bfloat16 does, all else in float32
BF16 = 6.0  # activations are rounded too, several times a layer
Q8 = 12.0  # for most weights a step of Q8_0 is 2 to 4 times as coarse, and a router may choose another expert


def apart(out: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, as a share of the spread of outputs within a place.

    A constant that is added to all logits of a place changes no probability, so it is taken out of both.
    """
    if expected.shape[-1] > 1:
        out, expected = (x - x.mean(-1, keepdim=True) for x in (out.double(), expected.double()))
    spread = expected.double().square().mean().sqrt()
    return float((out - expected).double().square().mean().sqrt() / spread)


def bf16(subject: Subject, trial: Trial) -> Measured:
    """Weights and arithmetic in bfloat16, against float32."""
    return _compare(subject, subject.in_dtype(torch.bfloat16), trial, BF16)


def quantised(subject: Subject, trial: Trial) -> Measured:
    """Through a file in which every weight of a matrix has 8 bits, against float32."""
    return _compare(subject, subject.quantised(trial.folder), trial, Q8)


def _compare(subject: Subject, other: Subject, trial: Trial, factor: float) -> Measured:
    if subject.dtype.itemsize < 4:
        raise NotApplicable(f"{subject.name} has weights of {subject.dtype} already")
    rounded = subject.roughened()
    worst, scale = Worst(), 0.0
    for what, reading in trial.readings(subject, 2, trial.time(subject, 32)):
        expected = subject.run(reading)
        scale = max(scale, apart(rounded.run(reading), expected), apart(expected.bfloat16(), expected))
        worst.see(apart(other.run(reading), expected), what)
    reason = f"{factor:g} × what rounding the weights to bfloat16 does to the spread of outputs ({scale:.1e})"
    return worst.measured(Tolerance(factor * scale, reason))


CHECKS = (
    Check("bf16", "in bfloat16 it says nearly the same", bf16),
    Check("quantised", "with weights of 8 bits (Q8_0) it says nearly the same", quantised),
)
