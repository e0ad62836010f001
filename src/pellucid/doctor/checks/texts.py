"""Texts before they are tokens: empty, binary, said twice, on both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pellucid.doctor.checks import Check
from pellucid.doctor.report import Complaint, first_words, number_of
from pellucid.doctor.subject import Subject

RARE = 0.01  # the share from which on a fault is told
MANY = 0.5  # the share from which on it is refused
CONTROL = frozenset(chr(code) for code in [*range(9), *range(14, 27), *range(28, 32), 0x7F, 0xFFFD])
BINARY = 0.02  # characters of a text that are none


def empty(subject: Subject) -> Complaint | None:
    """Texts without a character that is seen."""
    blank = sum(not text.strip() for text in subject.texts)
    if not blank or blank < RARE * len(subject.texts):
        return None
    severity = "refuse" if blank >= MANY * len(subject.texts) else "warn"
    return Complaint(severity, f"{number_of(blank, len(subject.texts), 'texts')} are empty", "leave them out")


def binary(subject: Subject) -> Complaint | None:
    """Texts that are no text: control characters, or what a decoder could not read."""
    bad = [text for text in subject.texts if sum(map(CONTROL.__contains__, text)) > BINARY * max(1, len(text))]
    if not bad:
        return None
    severity = "refuse" if len(bad) >= MANY * len(subject.texts) else "warn"
    said = f"{number_of(len(bad), len(subject.texts), 'texts')} hold control characters or were not decoded"
    return Complaint(severity, f"{said}: {first_words(bad)}", "leave out what is no text, or name its encoding")


def duplicates(subject: Subject) -> Complaint | None:
    """Texts that came before."""
    counts = Counter(_plain(text) for text in subject.texts if text.strip())
    more = sum(counts.values()) - len(counts)
    if more <= RARE * sum(counts.values()):
        return None
    most = counts.most_common(1)[0]
    said = f"{number_of(more, sum(counts.values()), 'texts')} came before; {first_words([most[0]])} {most[1]:,} times"
    return Complaint("warn", said, "leave them out (--deduplicate exact), or mean it: they count as often as they come")


def leakage(subject: Subject) -> Complaint | None:
    """Held-out texts that are trained on."""
    known = {_plain(text) for text in subject.texts}
    held = [text for text in subject.held_texts if text.strip()]
    leaked = [text for text in held if _plain(text) in known]
    if not leaked or len(leaked) < RARE * len(held):
        return None
    severity = "refuse" if len(leaked) >= MANY * len(held) else "warn"
    said = f"{number_of(len(leaked), len(held), 'held-out texts')} are trained on, too: {first_words(leaked)}"
    return Complaint(severity, said, "split by what is said, not by line: measures on these say nothing")


def _plain(text: str) -> str:
    return " ".join(text.split())


CHECKS: Sequence[Check] = (
    Check("empty", "does every text say something?", empty, ("texts",)),
    Check("binary", "is every text a text?", binary, ("texts",)),
    Check("duplicates", "is every text there once?", duplicates, ("texts",)),
    Check("leakage", "is what is held out not trained on?", leakage, ("texts", "held_texts")),
)
