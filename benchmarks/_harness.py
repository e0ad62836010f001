"""What the benchmarks share: contestants in processes of their own, and medians with their spread."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
# a contestant that cannot share our environment: contestant -> the environment that `make bench` sets up for it
ENVIRONMENTS = {"litgpt": HERE.parent / ".venv-litgpt"}


class AbsentError(Exception):
    """A contestant cannot be measured, and why: one line, for the table."""


@dataclass(frozen=True)
class Spread:
    """Median and range of repeated measurements."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(statistics.median(values), min(values), max(values))

    def show(self, form: str = ".2f", scale: float = 1.0) -> str:
        middle, low, high = (format(x * scale, form) for x in (self.median, self.low, self.high))
        return f"{middle} ({low}–{high})"


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def python_of(contestant: str) -> Path:
    """The interpreter that a contestant runs in. Raises AbsentError where its environment has not been set up."""
    environment = ENVIRONMENTS.get(contestant)
    if environment is None:
        return Path(sys.executable)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        raise AbsentError(f"there is no {environment.name}: `make bench` sets it up")
    return python


def end(process: subprocess.Popen[str], printed: IO[str]) -> None:
    """End a process that is spoken to by lines, wait until its memory is free, and let go of what it printed."""
    assert process.stdin is not None and process.stdout is not None
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, printed):
        stream.close()


class Worker:
    """A contestant in a process of its own, idle until asked; ``facts`` is what it says of itself once warm.

    Raises AbsentError, with the last line of what it printed, where it cannot start or breaks.
    """

    def __init__(self, job: Mapping[str, Any]):
        command = [str(python_of(job["contestant"])), str(HERE / "_worker.py"), json.dumps(dict(job))]
        settings = {"OMP_NUM_THREADS": str(job["threads"]), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        self._printed = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  (see close)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            text=True,
            env=os.environ | settings,
        )
        try:
            self.facts = self._answer()
        except BaseException:
            self.close()
            raise

    def turn(self, seconds: float, follow: bool = False) -> dict[str, float]:
        """Work for about ``seconds``; the others stand still meanwhile. follow: with threads that follow the load."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: what it printed says why
            print(json.dumps({"seconds": seconds, "follow": follow}), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._printed.seek(0)
        lines = [line.strip() for line in self._printed.read().splitlines() if line.strip()]
        raise AbsentError(lines[-1] if lines else f"ended with exit code {code}")

    def close(self) -> None:
        """End the process, and wait until its memory is free."""
        end(self._process, self._printed)


def save_json(path: Path, record: object) -> None:
    """Write what was measured, for a machine to read."""

    def plain(value: object) -> object:
        return asdict(value) if isinstance(value, Spread) else str(value)

    path.write_text(json.dumps(record, indent=2, default=plain) + "\n", encoding="utf-8")
