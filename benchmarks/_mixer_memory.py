"""One contestant of attention_scaling.py in a process of its own: how much memory each length takes, and how long.

Started with {"contestant": "group/name", "sizes", "threads", "seconds", "bytes"} as JSON. Answers, one JSON object a
line: {"mode", "n", "bytes", "seconds"} for every cell that ends, or {"mode", "n", "why"} for one that is left out: its
predecessors say that it would take more than ``seconds`` for one go, or more than ``bytes``.

bytes: the most memory that was resident during one go, less what was before, when inputs, weights and code were there
already (and a layout, which is made once a length: that takes less than the forward does). The system counts (VmHWM,
set back before each go); every block is given back as soon as it is freed (M_MMAP_THRESHOLD), so that nothing is
counted which an allocator merely keeps. null where the system is not Linux with glibc.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from _mixers import MODES, Case, Contestant, Mode, contestants

M_MMAP_THRESHOLD, SMALL = -3, 65536  # glibc's mallopt(3); fixed, it no longer grows by itself
SHORT = 2.0  # seconds: what takes longer does not notice whether it runs for the first time
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field: str) -> int:
    """Bytes: "VmRSS" now, "VmHWM" the most since ``clear``."""
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) * 1024


def peak_of(work: Callable[[], object]) -> int:
    """Bytes above what is resident now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    CLEAR.write_text("5")  # sets VmHWM back, proc(5)
    work()
    return max(0, resident("VmHWM") - before)


def cell(case: Case, mode: Mode, counted: bool, foreseen: float) -> dict[str, float | None]:
    """A go that counts; before it, where it is ``foreseen`` to be short, one that compiles and loads code."""
    work, size = case.work(mode), None
    if foreseen < SHORT:
        work(case.prepare())
    start = time.perf_counter()
    if counted:
        size = peak_of(lambda: work(case.prepare()))
    else:
        work(case.prepare())
    return {"bytes": size, "seconds": time.perf_counter() - start}


def predicted(costs: Mapping[int, float], n: int) -> float:
    """What ``n`` tokens will cost, from what shorter rows did: as it grew lately, or as a square after only one.

    The exponent is taken to lie between 1 and 2.2, whatever noise says.
    """
    if not costs:
        return 0.0
    *before, last = sorted(costs)
    power = 2.0
    if before and costs[before[-1]] > 0 and costs[last] > 0:
        power = math.log(costs[last] / costs[before[-1]]) / math.log(last / before[-1])
    return costs[last] * (n / last) ** min(max(power, 1.0), 2.2)


def cells(who: Contestant, job: dict[str, Any], counted: bool, answer: Callable[[dict[str, Any]], None]) -> None:
    """All lengths of a contestant, from short to long."""
    units = {"seconds": (1, "s"), "bytes": (2**30, "GiB")}
    for mode in MODES:
        if mode == "both" and not who.backward:
            continue
        past: dict[str, dict[int, float]] = {what: {} for what in units}
        for n in job["sizes"]:
            foreseen = {what: predicted(costs, n) for what, costs in past.items()}
            over = [what for what, cost in foreseen.items() if cost > job[what]]
            if over:
                costs = [f"{foreseen[what] / units[what][0]:.0f} {units[what][1]}" for what in over]
                answer({"mode": mode, "n": n, "why": f"would take about {' and '.join(costs)}"})
                break
            done = cell(who.build(n), mode, counted, foreseen["seconds"])
            answer({"mode": mode, "n": n} | done)
            for what, costs in past.items():
                if (cost := done[what]) is not None:
                    costs[n] = cost


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a package prints is not an answer
    job = json.loads(sys.argv[1])
    counted = platform.libc_ver()[0] == "glibc" and CLEAR.exists()
    counted = counted and ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, SMALL) == 1
    torch.set_num_threads(job["threads"])
    who = {f"{each.group}/{each.name}": each for each in contestants()}[job["contestant"]]
    cells(who, job, counted, lambda told: print(json.dumps(told), file=answers))


if __name__ == "__main__":
    main()
