"""What a user can get wrong, as types. Every message names the thing (file, field, value) and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LONGEST = 2000  # characters of a problem, or of a remedy: what a stranger's file calls its things may be megabytes
CANDIDATES = 2000  # names among which a similar one is looked for

# escape sequences begin with control characters; U+202A… and U+2066… turn the direction of what follows; half of a
# surrogate pair has no UTF-8 form
_POWER = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    """``text`` without power over a terminal: control characters other than tabs and line ends are spelled out."""
    return _POWER.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _bounded(text: str) -> str:
    return shown(text if len(text) <= LONGEST else f"{text[:LONGEST]}… and {len(text) - LONGEST:,} characters more")


class PellucidError(Exception):
    """Base of all errors that a person, a file or a flag can cause; anything else that is raised is our defect.

    Both texts may hold what a stranger has written: they are cut where they are absurdly long, and cannot do anything
    to a terminal.
    """

    def __init__(self, problem: str, remedy: str = ""):
        problem, remedy = _bounded(problem), _bounded(remedy)
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


class TooLargeError(PellucidError, MemoryError):
    """Something that would need more memory than is free; nothing of it was taken."""


def suggest(wrong: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?``, or the known names when nothing is close."""
    names = sorted(known)
    close = difflib.get_close_matches(wrong[:200], names[:CANDIDATES], n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
