"""What did not fit: how many examples were cut, how much of them is lost, and whether the answer is."""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.doctor.checks import Check
from pellucid.doctor.report import Complaint, number_of
from pellucid.doctor.subject import Subject

TOLD = 0.05  # the share of lost tokens from which on it is told


def truncated(subject: Subject) -> Complaint | None:
    """Examples that are cut or left out, where much is lost, or what was to be learned."""
    cut = [each for each in subject.cuts if each.after < each.before]
    gone = sum(each.learned > 0 and each.left == 0 for each in cut)
    total, lost = sum(each.before for each in subject.cuts), sum(each.before - each.after for each in cut)
    if not cut or (not gone and lost <= TOLD * total):
        return None
    said = f"{number_of(len(cut), len(subject.cuts), 'examples')} are too long, {number_of(lost, total, 'tokens')} lost"
    said += f"; of {gone:,} nothing is left to learn" if gone else ""
    severity = "refuse" if gone > len(subject.cuts) / 2 else "warn"
    return Complaint(severity, said, "choose a longer context, or split long examples where they have parts")


CHECKS: Sequence[Check] = (Check("truncated", "is what is learned not cut away?", truncated, ("cuts",)),)
