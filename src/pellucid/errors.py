"""What a user can get wrong, as types. Every message names the thing (file, field, value) and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PellucidError(Exception):
    """Base of all errors that a person, a file or a flag can cause; anything else that is raised is our defect."""

    def __init__(self, problem: str, remedy: str = ""):
        super().__init__(f"{problem}\n  {remedy}" if remedy else problem)
        self.problem, self.remedy = problem, remedy


class SpecError(PellucidError, ValueError):
    """A model description that cannot be built: an unknown field, an illegal value or combination."""


class DataError(PellucidError, ValueError):
    """A text, token store or batch that cannot be used."""


class CheckpointError(PellucidError, ValueError):
    """A saved model or training state that is damaged, incomplete or belongs to something else."""


class RunError(PellucidError, RuntimeError):
    """A run that cannot start or go on: folder in use, not writable, non-finite loss."""


class TapError(PellucidError, KeyError):
    """An activation point that does not exist in this model."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])


class UsageError(PellucidError, ValueError):
    """A call or command line that asks for something impossible."""


def suggest(wrong: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?``, or the known names when nothing is close."""
    names = list(known)
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(names))}"
