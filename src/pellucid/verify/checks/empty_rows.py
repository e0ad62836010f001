"""A row without a single token is legal: an attention that sees nothing gives something finite, and harms nobody."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from pellucid.verify.checks import Check
from pellucid.verify.measure import Measured, Worst, distance, rounding
from pellucid.verify.reading import Reading
from pellucid.verify.subject import NotApplicable, Subject
from pellucid.verify.trial import Trial


def emptied(reading: Reading, pad_id: int) -> Reading:
    """Its last row without tokens; of an encoder–decoder, the last row's source."""
    if reading.source is not None:
        return replace(reading, source=emptied(reading.source, pad_id))
    valid = reading.there.clone()
    valid[-1] = False
    return Reading(reading.ids.where(valid, pad_id), valid)


def measure(subject: Subject, trial: Trial) -> Measured:
    """All outputs are finite numbers, the other rows' are as before, and so are gradients."""
    subject.refuse_padding("right")
    worst = Worst()
    for what, reading in trial.readings(subject, 3, trial.time(subject, 12)):
        case = emptied(reading, subject.pad_id)
        out = subject.run(case)
        worst.see(0.0 if bool(out.isfinite().all()) else math.nan, f"{what}: a number that is none")
        worst.see(distance(out[:-1], subject.run(reading)[:-1]), f"{what}: other rows")
        try:
            slope = subject.gradient(case, _others)
        except NotApplicable:
            continue
        worst.see(0.0 if bool(slope.isfinite().all()) else math.nan, f"{what}: a gradient that is none")
    return worst.measured(rounding(subject))


def _others(out: Tensor) -> Tensor:
    return torch.square(out[:-1]).sum()


CHECKS = (Check("empty-rows", "a row without tokens gives no NaN, and changes no other row", measure),)
