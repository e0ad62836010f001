"""Time that is kept: how many steps a run has and with how many threads, decided on the way and written down first.

A decision is made between two steps, from the speed of the last seconds, and is on the disk before it takes effect. So
a run that is killed and resumed follows what is written, up to where it was, and gives the same bits; so does a
repetition. The clock is the only thing that a run cannot repeat, and it decides nothing that is not written down.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pellucid.errors import RunError, SpecError
from pellucid.files import explain_os_errors, write_text
from pellucid.train.checkpoint import RUN
from pellucid.train.config import Run
from pellucid.train.metrics import TIMINGS, read_metrics
from pellucid.train.schedule import Decision, position
from pellucid.train.threads import Follower, follower

DECISIONS = "decisions.jsonl"
SMOOTHED = 4.0  # seconds over which the speed is averaged
OFF, LEAST_OFF = 0.03, 0.4  # of the time that is left, or in seconds: a plan that misses by more is made anew
FINAL_SHARE = 0.1  # of the time, at most, for measuring what is held out at the end
FORWARD = 1 / 3  # of a step's time, for as many rows: until a validation was measured


class Pace:
    """A run's schedule with all decisions so far: what each step's rate and number of threads are."""

    def __init__(self, run: Run, decisions: Sequence[Decision] = ()):
        self.run, self.decisions = run, list(decisions or run.schedule.decisions)

    @property
    def steps(self) -> int:
        """How many there are in all, as far as is decided."""
        return self.run.schedule.total(self.decisions)

    def factor(self, step: int) -> float:
        """What the peak learning rates are multiplied by at ``step``."""
        return self.run.schedule.factor(step, self.decisions)

    def threads(self, step: int) -> int:
        """How many threads compute ``step``."""
        made = [d.threads for d in self.decisions if d.threads is not None and d.step <= step]
        return made[-1] if made else self.run.runtime.threads

    @property
    def batches(self) -> int | None:
        """How many held-out batches the end measures; None: all."""
        return next((d.batches for d in self.decisions if d.batches is not None), None)

    def passes(self, done: int, flag: str) -> bool:
        """Whether it is time for what happens every so many steps (``validate_every`` …), after step ``done``.

        A number that was derived, not asked for, means so much of the schedule: as much time, whatever the speed.
        """
        every = getattr(self.run.keeping, flag)
        if not every:
            return False
        if getattr(self.run.options, flag) is not None:
            return done % every == 0
        before, now = (position(n, self.run.schedule.steps, self.decisions) for n in (done - 1, done))
        return math.floor(now / every) > math.floor(before / every)


class Journal:
    """The decisions in a run's folder, one whole line each. What a killed process left of a line had no effect yet."""

    def __init__(self, folder: Path):
        """Raises RunError where the file is damaged elsewhere than at its end."""
        self.path = folder / DECISIONS
        self.decisions = read_decisions(self.path)
        if self.path.exists():
            self._write_all()

    def _write_all(self) -> None:
        write_text(self.path, "".join(map(_line, self.decisions)))

    def append(self, decision: Decision) -> None:
        """Put a decision on the disk; it may take effect once this returns."""
        self.decisions.append(decision)
        if len(self.decisions) == 1:  # the first makes the file, whole
            self._write_all()
            return
        with explain_os_errors(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(_line(decision))
            stream.flush()
            os.fsync(stream.fileno())


def _line(decision: Decision) -> str:
    fields = {name: value for name, value in vars(decision).items() if value is not None}
    return json.dumps(fields) + "\n"


def read_decisions(path: Path) -> list[Decision]:
    """The whole lines of a journal; [] where there is none. Raises RunError for a line that is no decision."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    found: list[Decision] = []
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            break
        try:
            fields = json.loads(line)
            decision = Decision(**fields)
            if not fields or any(type(value) is not int or value < 0 for value in fields.values()):
                raise ValueError("its values are not numbers of steps, threads or batches")
            if found and decision.step < found[-1].step:
                raise ValueError(f"step {decision.step} is before the one above")
        except (ValueError, TypeError) as error:
            remedy = "restore it from a copy, or start anew with another folder with --out"
            raise RunError(f"{path} line {number} is damaged: {error}", remedy) from error
        found.append(decision)
    return found


def load_run(path: Path) -> Run:
    """The run in ``path``, to be repeated: with what was decided on the way, which lies beside it until the run ends.

    Raises SpecError for a file that is no run, RunError for damaged decisions.
    """
    run = Run.load(path)
    try:
        beside = read_decisions(path.with_name(DECISIONS))
    except OSError as error:
        raise SpecError(f"{path.with_name(DECISIONS)} cannot be read: {error.strerror}", "check the path") from error
    return run.closed(run.schedule.decisions or beside)


def spent_before(folder: Path) -> float:
    """Seconds that earlier sessions of the run in ``folder`` have trained, those that a kill has made useless, too."""
    lines = read_metrics(folder / TIMINGS)
    return max((float(line.get("elapsed", 0.0)) for line in lines), default=0.0)


class Keeper:
    """Makes the decisions of a run between its steps, or follows those that are made.

    minutes, and so the time of everything (steps, validation, samples, checkpoints, the end), are counted from
    ``spent`` seconds on.
    """

    def __init__(
        self,
        pace: Pace,
        journal: Journal | None,
        spent: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """journal: where decisions are written; None: nothing is decided."""
        run = pace.run
        follows = run.runtime.follow_load
        minutes = run.schedule.minutes
        self.pace, self._journal, self._clock = pace, journal, clock
        self.budget = None if minutes is None else 60 * minutes
        wants = minutes is not None if follows is None else follows
        self._follower: Follower | None = follower(run.runtime.threads) if wants and run.runtime.threads > 1 else None
        self._began = self._last = clock() - spent
        self._session = clock()
        self.seconds: float | None = None  # a step takes, smoothed
        self._in_steps, self._steps, self._took = 0.0, 0, 0.0
        self._decided = -math.inf
        self.batch_seconds: float | None = None  # a held-out batch takes
        self.final_batches = 0
        self.save_seconds = 0.3

    @property
    def elapsed(self) -> float:
        """Seconds that the run has been training, in all its sessions."""
        return self._clock() - self._began

    def before(self, done: int) -> None:
        """Decide what holds from step ``done`` on, write it down, and set the number of threads."""
        if self._journal is not None and done > max((d.step for d in self.pace.decisions), default=-1):
            self._decide_steps(done)
            self._decide_threads(done)
        if (threads := self.pace.threads(done)) != torch.get_num_threads():
            torch.set_num_threads(threads)
        self._last = self._clock()

    def after(self) -> float:
        """A step is done; the answer is how many seconds one takes, smoothed over the last few."""
        took = self._took = self._clock() - self._last
        self._in_steps += took
        self._steps += 1
        if self.seconds is None or self._steps == 2:  # the first step of a session finds nothing in place
            self.seconds = took
        self.seconds += (1 - math.exp(-took / SMOOTHED)) * (took - self.seconds)
        return self.seconds

    def _decide(self, decision: Decision) -> None:
        assert self._journal is not None
        self._journal.append(decision)
        self.pace.decisions.append(decision)

    def _decide_steps(self, done: int) -> None:
        if self.budget is None or self.seconds is None or self._steps < 3:
            return
        left = self.budget - self.elapsed - self.end_seconds()
        steps = done + max(1, round(left / (self.seconds * (1 + self._beside()))))
        missed = abs(steps - self.pace.steps) * self.seconds
        patience = min(1.0, max(left, 0.0) / 10)
        if missed > max(LEAST_OFF, OFF * left) and self.elapsed - self._decided > patience:
            self._decided = self.elapsed
            self._decide(Decision(done, steps=steps))

    def _beside(self) -> float:
        """Seconds of validation, samples and checkpoints, to one second of steps."""
        if self._in_steps < 10:
            return 0.03
        return max(0.0, (self._clock() - self._session) / self._in_steps - 1)

    def _decide_threads(self, done: int) -> None:
        if self._follower is None or self.seconds is None:
            return
        now = self.pace.threads(done)
        if (wanted := self._follower.wanted(now, self._took)) != now:
            self._decide(Decision(done, threads=wanted))

    def end_seconds(self) -> float:
        """What the end will take: measuring what is held out, and saving."""
        each = self.batch_seconds
        if each is None:
            each = FORWARD * (self.seconds or 0.0) / self.pace.run.runtime.micro_batches
        measuring = self.final_batches * each
        if self.budget is not None:
            measuring = min(measuring, FINAL_SHARE * self.budget)
        return measuring + 2 * self.save_seconds

    def decide_end(self, done: int) -> int | None:
        """How many held-out batches the end may measure; None: all of them."""
        if self._journal is not None and self.pace.batches is None and self.budget is not None and self.batch_seconds:
            most = max(1, round(FINAL_SHARE * self.budget / self.batch_seconds))
            if most < self.final_batches:
                self._decide(Decision(done, batches=most))
        return self.pace.batches

    def left(self, done: int) -> float:
        """Seconds until the run ends."""
        if self.budget is not None and self._journal is not None:
            return max(0.0, self.budget - self.elapsed)
        return (self.pace.steps - done) * (self.seconds or 0.0) * (1 + self._beside()) + self.end_seconds()


def close_run(run: Run, pace: Pace, folder: Path) -> None:
    """Write the run with all that was decided: from here on, ``run.json`` alone repeats it."""
    run.closed(pace.decisions).save(folder / RUN)
