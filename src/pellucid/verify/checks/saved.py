"""What was saved is what is loaded."""

from __future__ import annotations

from pellucid.verify.checks import Check
from pellucid.verify.measure import EXACT, Measured, Worst, distance
from pellucid.verify.subject import Subject
from pellucid.verify.text import Speller
from pellucid.verify.trial import TEXTS, Trial


def respelled(before: Speller, after: Speller | None) -> float:
    """The share of texts that become other ids."""
    if after is None:
        return 1.0
    return sum(before.encode_prompt(text) != after.encode_prompt(text) for text in TEXTS) / len(TEXTS)


def measure(subject: Subject, trial: Trial) -> Measured:
    """The same outputs to the bit, and the same ids of the same texts."""
    loaded, worst = subject.saved(trial.folder), Worst()
    for what, reading in trial.readings(subject, 2, trial.time(subject)):
        worst.see(distance(loaded.run(reading), subject.run(reading)), what)
    if subject.tokenizer is not None:
        worst.see(respelled(subject.tokenizer, loaded.tokenizer), "the share of texts that are other ids")
    return worst.measured(EXACT)


CHECKS = (Check("saved", "saved and loaded, it is the same to the bit", measure),)
