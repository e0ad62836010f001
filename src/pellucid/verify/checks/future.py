"""A token must not know what comes after it, or it is told what it should predict."""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.verify.checks import WRITERS, Check
from pellucid.verify.measure import Measured, Tolerance, Worst, distance, rounding
from pellucid.verify.subject import NotApplicable, Subject
from pellucid.verify.trial import Trial, others

OUTPUTS = 1 << 22  # numbers that one run may give: vocabularies can be large
NOTHING = Tolerance(0.0, "a weight of exactly zero passes on exactly nothing")


def _require_places(subject: Subject, time: int) -> None:
    if not subject.per_token:
        raise NotApplicable(f"{subject.name} gives one result a row, of all its tokens")
    if time < subject.prefix + 3:
        raise NotApplicable(f"{subject.name} may see all of its first {subject.prefix} tokens")


def _time(subject: Subject, trial: Trial) -> int:
    return trial.time(subject, 20 + subject.prefix)


def perturbed(subject: Subject, trial: Trial) -> Measured:
    """Change everything from a place on, at several places; what stands before it must come out the same."""
    time, worst = _time(subject, trial), Worst()
    _require_places(subject, time)
    first = max(1, subject.prefix)
    n = max(4, min(time, OUTPUTS // (time * subject.vocab)))
    cuts = sorted({first + round(i * (time - 1 - first) / (n - 1)) for i in range(n)})
    for what, reading in trial.readings(subject, 1, time):
        changed = others(reading.ids, subject.vocab, trial.generator(), subject.pad_id)
        after = torch.arange(time)[None] >= torch.tensor([time, *cuts])[:, None]  # of row 0, nothing
        out = subject.run(reading.rows([0] * len(after)).with_ids(torch.where(after, changed, reading.ids)))
        for row, cut in enumerate(cuts, 1):
            worst.see(distance(out[row, :cut], out[0, :cut]), f"{what}: changed from place {cut} on")
    return worst.measured(rounding(subject))


def gradient(subject: Subject, trial: Trial) -> Measured:
    """The gradient of what stands at a place, with respect to the vectors of later tokens."""
    time, worst = _time(subject, trial), Worst()
    _require_places(subject, time)
    for what, reading in trial.readings(subject, 1, time):
        for place in sorted({max(0, subject.prefix - 1), time // 2, time - 2}):

            def score(out: Tensor, place: int = place) -> Tensor:
                direction = torch.randn(out.shape[-1], generator=trial.generator()).to(out)
                return (out[0, place] * direction).sum()

            size = subject.gradient(reading, score)[0].abs().amax(-1)  # (time,)
            own = float(size[: place + 1].max())
            if own == 0.0:
                raise NotApplicable(f"outputs of {subject.name} have no gradient to what it reads")
            leak = float(size[place + 1 :].max())
            worst.see(leak / own if leak else 0.0, f"{what}: of place {place}, as a share of the largest")
    return worst.measured(NOTHING)


CHECKS = (
    Check("future", "later tokens do not change earlier outputs", perturbed, WRITERS),
    Check("future-gradient", "earlier outputs have no gradient to later tokens", gradient, WRITERS),
)
