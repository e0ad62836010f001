"""What other programs are given computes the same."""

from __future__ import annotations

from functools import partial

from pellucid.verify.checks import Check
from pellucid.verify.checks.saved import respelled
from pellucid.verify.measure import Measured, Worst, distance, rounding
from pellucid.verify.subject import NotApplicable, Subject
from pellucid.verify.trial import Trial

FORMS = {
    "transformers": "exported for transformers, it says the same there",
    "gguf": "through a GGUF file of full precision, it says the same",
    "graph": "as a graph of torch.export, it says the same",
}


def measure(subject: Subject, trial: Trial, form: str) -> Measured:
    """Outputs, and ids of texts where the tokenizer goes with the model."""
    make = subject.exports().get(form)
    if make is None:
        raise NotApplicable(f"{subject.name} has no such export")
    other, worst = make(trial.folder), Worst()
    for what, reading in trial.readings(subject, 2, trial.time(subject)):
        worst.see(distance(other.run(reading), subject.run(reading)), what)
    if subject.tokenizer is not None and form != "graph":
        worst.see(respelled(subject.tokenizer, other.tokenizer), "the share of texts that are other ids")
    return worst.measured(rounding(subject))


CHECKS = tuple(Check(f"exported-{form}", promise, partial(measure, form=form)) for form, promise in FORMS.items())
