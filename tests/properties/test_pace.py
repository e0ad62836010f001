"""Minutes that are kept: what is decided on the way holds once it is written down, and repeats bit for bit."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from some import some_of

from pellucid.errors import RunError
from pellucid.train import derive, loop, pace
from pellucid.train.config import Run
from pellucid.train.pace import DECISIONS, Journal, Keeper, Pace, load_run, read_decisions
from pellucid.train.precision import Peak
from pellucid.train.report import Progress, Reporter
from pellucid.train.run import train
from pellucid.train.schedule import Decision, factor, position
from pellucid.train.threads import ByLoad, ByStepTime
from pellucid.train.trainer import Trainer

TEXT = inspect.getsource(textwrap)
TINY: dict[str, Any] = {
    **{"depth": 2, "d_model": 16, "head_dim": 8, "context": 16, "batch_size": 4, "vocab_size": 280},
    **{"precision": "fp32", "dropout": 0.1, "checkpoint_every": 5, "validation": 0.01, "minutes": 1.0},
}


class Machine:
    """A clock that steps move on: each update takes ``seconds(number)``."""

    def __init__(self, seconds: Callable[[int], float]):
        self.now, self.seconds = 0.0, seconds

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr(loop, "VALIDATION_BATCHES", 2)
    monkeypatch.setattr(Trainer, "measure", lambda self: 0.5)
    for module in (derive, loop):
        monkeypatch.setattr(module, "measure_peak", lambda *_: Peak(2e11, 1e11))


def on(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float]) -> Machine:
    """Runs keep the time of a machine on which step n takes ``seconds(n)``."""
    machine, update = Machine(seconds), Trainer.update

    def timed(self: Trainer) -> Any:
        machine.now += machine.seconds(self.done)
        return update(self)

    monkeypatch.setattr(Trainer, "update", timed)
    monkeypatch.setattr(Keeper, "end_seconds", lambda self: 1.0)
    made_by = loop._keeper  # the time of reading the text is this machine's: left out
    monkeypatch.setattr(loop, "_keeper", lambda trainer, folder, reporter, _: made_by(trainer, folder, reporter, 0.0))
    original = Keeper.__init__
    monkeypatch.setattr(
        Keeper, "__init__", lambda self, made, journal, spent=0.0: original(self, made, journal, spent, machine)
    )
    return machine


class PowerCut(Exception):
    pass


class CutAt(Reporter):
    def __init__(self, *steps: int):
        self.cuts, self.steps = set(steps), list[int]()

    def progress(self, state: Progress) -> None:
        self.steps.append(state.step)
        if state.step in self.cuts:
            raise PowerCut


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


# --- the schedule ----------------------------------------------------------------------------------------------------

made = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 200)), max_size=6)


@given(st.integers(1, 300), made)
def test_position_rises_evenly_from_nothing_to_the_end_whatever_is_decided(
    steps: int, plans: list[tuple[int, int]]
) -> None:
    decisions, total = list[Decision](), steps
    for step, more in sorted(plans):
        if step < total:
            total = step + more
            decisions.append(Decision(step, steps=total))
    places = [position(step, steps, decisions) for step in range(total + 1)]
    assert places[0] == 0
    assert places[-1] == pytest.approx(steps)
    assert all(a < b for a, b in pairwise(places))
    for decision in decisions:  # it changes no step before it, nor its own place
        before = [d for d in decisions if d.step < decision.step]
        assert position(decision.step, steps, before) == position(decision.step, steps, decisions)


def test_position_without_decisions_is_the_step() -> None:
    assert [position(n, 7) for n in range(8)] == list(range(8))


def test_decay_begins_at_half_of_the_time_after_a_slow_beginning() -> None:
    """At the start 100 steps were expected; after ten steps it is clear that there will be 400."""
    decisions = [Decision(10, steps=400)]
    rates = [factor("wsd", n, 100, 5, at=position(n, 100, decisions)) for n in range(400)]
    falls = next(n for n in range(6, 400) if rates[n] < 1)
    assert 170 <= falls <= 190
    assert rates[-1] < 0.01
    assert max(abs(a - b) for a, b in pairwise(rates[5:])) < 0.01


# --- the journal -----------------------------------------------------------------------------------------------------


def test_journal_keeps_whole_lines_and_drops_what_a_kill_left_of_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    wanted = [Decision(3, steps=40), Decision(3, threads=1), Decision(9, batches=2)]
    for decision in wanted:
        journal.append(decision)
        assert read_decisions(tmp_path / DECISIONS)[-1] == decision
    whole = (tmp_path / DECISIONS).read_bytes()
    for end in range(len(whole)):
        (tmp_path / DECISIONS).write_bytes(whole[:end])
        again = Journal(tmp_path)
        assert again.decisions == wanted[: whole[:end].count(b"\n")]
        again.append(Decision(10, steps=50))
        assert read_decisions(tmp_path / DECISIONS) == again.decisions


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", "3", '{"step": -1}', '{"step": 1.5}', '{"stop": 1}', '{"steps": 5}', '{"step": 1}', "\xff"],
)
def test_journal_with_a_damaged_line_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / DECISIONS).write_bytes(b'{"step": 2, "steps": 9}\n' + line.encode("latin-1") + b'\n{"step": 5}\n')
    with pytest.raises(RunError, match=r"decisions\.jsonl line 2 is damaged"):
        Journal(tmp_path)


# --- time ------------------------------------------------------------------------------------------------------------

SPEEDS: dict[str, Callable[[int], float]] = {
    "as measured": lambda n: 0.5,
    "busy at first": lambda n: 2.0 if n < 5 else 0.5,
    "faster than measured": lambda n: 0.1,
    "busy after a third": lambda n: 0.3 if n < 60 else 1.2,
    "quiet after a third": lambda n: 1.2 if n < 17 else 0.3,
    "busy in the decay": lambda n: 0.5 if n < 90 else 1.5,
}


@pytest.mark.parametrize("name", some_of(SPEEDS, ["busy after a third"]))
def test_minutes_are_kept_however_the_speed_changes(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    machine = on(monkeypatch, SPEEDS[name])
    result = train(text, tmp_path / "out", **TINY)
    assert 54 <= machine.now <= 63, f"{result.steps} steps"


@pytest.mark.slow
def test_control_without_decisions_a_busy_machine_takes_longer(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = on(monkeypatch, SPEEDS["busy after a third"])
    monkeypatch.setattr(Keeper, "_decide_steps", lambda *_: None)
    train(text, tmp_path / "out", **TINY)
    assert machine.now > 66


def test_killed_and_resumed_follows_what_was_written_and_keeps_the_sum_of_time(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its repetition from run.json alone, on a machine of another speed, gives the same bits."""
    machine, out = on(monkeypatch, SPEEDS["quiet after a third"]), tmp_path / "out"
    reporter = CutAt(13, 24, 58)
    for _ in range(3):
        with pytest.raises(PowerCut):
            train(text, out, reporter=reporter, **TINY)
        reporter.cuts.discard(reporter.steps[-1])
    result = train(text, out, reporter=reporter, **TINY)
    assert reporter.steps.count(12) == 2, "steps after the last checkpoint were lost"
    assert 54 <= machine.now <= 63
    run = Run.load(out / "run.json")
    assert run.steps == result.steps
    assert list(run.schedule.decisions) == read_decisions(out / DECISIONS) != []
    machine.seconds = lambda n: 7.0
    again = train(text, tmp_path / "again", run=run)
    assert again.steps == result.steps
    assert all(torch.equal(a, b) for a, b in zip(result.model.parameters(), again.model.parameters(), strict=True))
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.slow
def test_unfinished_run_is_repeated_with_what_was_decided_so_far(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, SPEEDS["quiet after a third"])
    with pytest.raises(PowerCut):
        train(text, tmp_path / "out", reporter=CutAt(40), **TINY)
    decided = read_decisions(tmp_path / "out" / DECISIONS)
    run = load_run(tmp_path / "out" / "run.json")
    assert list(run.schedule.decisions) == decided != []
    assert train(text, tmp_path / "again", run=run).steps == Pace(run).steps


