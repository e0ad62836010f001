"""What fits into memory: a plan that needs more than is free is refused before any of it is taken.

What is free is what the system says: on a CPU the memory that programs can have without others being ended, swap
included, and no more than the limit of a container; on a CUDA device what the device says. Where a system does not
tell, nothing is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from pellucid.errors import TooLargeError
from pellucid.nn.flops import cache_bytes
from pellucid.nn.models import Model

CPU = torch.device("cpu")
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def free_bytes(device: torch.device = CPU) -> int | None:
    """Bytes that a new tensor on ``device`` can have; None where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    known = [size for size in (_of_system(), _of_container()) if size is not None]
    return min(known, default=None)


def _of_system() -> int | None:
    try:
        lines = (line.split() for line in MEMINFO.read_text(encoding="ascii").splitlines())
        kilobytes = {name: int(number) for name, number, *_ in lines}
        return 1024 * (kilobytes["MemAvailable:"] + kilobytes.get("SwapFree:", 0))
    except (OSError, ValueError, KeyError):
        return None


def _of_container() -> int | None:
    """What the limit of this process's control group leaves; memory that only holds files counts as free."""
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
        said = (line.split() for line in (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
        files = {name: int(number) for name, number in said}.get("inactive_file", 0)
        return max(0, int(limit) - used + files)
    except (OSError, ValueError):
        return None


def require(needed: int, what: str, remedy: Callable[[int], str], device: torch.device = CPU) -> None:
    """Raise TooLargeError where ``needed`` bytes are not free; ``remedy`` is told how many are."""
    free = free_bytes(device)
    if free is not None and needed > free:
        raise TooLargeError(f"{what} needs about {gigabytes(needed)}, and {gigabytes(free)} are free", remedy(free))


def gigabytes(n_bytes: int) -> str:
    """A size in words: "1.5 GB"."""
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:,.1f} MB"


def refuse_large_cache(model: Model, rows: int, capacity: int, source_time: int = 0) -> None:
    """Raise TooLargeError where the keys and values of so many rows, ``capacity`` tokens each, do not fit.

    source_time: tokens of the longest source, for an encoder–decoder.
    """

    def size(rows: int, capacity: int) -> int:
        return rows * cache_bytes(model.spec, capacity, model.dtype.itemsize, source_time)

    def remedy(free: int) -> str:
        shorter = (capacity >> k for k in range(1, capacity.bit_length()))
        fitting = next((n for n in shorter if size(rows, n) <= free), 0)
        lengths = f"{fitting:,} tokens a text would fit" if fitting else "not one token a text fits"
        return f"{lengths}: write fewer tokens (max_new_tokens), or fewer texts at a time"

    texts = f"{rows:,} texts" if rows > 1 else "a text"
    require(size(rows, capacity), f"the cache of {texts} of {capacity:,} tokens", remedy, model.device)
