"""The life of a run: step, validate, save, stop when asked, and go on later as if nothing had happened."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from pellucid.checkpoints.native import save_model
from pellucid.data.feed import Feed
from pellucid.engine.compiling import compilable, eagerly, uncompile
from pellucid.errors import RunError
from pellucid.nn.flops import training_flops
from pellucid.nn.models import AnyModel
from pellucid.train import checkpoint
from pellucid.train.average import means, weights_in
from pellucid.train.config import Run
from pellucid.train.metrics import FINAL, METRICS, TIMINGS, Recorder, Silence, keep_read, read_in_words
from pellucid.train.needs import aids_of
from pellucid.train.pace import Journal, Keeper, Pace, close_run, spent_before
from pellucid.train.precision import measure_peak
from pellucid.train.report import Progress, Reporter
from pellucid.train.schedule import too_short
from pellucid.train.step import StepResult
from pellucid.train.trainer import VALIDATION_BATCHES, Trainer
from pellucid.train.world import ALONE, World

CHECKPOINT_SECONDS, CHECKPOINT_SHARE = 30.0, 0.03  # between checkpoints at least; of the time that writing may take
COUNTING_SECONDS = 1.0  # for counting what is held out
MAX_SKIPS = 20  # non-finite steps in a row that even the policy "skip" does not pass over

Sampler = Callable[[AnyModel], str]  # what a model writes now; "" of one that does not write


class Interrupted(RunError):
    """The run was asked to stop (Ctrl-C, SIGTERM); its state is saved and the same command goes on."""

    exit_code = 75  # EX_TEMPFAIL: schedulers take it as "run me again"


@dataclass(frozen=True)
class Result:
    """model: trained, in eval mode. metrics: the feed's measures of all that was held out, by name; {} without any."""

    model: AnyModel
    metrics: Mapping[str, float]
    steps: int
    seconds: float


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM has come. The first is answered after the current step; the second acts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        for s in before:
            signal.signal(s, signal.default_int_handler)

    for s in before:
        signal.signal(s, ask)
    try:
        yield asked.is_set
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


class _Speed:
    """What seconds a step mean: tokens a second, and the share of the machine's peak."""

    def __init__(self, run: Run, world: World):
        context = run.model.context
        a_row = sum(training_flops(spec, context) for spec in (run.model, *aids_of(run)))
        self.flops = a_row * run.tokens_per_step / context
        self.peak = measure_peak(world.device.type).of(run.runtime.precision) * world.size
        self.per_step = run.tokens_per_step

    def of(self, seconds: float) -> tuple[float, float]:
        """(tokens a second, utilisation)."""
        return self.per_step / seconds, self.flops / seconds / self.peak