def test_number_of_steps_that_is_asked_for_is_never_changed(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, lambda n: 5.0)
    options: dict[str, Any] = {**TINY, "minutes": None, "steps": 12}
    result = train(text, tmp_path / "out", **options)
    assert result.steps == 12
    assert not (tmp_path / "out" / DECISIONS).exists()


# --- threads ---------------------------------------------------------------------------------------------------------


class Cores:
    """Two cores whose counts are what a test says."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch):
        self.path, self.now, self.own, self.others, self.nice = path, 0.0, 0.0, 0.0, 0.0
        monkeypatch.setattr(ByLoad, "stat", path)
        monkeypatch.setattr("pellucid.train.threads._own_cores", lambda: {0, 1})
        monkeypatch.setattr("os.sysconf", lambda _: 100)
        monkeypatch.setattr("os.getpriority", lambda *_: 0)
        times = type("Times", (), {"user": property(lambda _: self.own), "system": 0.0})()
        monkeypatch.setattr("os.times", lambda: times)
        self.pass_time(0)

    def pass_time(self, seconds: float, own: float = 0.0, others: float = 0.0, nice: float = 0.0) -> None:
        self.now += seconds
        self.own += own * seconds
        self.others += others * seconds
        self.nice += nice * seconds
        user, low = round(100 * (self.own + self.others)), round(100 * self.nice)
        lines = [f"cpu  {user} {low} 0 9 0 0 0 0 0 0", f"cpu0 {user} {low} 0 9 0 0 0 0 0 0", "cpu1 0 0 0 9 0 0 0 0 0 0"]
        self.path.write_text("\n".join([*lines, "cpu2 9999999 0 0 0 0 0 0 0 0 0", "intr 1"]))


def test_threads_follow_the_load_that_the_system_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = Cores(tmp_path / "stat", monkeypatch)
    assert ByLoad.can()
    load = ByLoad(2, lambda: cores.now)
    course = [(2, 1.95, 0.05, 0.0), (2, 1.3, 0.7, 0.0), (1, 1.0, 1.0, 0.0), (1, 0.7, 1.3, 0.0), (1, 1.0, 0.1, 0.0)]
    wanted: list[int] = []
    for threads, own, others, nice in course:
        cores.pass_time(1.0, own, others, nice)
        wanted.append(load.wanted(threads, 0.1))
    assert wanted == [2, 1, 1, 1, 2]


def test_programs_that_give_way_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside one that only takes what is left there may be two threads; if it takes more, that is tried less often."""
    cores = Cores(tmp_path / "stat", monkeypatch)
    load, threads, raised = ByLoad(2, lambda: cores.now), 1, list[float]()
    for _ in range(120):
        cores.pass_time(1.0, own=1.0 if threads == 1 else 1.3, nice=1.0 if threads == 1 else 0.7)
        if load.wanted(threads, 0.1) > threads:
            raised.append(cores.now)
        threads = 2 if raised and raised[-1] == cores.now else 1
    assert raised
    gaps = [b - a for a, b in pairwise(raised)]
    assert gaps == sorted(gaps)
    assert gaps[-1] > 2 * gaps[0]


