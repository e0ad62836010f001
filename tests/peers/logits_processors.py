"""Filters of logits against the logits processors of transformers, on 2,000 random cases each.

Explained: equal logits, of which transformers keeps all and we as many as were asked for; and top-p where the float32
sum of transformers is not what float64 gives, which we agree with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from _counts import Counts, Verdict
from torch import Tensor
from transformers.generation import logits_process as theirs

from pellucid.generate import sample as ours
from pellucid.generate.sample import Sampling

CASES = 2000
TOLERANCE = 1e-4  # of log-probabilities; both compute in float32


@dataclass(frozen=True)
class Case:
    logits: Tensor  # (1, vocab)
    ids: Tensor  # (1, n), what was read
    t: float
    k: int
    p: float
    least: float
    penalty: float


def drawn(number: int) -> Case:
    """A case of its own for each number; the logits of every fourth are coarse, so that many are equal."""
    random = torch.Generator().manual_seed(number)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=random))

    vocab = int(torch.randint(2, 3000, (), generator=random))
    logits = torch.randn(1, vocab, generator=random) * uniform(0.1, 8)
    logits = (logits * 4).round() / 4 if number % 4 == 0 else logits
    ids = torch.randint(vocab, (1, 20), generator=random)
    k = int(torch.randint(1, vocab + 1, (), generator=random))
    p = 1 - 10 ** uniform(-5, 0) if number % 2 else uniform(0.01, 1)
    return Case(logits, ids, uniform(0.05, 3), k, max(p, 1e-3), uniform(0, 1), uniform(0.5, 2))


def seen(case: Case) -> Tensor:
    return torch.zeros_like(case.logits, dtype=torch.bool).scatter(1, case.ids, True)


def chained(case: Case) -> Tensor:
    scores = theirs.RepetitionPenaltyLogitsProcessor(case.penalty)(case.ids, case.logits.clone())  # pyright: ignore[reportArgumentType]
    for process in (theirs.TemperatureLogitsWarper(case.t), theirs.TopKLogitsWarper(case.k),
                    theirs.TopPLogitsWarper(case.p), theirs.MinPLogitsWarper(case.least)):  # fmt: skip
        scores = process(case.ids, scores)  # pyright: ignore[reportArgumentType]
    return scores


def ours_chained(case: Case) -> Tensor:
    sampling = Sampling(case.t, case.k, case.p, case.least, case.penalty)
    return sampling.filtered(case.logits.clone(), seen(case))


FILTERS: dict[str, tuple[Callable[[Case], Tensor], Callable[[Case], Tensor]]] = {
    "temperature": (
        lambda case: theirs.TemperatureLogitsWarper(case.t)(case.ids, case.logits.clone()),  # pyright: ignore[reportArgumentType]
        lambda case: ours.temperature(case.logits, case.t),
    ),
    "top-k": (
        lambda case: theirs.TopKLogitsWarper(case.k)(case.ids, case.logits.clone()),  # pyright: ignore[reportArgumentType]
        lambda case: ours.top_k(case.logits, case.k),
    ),
    "top-p": (
        lambda case: theirs.TopPLogitsWarper(case.p)(case.ids, case.logits.clone()),  # pyright: ignore[reportArgumentType]
        lambda case: ours.top_p(case.logits, case.p),
    ),
    "min-p": (
        lambda case: theirs.MinPLogitsWarper(case.least)(case.ids, case.logits.clone()),  # pyright: ignore[reportArgumentType]
        lambda case: ours.min_p(case.logits, case.least),
    ),
    "repetition penalty": (
        lambda case: theirs.RepetitionPenaltyLogitsProcessor(case.penalty)(case.ids, case.logits.clone()),  # pyright: ignore[reportArgumentType]
        lambda case: ours.repetition_penalty(case.logits, seen(case), case.penalty),
    ),
    "all in a chain": (chained, ours_chained),
}


def judged(name: str, case: Case, right: Tensor, got: Tensor) -> Verdict:
    if bool((right.isfinite() == got.isfinite()).all()):
        apart = (right.log_softmax(-1) - got.log_softmax(-1))[right.isfinite()].abs().max()
        return "right" if apart <= TOLERANCE else "wrong"
    differing = case.logits[right.isfinite() != got.isfinite()]
    if name == "top-p":
        mass = case.logits.double().softmax(-1).sort(descending=True).values.cumsum(-1)
        return "explained" if int((mass < case.p).sum()) + 1 == int(got.isfinite().sum()) else "wrong"
    several = bool((case.logits == differing[0]).sum() > 1)  # one value, of which ours keeps some
    if several and bool((differing == differing[0]).all()):
        return "explained"
    if name != "all in a chain":
        return "wrong"
    # What the reference says when it sums in float64, and when of equal logits those that we keep longer are ahead by a
    # hair: first of those that top-k keeps, then of those that are left at the end.
    wide = case.logits.double()
    kept = Sampling(case.t, case.k, 1.0, 0.0, case.penalty).filtered(case.logits.clone(), seen(case)).isfinite()
    hair = 1e-9 * (kept.double() + got.isfinite())
    said = (chained(replace(case, logits=logits)) for logits in (wide, wide + hair))
    return "explained" if any(bool((scores.isfinite() == got.isfinite()).all()) for scores in said) else "wrong"


def main() -> int:
    counts = Counts()
    for name, (reference, product) in FILTERS.items():
        for number in range(CASES):
            case = drawn(number)
            verdict = judged(name, case, reference(case), product(case))
            counts.add(name, verdict, f"case {number}" if verdict == "wrong" else "")
    return counts.report(f"logits processors of transformers, {CASES:,} random cases each")


if __name__ == "__main__":
    raise SystemExit(main())
