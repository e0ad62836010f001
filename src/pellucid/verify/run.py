"""All checks, one after the other."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pellucid.arguments import checked
from pellucid.errors import UsageError, suggest
from pellucid.verify.checks import Check, all_checks
from pellucid.verify.measure import unclear
from pellucid.verify.open import open_subject
from pellucid.verify.report import Finding, Report, Verdict
from pellucid.verify.subject import NotApplicable, Subject
from pellucid.verify.trial import Trial

Progress = Callable[[str, int, int], None]  # the check that comes next, its number from 0, how many there are


def chosen(only: Sequence[str]) -> list[Check]:
    """The checks of these names, all for none; ``padding`` stands for every ``padding-…``. Raises UsageError."""
    known = all_checks()
    for name in only:
        if not any(check == name or check.startswith(f"{name}-") for check in known):
            raise UsageError(f"there is no check {name!r}", suggest(name, known))
    wanted = [n for n in known if not only or any(n == name or n.startswith(f"{name}-") for name in only)]
    return [known[name] for name in wanted]


@checked()
def verify(
    subject: Any, only: Sequence[str] = (), *, seed: int = 0, progress: Progress | None = None, **how: Any
) -> Report:
    """Try every promise of a model (or those named in ``only``) and say what was found.

    subject: a model of ours; a transformers model; a folder, hub name or GGUF file; ``file.py:function``, or any
    callable from ids to logits. how: what else it needs to be opened, see ``verify.open``. Raises UsageError for a name
    that is no check and a subject that is none; what the subject raises while it is tried is a finding. ::

        report = pellucid.verify(model, only=["padding", "cache"])
        assert report.ok, report["cache"].detail
    """
    checks = chosen(only)
    opened = subject if isinstance(subject, Subject) else open_subject(subject, **how)
    findings: list[Finding] = []
    for i, check in enumerate(checks):
        if progress is not None:
            progress(check.name, i, len(checks))
        findings.append(_tried(check, opened, seed))
    return Report(opened.name, opened.kind, seed, tuple(findings), opened.maker)


def _tried(check: Check, subject: Subject, seed: int) -> Finding:
    started = time.perf_counter()

    def found(verdict: Verdict, **what: Any) -> Finding:
        return Finding(check.name, check.promise, verdict, seconds=time.perf_counter() - started, **what)

    state = random.getstate()
    try:
        with tempfile.TemporaryDirectory(prefix="pellucid-verify-") as folder, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            measured = check.run(subject, Trial(seed, check.name, Path(folder)))
    except NotApplicable as reason:
        return found("not applicable", detail=str(reason))
    except Exception as error:  # whatever a stranger's model raises
        lines = str(error).strip().splitlines() or [""]
        return found("error", detail=f"{type(error).__name__}: {lines[0]}")
    finally:
        random.setstate(state)
    tolerance = measured.tolerance
    if unclear(subject, measured):
        detail = "one rounding of what it reads moves its outputs about as far: a fault could not be told from it"
        return found("not applicable", detail=detail, error=measured.error, tolerance=tolerance.value)
    verdict: Verdict = "pass" if measured.kept else "fail"
    numbers = {"error": measured.error, "tolerance": tolerance.value, "why": tolerance.reason}
    return found(verdict, detail=measured.detail, **numbers)
