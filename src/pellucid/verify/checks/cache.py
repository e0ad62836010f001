"""Reading piece by piece over a cache is reading at once."""

from __future__ import annotations

from pellucid.verify.checks import WRITERS, Check
from pellucid.verify.measure import Measured, Worst, distance, rounding
from pellucid.verify.reading import join
from pellucid.verify.subject import Subject
from pellucid.verify.trial import Trial

TIME = 12  # tokens in a row; each is a step of its own once


def chunkings(time: int, first: int) -> dict[str, list[int]]:
    """Where pieces end, by name; none ends before ``first``."""
    uneven = (first + 1, first + 2, first + 5)  # of one and of several, before and after each other
    return {
        "at once": [time],
        "token by token": list(range(first, time + 1)),
        "uneven pieces": [*(end for end in uneven if end < time), time],
    }


def measure(subject: Subject, trial: Trial) -> Measured:
    """All outputs, however the text is cut."""
    time, worst = trial.time(subject, TIME + subject.prefix), Worst()
    for what, reading in trial.readings(subject, 2, time):
        whole = subject.run(reading)
        for way, ends in chunkings(time, max(1, subject.prefix)).items():
            worst.see(distance(subject.in_pieces(reading, ends), whole), f"{what}, {way}")
    return worst.measured(rounding(subject))


def ragged(subject: Subject, trial: Trial) -> Measured:
    """Prompts of different lengths side by side, padded on the left as for generation."""
    subject.refuse_padding("left")
    time, worst = trial.time(subject, TIME + subject.prefix), Worst()
    for what, reading in trial.readings(subject, 3, time):
        lengths = [time, time - 3, max(2, time // 2)]
        prompts = [reading.rows([row]).first(n) for row, n in enumerate(lengths)]
        together = join(
            [prompt.padded("left", subject.pad_id, time - n) for prompt, n in zip(prompts, lengths, strict=True)]
        )
        whole = [subject.run(prompt) for prompt in prompts]
        first = min(time, time - min(lengths) + subject.prefix)  # here the shortest prompt has its prefix, too
        for way, ends in chunkings(time, max(1, time // 3, first if subject.prefix else 1)).items():
            out = subject.in_pieces(together, ends)
            for row, (n, alone) in enumerate(zip(lengths, whole, strict=True)):
                worst.see(distance(out[row : row + 1, time - n :], alone), f"{what}, {way}, {n} tokens")
    return worst.measured(rounding(subject))


CHECKS = (
    Check("cache", "reading in pieces over a cache is reading at once", measure, WRITERS),
    Check("cache-ragged", "so it is for prompts of unequal length", ragged, WRITERS),
)
