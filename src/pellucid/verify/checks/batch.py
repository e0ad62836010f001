"""A row's output does not depend on the rows beside it."""

from __future__ import annotations

from pellucid.verify.checks import Check
from pellucid.verify.measure import Measured, Worst, distance, rounding
from pellucid.verify.subject import Subject
from pellucid.verify.trial import Trial


def measure(subject: Subject, trial: Trial) -> Measured:
    """Rows together, in another order, and each alone."""
    worst = Worst()
    for what, reading in trial.readings(subject, 4, trial.time(subject)):
        together = subject.run(reading)
        order = [2, 0, 3, 1]
        worst.see(distance(subject.run(reading.rows(order)), together[order]), f"{what}, in another order")
        for row in range(len(order)):
            alone = subject.run(reading.rows([row]))
            worst.see(distance(alone, together[[row]]), f"{what}, row {row} alone")
    return worst.measured(rounding(subject))


CHECKS = (Check("batch", "a row gives the same alone as among others", measure),)