def test_threads_follow_step_times_where_the_load_cannot_be_seen() -> None:
    now, threads, busy = 0.0, 2, False
    by_time = ByStepTime(2, lambda: now)
    course: list[tuple[float, int]] = []
    for _ in range(1200):
        busy = 20 < now < 60
        seconds = {(2, False): 0.1, (1, False): 0.17, (2, True): 0.4, (1, True): 0.19}[threads, busy]
        now += seconds
        threads = by_time.wanted(threads, seconds)
        course.append((now, threads))
    share = [sum(t == 1 for n, t in course if a < n < b) / sum(a < n < b for n, _ in course)
             for a, b in ((0, 20), (25, 60), (100, 130))]  # fmt: skip
    assert share[0] < 0.05
    assert share[1] > 0.8
    assert share[2] < 0.05


def test_every_change_of_threads_is_written_before_it_holds(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    class Alternating:
        def wanted(self, threads: int, seconds: float) -> int:
            return 3 - threads

    on(monkeypatch, lambda n: 0.5)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(pace, "follower", lambda limit: Alternating())
    seen: dict[int, int] = {}
    update = Trainer.update

    def watched(self: Trainer) -> Any:
        written = [d.threads for d in read_decisions(tmp_path / "out" / DECISIONS) if d.threads and d.step <= self.done]
        seen[self.done] = torch.get_num_threads()
        assert torch.get_num_threads() == (written[-1] if written else 2)
        return update(self)

    monkeypatch.setattr(Trainer, "update", watched)
    options: dict[str, Any] = {**TINY, "minutes": 0.2}
    try:
        train(text, tmp_path / "out", **options)
        assert set(seen.values()) == {1, 2}
        assert torch.get_num_threads() == 2, "put back at the end"
    finally:
        torch.set_num_threads(before)
