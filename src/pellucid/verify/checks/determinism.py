"""The same question has the same answer: nothing is left of training's dice, and a seed decides what is written."""

from __future__ import annotations

import torch

from pellucid.verify.checks import WRITERS, Check
from pellucid.verify.measure import EXACT, Measured, Tolerance, Worst, distance
from pellucid.verify.subject import Subject
from pellucid.verify.trial import Trial

NEW = 6  # tokens to write
SAME = Tolerance(0.0, "the same seed draws the same tokens: the share of tokens that differ")


def forward(subject: Subject, trial: Trial) -> Measured:
    """The same rows twice, with the global dice in between thrown."""
    worst = Worst()
    for what, reading in trial.readings(subject, 2, trial.time(subject)):
        first = subject.run(reading)
        torch.rand(7)
        worst.see(distance(subject.run(reading), first), what)
    return worst.measured(EXACT)


def generation(subject: Subject, trial: Trial) -> Measured:
    """The same prompts continued twice with one seed, other things having been drawn in between."""
    worst = Worst()
    for what, reading in trial.readings(subject, 2, min(8, trial.time(subject))):
        first = [written.ids for written in subject.generate(reading, NEW, trial.seed)]
        torch.rand(7)
        again = [written.ids for written in subject.generate(reading, NEW, trial.seed)]
        differ = sum(a != b for one, two in zip(first, again, strict=True) for a, b in zip(one, two, strict=True))
        worst.see(differ / sum(map(len, first)), what)
    return worst.measured(SAME)


CHECKS = (
    Check("deterministic", "the same input gives the same bits", forward),
    Check("seeded", "the same seed writes the same tokens", generation, WRITERS),
)
