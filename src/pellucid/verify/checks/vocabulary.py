"""The model has a vector for every token that its tokenizer makes, and for nothing else."""

from __future__ import annotations

import torch

from pellucid.verify.checks import Check
from pellucid.verify.measure import Measured, Tolerance, Worst
from pellucid.verify.reading import Reading
from pellucid.verify.subject import NotApplicable, Subject
from pellucid.verify.text import speller_of
from pellucid.verify.trial import TEXTS, Trial

NONE_BEYOND = Tolerance(0.0, "an id beyond the table has no vector: how many there are")
NONE_READ = Tolerance(0.0, "an id without a vector must be refused: the share of those that were read")


def fits(subject: Subject, trial: Trial) -> Measured:
    """Largest id of text, and those with a role; special tokens that no text becomes may lie beyond."""
    speller, worst = speller_of(subject), Worst()
    vocab = subject.source_vocab  # an encoder–decoder reads text with its encoder
    unread = sum(number >= vocab for number in speller.special.values())
    worst.see(float(max(0, speller.vocab_size - unread - vocab)), "of the tokenizer's vocabulary")
    roles = [number for number in (speller.bos_id, speller.eos_id) if number is not None]
    worst.see(float(sum(number >= vocab for number in roles)), "that begin or end a text")
    ids = [number for text in TEXTS for number in speller.encode_prompt(text)]
    worst.see(float(sum(not 0 <= number < vocab for number in ids)), "in texts")
    return worst.measured(NONE_BEYOND)


def refused(subject: Subject, trial: Trial) -> Measured:
    """The first id beyond the vocabulary, a far one and a negative one, amid others that exist."""
    if not subject.vocab_is_known:
        raise NotApplicable(f"{subject.name} does not say which ids it knows: vocab=… would")
    _, reading = next(trial.readings(subject, 1, trial.time(subject, 8)))
    subject.run(reading)
    cases = {f"id {n}": (reading.ids, n) for n in (subject.vocab, subject.vocab + 1000, -1)}
    read = [name for name, (ids, n) in cases.items() if _reads(subject, reading.with_ids(_with(ids, n)))]
    if reading.source is not None:
        for n in (subject.source_vocab, -1):
            source = reading.source.with_ids(_with(reading.source.ids, n))
            cases[f"id {n} of the source"] = (source.ids, n)
            read += [f"id {n} of the source"] * _reads(subject, Reading(reading.ids, None, source))
    return Measured(len(read) / len(cases), NONE_READ, f"read: {', '.join(read)}" if read else "")


def _with(ids: torch.Tensor, number: int) -> torch.Tensor:
    changed = ids.clone()
    changed[0, 1] = number
    return changed


def _reads(subject: Subject, reading: Reading) -> bool:
    try:
        subject.run(reading)
    except Exception:  # each maker has another way to say no
        return False
    return True


CHECKS = (
    Check("vocabulary", "every token of the tokenizer has a place in the model", fits),
    Check("unknown-ids", "an id that does not exist is refused", refused),
)
