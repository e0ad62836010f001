"""How many examples a property test draws: all in `make test-all`, a quarter where every change is tested."""

from __future__ import annotations

import os

THOROUGH = bool(os.environ.get("PELLUCID_TEST_THOROUGH"))


def examples(n: int) -> int:
    """``n``, or a quarter of it, but not fewer than six."""
    return n if THOROUGH else min(n, max(6, n // 4))
