"""Memory that is freed stays with the process: a training step asks for the same sizes again and again.

glibc gives large blocks back to the system at once, and every new one is then paid for page by page, as it is first
touched. On a CPU that costs as much as many matrix products.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names and numbers of glibc's mallopt(3)
NEVER = 2**31 - 1  # bytes: the largest value that mallopt takes


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for its next allocation; False where the C library is not glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return all(libc.mallopt(option, NEVER) == 1 for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD))
