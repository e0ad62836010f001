"""What training minimises is what the model predicts: labels are shifted once."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pellucid.batch import IGNORE
from pellucid.verify.checks import Check
from pellucid.verify.measure import Measured, Tolerance, Worst, rounding
from pellucid.verify.reading import Reading
from pellucid.verify.subject import NotApplicable, Subject
from pellucid.verify.trial import Trial, draw

SHIFTS = {0: "as it would be if labels were not shifted", 2: "as it would be if labels were shifted twice"}


def mean_nll(logits: Float[Tensor, "batch time classes"], labels: Int[Tensor, "batch time"], shift: int) -> float:
    """Mean -ln p in nats of ``labels[:, t + shift]`` at place t, IGNORE left out."""
    wanted, time = labels[:, shift:], logits.shape[1]
    return float(F.cross_entropy(logits[:, : time - shift].mT.double(), wanted, ignore_index=IGNORE))


def measure(subject: Subject, trial: Trial) -> Measured:
    """The loss that training sees, against that of the logits; some labels are left out."""
    if not subject.per_token:
        raise NotApplicable(f"{subject.name} predicts one thing a row: there is nothing to shift")
    worst = Worst()
    right = 1 if subject.kind == "decoder" else 0
    for what, reading in trial.readings(subject, 3, trial.time(subject)):
        asked, labels = _question(subject, trial, reading)
        logits = subject.run(asked)
        if logits.shape[-1] == 1:
            raise NotApplicable(f"{subject.name} gives one number a place, which is no choice among labels")
        given, expected = subject.loss(asked, labels), mean_nll(logits, labels, right)
        alike = [said for shift, said in SHIFTS.items() if right and _close(given, mean_nll(logits, labels, shift))]
        worst.see(abs(given - expected) / max(expected, 1e-3), ", ".join([what, *alike]))
    near = rounding(subject)
    return worst.measured(Tolerance(near.value, f"{near.reason}, which the loss is a mean of", near.of_rounding))


def _question(subject: Subject, trial: Trial, reading: Reading) -> tuple[Reading, Int[Tensor, "batch time"]]:
    """What is read, and the labels: of a decoder what it reads; otherwise one for each place, drawn anew."""
    if subject.kind == "decoder":
        labels = reading.ids.clone()
    elif subject.kind == "encoder":
        labels = draw(subject.run(reading).shape[-1], reading.shape, trial.generator(), subject.pad_id)
    else:
        if subject.start_id is None:
            raise NotApplicable(f"{subject.name} does not say what its decoder reads first")
        labels = reading.ids.clone()  # what the decoder reads is these, one place later
        reading = reading.with_ids(F.pad(labels[:, :-1], (1, 0), value=subject.start_id))
    for row, scored in enumerate(labels):  # not as many in each: a mean is over all places, not over rows
        scored[max(3, len(scored) - 3 * (row + 1)) :] = IGNORE  # the last: what reads them instead of ids is not asked
    return reading, labels


def _close(a: float, b: float) -> bool:
    return abs(a - b) < 1e-4 * max(b, 1e-3)


CHECKS = (Check("labels", "the loss is that of the logits, labels shifted once", measure),)
