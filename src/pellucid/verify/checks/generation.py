"""What is written is what the model says: the loop over a cache picks what the plain forward would."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.verify.checks import WRITERS, Check
from pellucid.verify.measure import Measured, Tolerance, Worst, rounding
from pellucid.verify.reading import Reading, Side, join
from pellucid.verify.subject import NotApplicable, Subject, Written
from pellucid.verify.trial import Trial

NEW = 6  # tokens to write; every row length leaves room for them


def shortfall(logits: Float[Tensor, "steps vocab"], written: Written, refused: Sequence[int]) -> float:
    """How much less likely the tokens picked are than the likeliest, or than the loop said, of the logits' size.

    refused: tokens that are not written however likely they are.

    To compare the likeliest tokens alone would hide much: of random weights it is often the last token again.
    """
    picked = logits.gather(-1, torch.tensor(written.ids)[:, None])[:, 0]
    apart = torch.tensor(written.logprobs) - (picked - logits.logsumexp(-1))
    best = logits.index_fill(-1, torch.tensor(refused, dtype=torch.long), -torch.inf).amax(-1)
    return float(torch.maximum(best - picked, apart.abs()).max() / logits.square().mean().sqrt())


def plain(subject: Subject, whole: Reading, first: int) -> Float[Tensor, "steps features"]:
    """What follows the first ``first`` tokens of a row, and each later one, of forwards without a cache.

    Tokens of a fixed prefix would see those that they predict: each is read by a forward that ends with it.
    """
    time = whole.shape[1]
    alone = [subject.run(whole.first(end))[0, -1:] for end in range(first, min(subject.prefix, time))]
    done = first - 1 + len(alone)
    return torch.cat([*alone, subject.run(whole)[0, done:]])


def measure(subject: Subject, trial: Trial) -> Measured:
    """Greedy tokens of prompts of unequal length, against the plain forward of each row by itself."""
    time, worst = min(12, trial.time(subject)), Worst()
    for what, reading in trial.readings(subject, 3, time):
        read = reading if reading.source is None else reading.source
        width = read.shape[1]
        side: Side = "left" if reading.source is None else "right"  # a source has no place where its text goes on
        lengths = [width] * 3 if _unpadded(subject, side) else [width, width - 2, max(1, width // 2)]
        rows = [read.rows([row]).first(n) for row, n in enumerate(lengths)]
        prompts = join([row.padded(side, subject.pad_id, width - n) for row, n in zip(rows, lengths, strict=True)])
        asked = prompts if reading.source is None else Reading(reading.ids[:, :1], None, prompts)
        for row, written in zip(rows, subject.generate(asked, NEW, None), strict=True):
            begin = row.ids[0].tolist() if reading.source is None else [subject.start_id]
            ids = torch.tensor([begin + written.ids[:-1]])
            prompt = len(begin) if subject.marked else 0
            whole = Reading(ids, None, row if reading.source is not None else None, prompt)
            logits = plain(subject, whole, len(begin))[:, : subject.choices].float()
            worst.see(shortfall(logits, written, subject.refused), f"{what}, a prompt of {row.shape[1]}")
    # two candidates may each be off by a rounding
    tolerance = rounding(subject)
    return worst.measured(Tolerance(2 * tolerance.value, f"twice {tolerance.reason}", tolerance.of_rounding))


def _unpadded(subject: Subject, side: Side) -> bool:
    """Whether rows must be of one length."""
    try:
        subject.refuse_padding(side)
    except NotApplicable:
        return True
    return False


CHECKS = (Check("greedy", "generation picks the likeliest token of the plain forward", measure, WRITERS),)
