"""What a model writes, on its way to a terminal."""

from __future__ import annotations

import re
import sys

# escape sequences begin with control characters; U+202A… and U+2066… turn the direction of what follows
_POWER = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def say(text: str) -> None:
    """Write ``text`` at once; to a terminal without power over it, to a file or pipe as it is."""
    sys.stdout.write(shown(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def shown(text: str) -> str:
    """``text`` with control characters other than tabs and line ends spelled out."""
    return _POWER.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
