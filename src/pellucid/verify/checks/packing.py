"""Several documents in one row do not know of each other."""

from __future__ import annotations

from pellucid.verify.checks import Check
from pellucid.verify.measure import Measured, Worst, distance, rounding
from pellucid.verify.reading import Reading
from pellucid.verify.subject import NotApplicable, Subject
from pellucid.verify.trial import Trial

LENGTHS = (7, 1, 5, 4)


def measure(subject: Subject, trial: Trial) -> Measured:
    """Documents of several lengths, one of a single token, in one row and each in its own."""
    time, worst = trial.time(subject, sum(LENGTHS)), Worst()
    if time < sum(LENGTHS):
        raise NotApplicable(f"{subject.name} reads rows of {subject.context} tokens: too short for several documents")
    for what, reading in trial.readings(subject, 1, time):
        documents = list(reading.ids[0].split(list(LENGTHS)))
        for i, (out, ids) in enumerate(zip(subject.packed(documents), documents, strict=True)):
            worst.see(distance(out, subject.run(Reading(ids[None]))[0]), f"{what}, document {i + 1}")
    return worst.measured(rounding(subject))


CHECKS = (Check("packing", "documents packed into one row are read as if apart", measure),)
