"""One contestant of attention_scaling.py in a process of its own: how much memory each length takes, and how long.

Started with {"contestant": "group/name", "sizes", "threads", "seconds", "bytes"} as JSON. Answers, one JSON object a
line: {"mode", "n", "bytes", "seconds"} for every cell that ends, or {"mode", "n", "why"} for one that is left out: its
predecessors say that it would take more than ``seconds`` for one go, or more than ``bytes``. Linux only.

bytes: the most memory that was resident during one go, less what was before, when inputs, weights and code were there
already (and a layout, which is made once a length: that takes less than the forward does). The system counts (VmHWM,
set back before each go); every block is given back as soon as it is freed (M_MMAP_THRESHOLD), so that nothing is
counted which an allocator merely keeps.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _mixers import MODES, Case, Contestant, Mode, contestants

M_MMAP_THRESHOLD, SMALL = -3, 65536  # glibc's mallopt(3); fixed, it no longer grows by itself
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field: str) -> int:
    """Bytes: "VmRSS" now, "VmHWM" the most since ``clear``."""
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) * 1024


def peak_of(work: Callable[[], object]) -> tuple[int, float]:
    """Bytes above what is resident now, and seconds."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    CLEAR.write_text("5")  # sets VmHWM back, proc(5)
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return max(0, resident("VmHWM") - before), seconds


def cell(case: Case, mode: Mode) -> dict[str, float]:
    """One go that does not count, which compiles and loads code; then one that does."""
    work = case.work(mode)
    start = time.perf_counter()
    work(case.prepare())
    first = time.perf_counter() - start
    size, seconds = peak_of(lambda: work(case.prepare()))
    return {"bytes": size, "seconds": min(first, seconds)}


def predicted(costs: list[float]) -> float:
    """What twice the length will cost, from what shorter ones did: as it grew so far, but never less than linearly."""
    if len(costs) < 2 or costs[-2] <= 0:
        return 4 * costs[-1] if costs else 0.0
    return costs[-1] * min(max(costs[-1] / costs[-2], 2.0), 4.5)


def cells(contestant: Contestant, job: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
    """All lengths of a contestant, from short to long."""
    for mode in MODES:
        if mode == "both" and not contestant.backward:
            continue
        past: dict[str, list[float]] = {"bytes": [], "seconds": []}
        for n in job["sizes"]:
            over = [what for what, costs in past.items() if predicted(costs) > job[what]]
            if over:
                units = {"seconds": 1, "bytes": 2**30}
                why = ", ".join(
                    f"about {predicted(past[what]) / units[what]:.0f} {'s' if what == 'seconds' else 'GiB'}"
                    for what in over
                )
                answer({"mode": mode, "n": n, "why": f"would take {why}"})
                break
            done = cell(contestant.build(n), mode)
            answer({"mode": mode, "n": n} | done)
            for what, costs in past.items():
                costs.append(done[what])


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a package prints is not an answer
    job = json.loads(sys.argv[1])
    if not CLEAR.exists() or ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, SMALL) != 1:
        raise SystemExit("memory is measured by Linux and glibc only")
    torch.set_num_threads(job["threads"])
    chosen = {f"{each.group}/{each.name}": each for each in contestants()}[job["contestant"]]
    cells(chosen, job, lambda told: print(json.dumps(told), file=answers))


if __name__ == "__main__":
    main()
