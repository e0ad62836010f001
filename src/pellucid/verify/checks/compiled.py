"""The code that a compiler writes computes the same."""

from __future__ import annotations

from pellucid.verify.checks import Check
from pellucid.verify.measure import Measured, Worst, distance, rounding
from pellucid.verify.subject import Subject
from pellucid.verify.trial import Trial


def measure(subject: Subject, trial: Trial) -> Measured:
    """Every block through torch.compile, against the code as it is written."""
    worst = Worst()
    readings = list(trial.readings(subject, 2, trial.time(subject, 16)))
    eager = [subject.run(reading) for _, reading in readings]
    with subject.compiled() as fast:
        for (what, reading), expected in zip(readings, eager, strict=True):
            worst.see(distance(fast.run(reading), expected), what)
    return worst.measured(rounding(subject))


CHECKS = (Check("compiled", "compiled code gives what eager code gives", measure),)
