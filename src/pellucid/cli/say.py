"""What a model writes, on its way to a terminal."""

from __future__ import annotations

import sys

from pellucid.errors import shown


def say(text: str) -> None:
    """Write ``text`` at once; to a terminal without power over it, to a file or pipe as it is."""
    sys.stdout.write(shown(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
