"""Padding on any side changes no token's output."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from pellucid.verify.checks import Check
from pellucid.verify.measure import Measured, Worst, distance, rounding
from pellucid.verify.reading import Reading, Side
from pellucid.verify.subject import Subject
from pellucid.verify.trial import Trial

GAP = 5  # columns of padding


def _kept(out: Tensor, valid: Tensor, subject: Subject) -> Tensor:
    """Outputs of the tokens alone: (tokens, features)."""
    return out[valid] if subject.per_token else out.flatten(0, 1)


def measure(subject: Subject, trial: Trial, side: Side) -> Measured:
    """The same rows with and without padding; of an encoder–decoder, on either side."""
    subject.refuse_padding(side)
    worst = Worst()
    for what, reading in trial.readings(subject, 3, trial.time(subject, 16)):
        plain = _kept(subject.run(reading), reading.there, subject)
        cases = {what: reading.padded(side, subject.pad_id, GAP)}
        if reading.source is not None:
            source = reading.source.padded(side, subject.pad_id, GAP)
            cases[f"{what}, the encoder's"] = Reading(reading.ids, None, source)
        for where, case in cases.items():
            worst.see(distance(_kept(subject.run(case), case.there, subject), plain), where)
    return worst.measured(rounding(subject))


SIDES: dict[Side, str] = {"left": "before", "right": "after", "middle": "inside"}
CHECKS = tuple(
    Check(f"padding-{side}", f"padding {where} a text changes nothing", partial(measure, side=side))
    for side, where in SIDES.items()
)
