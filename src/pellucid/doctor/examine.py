"""All checks that can be made of a subject."""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.doctor.checks import Check, all_checks
from pellucid.doctor.report import Finding, Report
from pellucid.doctor.subject import Subject
from pellucid.errors import UsageError, suggest


def chosen(only: Sequence[str]) -> list[Check]:
    """The checks of these names; all for none. Raises UsageError for a name that is no check."""
    known = all_checks()
    for name in only:
        if name not in known:
            raise UsageError(f"there is no check {name!r}", suggest(name, known))
    return [known[name] for name in only] or list(known.values())


def examine(subject: Subject, only: Sequence[str] = ()) -> Report:
    """Make every check (or those named in ``only``) for which the subject knows enough."""
    findings: list[Finding] = []
    asked: list[str] = []
    missing: dict[str, str] = {}
    for check in chosen(only):
        if subject.kind not in check.kinds:
            continue
        if (need := check.missing(subject)) is not None:
            missing[check.name] = need
            continue
        asked.append(check.name)
        if (said := check.look(subject)) is not None:
            findings.append(Finding(check.name, check.question, said.severity, said.problem, said.remedy))
    return Report(subject, tuple(findings), tuple(asked), missing)