class _Life:
    """A trainer in its folder: which step is on the disk, who is told, and whether all are asked to stop.

    Only the first process of a world writes and tells.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: Path,
        recorder: Silence,
        reporter: Reporter,
        asked: Callable[[], bool],
        keeper: Keeper,
    ):
        self.trainer, self.folder, self.recorder, self.reporter = trainer, folder, recorder, reporter
        self.run, self.world, self.saved, self._asked = trainer.run, trainer.world, trainer.done, asked
        self.keeper, self.saved_at = keeper, time.perf_counter()

    def asked_to_stop(self) -> bool:
        """Whether any process is asked to stop."""
        return self.world.any(self._asked())

    def save(self) -> None:
        """A checkpoint after the steps done so far, unless there is a valid one."""
        trainer = self.trainer
        if trainer.done != self.saved:
            start = time.perf_counter()
            if self.world.first:
                self.recorder.sync()
                mean = None if trainer.mean is None else trainer.mean.weights
                keep_read(self.folder, trainer.feed, trainer.done)
                checkpoint.save(
                    self.folder, self.run, trainer.done, trainer.model, trainer.optimizers, trainer.aid, mean
                )
            self.saved = trainer.done
            self.world.barrier()
            self.saved_at = time.perf_counter()
            self.keeper.save_seconds = self.saved_at - start

    def is_due(self) -> bool:
        """Whether it is time for a checkpoint: by steps where they are asked for, else by the time that it costs."""
        every = self.run.keeping.checkpoint_every
        if every is not None:
            return self.trainer.done % every == 0
        pause = max(CHECKPOINT_SECONDS, self.keeper.save_seconds / CHECKPOINT_SHARE)
        return self.world.any(time.perf_counter() - self.saved_at >= pause)

    def refuse_stop(self, after: str, remedy: str) -> None:
        """Raise Interrupted where any process is asked to stop; all is saved by then."""
        if self.asked_to_stop():
            self.save()
            raise Interrupted(f"stopped after {after}; saved", remedy)


def fit(
    run: Run,
    folder: Path,
    feed: Feed,
    *,
    base: AnyModel | None = None,
    reporter: Reporter | None = None,
    sampler: Sampler | None = None,
    tokenizer: object = None,
    world: World = ALONE,
    began: float | None = None,
) -> Result:
    """Train to the end, from wherever the folder's newest checkpoint is; leave a finished model folder.

    base: the model that the run goes on from, if it does; tokenizer: kept with the model. Raises Interrupted when asked
    to stop (saved first), RunError when the loss is not finite and the policy is "stop".
    The caller holds the folder's lock. began: when the caller began, by time.perf_counter: minutes count from there.
    """
    reporter = reporter if reporter is not None and world.first else Reporter()
    started = time.perf_counter()
    found = checkpoint.newest(folder, run, reporter.message)
    trainer = Trainer(run, feed, world, base=base, resume=found)
    if found is not None:
        reporter.message(f"going on from {found.name}")
    trainer.model.tokenizer = tokenizer
    keeper = _keeper(trainer, folder, reporter, started - (started if began is None else began))
    record = Recorder(folder, trainer.done, run.keeping.tensorboard) if world.first else Silence()
    with record as recorder, _stop_requests() as asked:
        life = _Life(trainer, folder, recorder, reporter, asked, keeper)
        reporter.start(run, trainer.done)
        if not trainer.done and (short := too_short(run.steps, run.schedule.warmup)):
            reporter.message(short)
        reporter.reading(lambda: trainer.batches(trainer.done), trainer.model)
        try:
            _steps(life, sampler)
        finally:
            reporter.end()
        life.save()
        final = _final_measures(life)
        for name, weights, what in means(folder, run, trainer.mean):
            final |= _of_mean(life, name, weights, what)
        if final:
            recorder.write(METRICS, trainer.done, **{FINAL + name: value for name, value in final.items()})
        recorder.sync()
        for line in read_in_words(feed, trainer.done):
            reporter.message(line)
    uncompile(compilable(trainer.model.eval()))
    if world.first:
        close_run(run, trainer.pace, folder)
        save_model(trainer.model, folder)
    world.barrier()
    torch.set_num_threads(run.runtime.threads)
    return Result(trainer.model, final, trainer.done, time.perf_counter() - started)


def _keeper(trainer: Trainer, folder: Path, reporter: Reporter, preparing: float) -> Keeper:
    """Who decides how many steps there are: nobody, for a run of several processes, or one that is repeated."""
    run, world = trainer.run, trainer.world
    is_open = run.schedule.minutes is not None or run.runtime.follow_load is True
    if not is_open or world.size > 1:
        return Keeper(trainer.pace, None)
    journal = Journal(folder)
    trainer.pace = Pace(run, journal.decisions)
    spent = spent_before(folder)
    if run.schedule.minutes is not None and preparing > (most := max(0.0, run.schedule.minutes * 60 - spent) / 2):
        reporter.message(f"the text took {preparing:.0f} s to prepare; {most:.0f} s are left for training")
        preparing = most
    keeper = Keeper(trainer.pace, journal, spent + preparing)
    until = time.perf_counter() + COUNTING_SECONDS
    for _ in trainer.held_out():
        keeper.final_batches += 1
        if time.perf_counter() > until:  # there are so many that the end will not measure all
            break
    return keeper


def _final_measures(life: _Life) -> dict[str, float]:
    trainer = life.trainer
    if (most := life.keeper.decide_end(trainer.done)) is not None:
        life.reporter.message(f"the first {most:,} held-out batches are measured: there is no time for more")
    return trainer.validate_all(lambda: life.refuse_stop("the last step", "run the same command again to finish"), most)


def _of_mean(life: _Life, name: str, weights: Mapping[str, Tensor], what: str) -> dict[str, float]:
    """Measures of the model with these weights, which is saved in a folder of its own."""
    life.reporter.message(f"{what} is measured, and saved in {life.folder / name}")
    with weights_in(life.trainer.model, weights):
        final = _final_measures(life)
        if life.world.first:
            save_model(life.trainer.model, life.folder / name, weights=f"{what}, after step {life.trainer.done}")
    return {f"{name}_{measure}": value for measure, value in final.items()}


def _steps(life: _Life, sampler: Sampler | None) -> None:
    trainer, recorder, reporter, run = life.trainer, life.recorder, life.reporter, life.run
    speed_of, skipped, keeper, pace = _Speed(run, life.world).of, 0, life.keeper, trainer.pace
    while trainer.done < pace.steps:
        keeper.before(trainer.done)
        result, rate = trainer.update()
        seconds = keeper.after()
        done = trainer.done
        recorder.write(METRICS, done, loss=result.loss, grad_norm=result.grad_norm, learning_rate=rate)
        speed, used = speed_of(seconds)
        clocked = {"tokens_per_second": round(speed), "utilisation": round(used, 4), "threads": pace.threads(done - 1)}
        recorder.write(TIMINGS, done, **clocked, elapsed=round(keeper.elapsed, 3))
        left = keeper.left(done)
        reporter.progress(Progress(done, pace.steps, result.loss, result.grad_norm, rate, speed, used, left))
        skipped = 0 if result.finite else skipped + 1
        if not result.finite:
            _refuse_nonfinite(life, result, skipped)
        if done < pace.steps:
            _measure_and_show(life, sampler)
        if life.is_due():
            life.save()
        life.refuse_stop(f"step {done} of {pace.steps}", "run the same command again to go on")


def _measure_and_show(life: _Life, sampler: Sampler | None) -> None:
    trainer, pace, done = life.trainer, life.trainer.pace, life.trainer.done
    if pace.passes(done, "validate_every"):
        start = time.perf_counter()
        if measures := trainer.validate():
            life.keeper.batch_seconds = (time.perf_counter() - start) / VALIDATION_BATCHES
            life.recorder.write(METRICS, done, **measures)
            life.reporter.validated(done, measures)
    if sampler is not None and life.world.first and pace.passes(done, "sample_every"):
        with eagerly():
            written = sampler(trainer.model)
        if written:
            life.reporter.sample(done, written)


def _refuse_nonfinite(life: _Life, result: StepResult, skipped: int) -> None:
    """Stop by policy. The step updated nothing and its batch is saved; under "skip" the run goes on to the next one."""
    policy, index = life.run.keeping.on_nonfinite, life.trainer.done - 1
    what = f"step {index}: loss {json.dumps(result.loss)}, gradient norm {json.dumps(result.grad_norm)}"
    saved = life.folder / f"nonfinite-{index:08d}.safetensors"
    if life.world.first:
        life.trainer.save_for_replay(index, saved)
    if policy == "skip" and skipped < MAX_SKIPS:
        life.reporter.message(f"{what}: skipped; batch and weights are in {saved}")
        return
    life.recorder.sync()
    go_on = ", or go on with --on-nonfinite skip" if policy == "stop" else ""
    raise RunError(
        f"{what} is not finite; batch and weights are in {saved}",
        "start anew with a lower --learning-rate and --matrix-learning-rate" + go_on,
    )
