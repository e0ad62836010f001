"""How many threads to compute with beside other programs: fewer than cores, while those use some of the cores.

The threads of a product wait for each other. Where one of them shares its core with another program, all others wait
for the turns of that program: on two cores, two threads beside one busy process make half as many tokens a second as a
single thread does. So the number of threads follows the load, between steps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

WINDOW = 0.5  # seconds over which the load is measured: others that come and go faster are not followed
SLOWER, AS_FAST = 1.7, 1.2  # times the best step at this number of threads: others have come; they have gone
FIRST_PROBE, LAST_PROBE = 5.0, 60.0  # seconds until more threads are tried again, where that was a mistake


@runtime_checkable  # the shape checks of the tests look
class Follower(Protocol):
    """Says how many threads the next step should have."""

    def wanted(self, threads: int, seconds: float) -> int:
        """After a step that took ``seconds`` with ``threads``; between 1 and the limit."""
        ...


def follower(limit: int) -> Follower:
    """A follower that asks the system about its processors (Linux), or else one that times steps."""
    return ByLoad(limit) if ByLoad.can() else ByStepTime(limit)


class ByLoad:
    """It follows how much of the processors other programs use, as the system counts it.

    Fewer threads, when others take more than half of a core from this program. More, when less than a quarter of one is
    used by programs that would not give way. Where that was a mistake, it takes longer until it is tried again.
    """

    stat = Path("/proc/stat")

    def __init__(self, limit: int, clock: Callable[[], float] = time.perf_counter):
        self._limit, self._clock = limit, clock
        self._cores = _own_cores()
        self._last = clock()
        self._used = self._count()
        self._raised, self._pause = -LAST_PROBE, FIRST_PROBE

    @classmethod
    def can(cls) -> bool:
        """Whether the system says what is needed."""
        try:
            return b"cpu0 " in cls.stat.read_bytes() and hasattr(os, "getpriority")
        except OSError:
            return False

    def _count(self) -> tuple[float, float]:
        """Processor seconds so far on this process's cores: of all others, and of those that do not give way."""
        firm = low = 0
        for line in self.stat.read_text().splitlines():
            name, _, rest = line.partition(" ")
            if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in self._cores:
                user, nice, system, _, _, irq, soft, steal = map(int, rest.split()[:8])
                firm, low = firm + user + system + irq + soft + steal, low + nice
        times, second = os.times(), os.sysconf("SC_CLK_TCK")
        everyone = (firm + low) / second - times.user - times.system
        if os.getpriority(os.PRIO_PROCESS, 0) > 0:  # this process is of low priority itself: nobody gives way to it
            return everyone, everyone
        return everyone, firm / second - times.user - times.system

    def wanted(self, threads: int, seconds: float) -> int:
        now = self._clock()
        if now - self._last < WINDOW:
            return threads
        try:
            used = self._count()
        except (OSError, ValueError):  # it can no longer be seen
            return threads
        everyone, firm = ((a - b) / (now - self._last) for a, b in zip(used, self._used, strict=True))
        self._last, self._used = now, used
        down, up = int(len(self._cores) - everyone + 0.5), int(len(self._cores) - firm + 0.25)
        if down < threads:
            self._pause = min(2 * self._pause, LAST_PROBE) if now - self._raised < self._pause else FIRST_PROBE
            return max(1, down)
        if threads < min(up, self._limit) and now - self._raised > self._pause:
            self._raised = now
            return min(up, self._limit)
        return threads


class ByStepTime:
    """It follows how long steps take: fewer threads where they take much longer; more are tried now and then."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.perf_counter):
        self._limit, self._clock = limit, clock
        self._best: dict[int, float] = {}
        self._begin(clock(), limit)
        self._probe_after, self._waiting_since = FIRST_PROBE, clock()

    def _begin(self, now: float, threads: int) -> None:
        self._since, self._threads, self._times = now, threads, list[float]()

    def wanted(self, threads: int, seconds: float) -> int:
        now = self._clock()
        if threads != self._threads:
            self._begin(now, threads)
            return threads  # the first step after a change tells little
        self._times.append(seconds)
        if now - self._since < WINDOW or len(self._times) < 3:
            return threads
        middle = sorted(self._times)[len(self._times) // 2]
        best = self._best[threads] = min(middle, self._best.get(threads, middle))
        self._begin(now, threads)
        if threads > 1 and middle > SLOWER * best:
            self._waiting_since = now
            return threads - 1
        if middle < AS_FAST * best and threads == self._limit:
            self._probe_after = FIRST_PROBE
        if threads < self._limit and now - self._waiting_since > self._probe_after:
            self._waiting_since, self._probe_after = now, min(2 * self._probe_after, LAST_PROBE)
            return threads + 1
        return threads


def _own_cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))
