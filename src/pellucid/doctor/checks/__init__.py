"""The questions, a few a file. Each is a function of a subject that returns a complaint, or None.

A file of this folder defines ``CHECKS`` and is named in ``MODULES``. A check names what it needs to know; where a
subject does not know that, the check is not made, and the report says so. A false alarm is a defect: what many people
do on purpose is no complaint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from pellucid.doctor.report import Complaint
from pellucid.doctor.subject import Kind, Subject

MODULES = ("texts", "tokens", "labels", "ends", "chats", "cuts", "model")
ALL: tuple[Kind, ...] = ("decoder", "encoder", "encoder-decoder", "classifier")
NEEDS = {
    "rows": "rows of tokens (a model)",
    "held_out": "rows that are held out",
    "vocabulary": "a tokenizer",
    "table": "a model",
    "classes": "a classifier",
    "context": "a model",
    "texts": "texts",
    "held_texts": "texts that are held out",
    "chats": "conversations",
    "template": "a chat template",
    "cuts": "lengths before anything was cut",
    "trial": "a model",
    "fresh": "a model of which it is known whether it has learned",
}


@dataclass(frozen=True)
class Check:
    """name: as findings have it. question: one line. needs: what of a subject it looks at."""

    name: str
    question: str
    look: Callable[[Subject], Complaint | None]
    needs: tuple[str, ...]
    kinds: tuple[Kind, ...] = ALL

    def missing(self, subject: Subject) -> str | None:
        """What the subject would have to know for this check; None where it knows all."""
        for need in self.needs:
            value = getattr(subject, need)
            if value is None or (not isinstance(value, bool | int) and hasattr(value, "__len__") and not len(value)):
                return NEEDS[need]
        return None


def all_checks() -> dict[str, Check]:
    """Every check by its name, in the order of a report."""
    modules = [import_module(f"pellucid.doctor.checks.{name}") for name in MODULES]
    return {check.name: check for module in modules for check in module.CHECKS}
