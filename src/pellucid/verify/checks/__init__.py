"""The promises, one a file. Each is tried by a function that asks a subject, and says how far off it was.

A file of this folder defines ``CHECKS``, a tuple of ``Check``, and is named in ``MODULES``. A check's ``measure`` gets
the subject and a ``Trial`` (what to read, dice, a folder) and returns ``Measured``: its largest error, the tolerance
with its reason, and where it was. ``NotApplicable`` from any question becomes the check's verdict, so a check asks its
subject first, before it does anything else. A nan error breaks the promise, and so does an exception of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from pellucid.verify.measure import Measured
from pellucid.verify.subject import Kind, NotApplicable, Subject
from pellucid.verify.trial import Trial

MODULES = (
    *("future", "padding", "batch", "cache", "packing", "compiled", "empty_rows", "generation", "determinism"),
    *("precision", "saved", "exported", "labels", "tied", "vocabulary", "spelling", "begin_end", "chat"),
)
ALL: tuple[Kind, ...] = ("decoder", "encoder", "encoder-decoder")
WRITERS: tuple[Kind, ...] = ("decoder", "encoder-decoder")


@dataclass(frozen=True)
class Check:
    """name: for ``--only``. promise: one line, what a kept promise means. kinds: of model that make it."""

    name: str
    promise: str
    measure: Callable[[Subject, Trial], Measured]
    kinds: tuple[Kind, ...] = ALL

    def run(self, subject: Subject, trial: Trial) -> Measured:
        """Raises NotApplicable where the subject does not make this promise."""
        if subject.kind not in self.kinds:
            article = "a" if subject.kind == "decoder" else "an"
            raise NotApplicable(f"{article} {subject.kind} makes no such promise")
        return self.measure(subject, trial)


def all_checks() -> dict[str, Check]:
    """Every check by its name, in the order of the report."""
    modules = [import_module(f"pellucid.verify.checks.{name}") for name in MODULES]
    return {check.name: check for module in modules for check in module.CHECKS}
