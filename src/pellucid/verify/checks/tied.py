"""Weights that are said to be one are one, and still are when they come back from a file."""

from __future__ import annotations

from torch import Tensor

from pellucid.verify.checks import Check
from pellucid.verify.measure import Measured, Tolerance, Worst
from pellucid.verify.subject import NotApplicable, Pairs, Subject
from pellucid.verify.trial import Trial

ONE = Tolerance(0.0, "the same memory, or training would part them: the share of pairs that are two")


def is_one(a: Tensor, b: Tensor) -> bool:
    """Whether the two are the same numbers in the same memory."""
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def measure(subject: Subject, trial: Trial) -> Measured:
    """Every pair, in the model and in what is loaded after it was saved."""
    pairs, worst = subject.tied(), Worst()
    if not pairs:
        raise NotApplicable(f"{subject.name} says of no weights that they are one")
    worst.see(*_parted(pairs, ""))
    if worst.error:
        return worst.measured(ONE)
    try:
        loaded = subject.saved(trial.folder)
    except NotApplicable:
        return worst.measured(ONE)
    worst.see(*_parted(loaded.tied(), " once loaded"))
    return worst.measured(ONE)


def _parted(pairs: Pairs, when: str) -> tuple[float, str]:
    two = [f"{a} and {b}" for a, of_a, b, of_b in pairs if not is_one(of_a, of_b)]
    return len(two) / max(1, len(pairs)), f"{', '.join(two)}{when}"


CHECKS = (Check("tied", "weights that are tied are one weight", measure),)
