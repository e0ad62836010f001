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

from pellucid.checkpoints.native import save_model
from pellucid.data.feed import Feed
from pellucid.engine.compiling import compilable, eagerly, uncompile
from pellucid.errors import RunError
from pellucid.nn.flops import training_flops
from pellucid.nn.models import AnyModel
from pellucid.train import checkpoint
from pellucid.train.config import Run
from pellucid.train.metrics import FINAL, METRICS, TIMINGS, Recorder, Silence
from pellucid.train.precision import measure_peak
from pellucid.train.report import Progress, Reporter
from pellucid.train.step import StepResult
from pellucid.train.trainer import Trainer
from pellucid.train.world import ALONE, World

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


class _Clock:
    """Seconds a step, smoothed over the last few, and what follows from them."""

    def __init__(self, run: Run, world: World):
        context = run.model.context
        self.flops = training_flops(run.model, context) * run.tokens_per_step / context
        self.peak = measure_peak(world.device.type).of(run.runtime.precision) * world.size
        self.per_step = run.tokens_per_step
        self.mean: float | None = None
        self.last = time.perf_counter()

    def tick(self) -> float:
        """Seconds a step, smoothed; call it right after one. ``restart`` leaves out what is not a step."""
        seconds = time.perf_counter() - self.last
        self.mean = seconds if self.mean is None else 0.9 * self.mean + 0.1 * seconds
        self.restart()
        return self.mean

    def restart(self) -> None:
        self.last = time.perf_counter()


class _Life:
    """A trainer in its folder: which step is on the disk, who is told, and whether all are asked to stop.

    Only the first process of a world writes and tells.
    """

    def __init__(
        self, trainer: Trainer, folder: Path, recorder: Silence, reporter: Reporter, asked: Callable[[], bool]
    ):
        self.trainer, self.folder, self.recorder, self.reporter = trainer, folder, recorder, reporter
        self.run, self.world, self.saved, self._asked = trainer.run, trainer.world, trainer.done, asked

    def asked_to_stop(self) -> bool:
        """Whether any process is asked to stop."""
        return self.world.any(self._asked())

    def save(self) -> None:
        """A checkpoint after the steps done so far, unless there is a valid one."""
        trainer = self.trainer
        if trainer.done != self.saved:
            if self.world.first:
                self.recorder.sync()
                checkpoint.save(self.folder, self.run, trainer.done, trainer.model, trainer.optimizers)
            self.saved = trainer.done
            self.world.barrier()

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
) -> Result:
    """Train to the end, from wherever the folder's newest checkpoint is; leave a finished model folder.

    base: the model that the run goes on from, if it does; tokenizer: kept with the model. Raises Interrupted when asked
    to stop (saved first), RunError when the loss is not finite and the policy is "stop".
    The caller holds the folder's lock.
    """
    reporter = reporter if reporter is not None and world.first else Reporter()
    started = time.perf_counter()
    found = checkpoint.newest(folder, run, reporter.message)
    trainer = Trainer(run, feed, world, base=base, resume=found)
    if found is not None:
        reporter.message(f"going on from {found.name}")
    trainer.model.tokenizer = tokenizer
    record = Recorder(folder, trainer.done, run.keeping.tensorboard) if world.first else Silence()
    with record as recorder, _stop_requests() as asked:
        life = _Life(trainer, folder, recorder, reporter, asked)
        reporter.start(run, trainer.done)
        try:
            _steps(life, sampler)
        finally:
            reporter.end()
        life.save()
        final = trainer.validate_all(lambda: life.refuse_stop("the last step", "run the same command again to finish"))
        if final:
            recorder.write(METRICS, run.steps, **{FINAL + name: value for name, value in final.items()})
        recorder.sync()
    uncompile(compilable(trainer.model.eval()))
    if world.first:
        save_model(trainer.model, folder)
    world.barrier()
    return Result(trainer.model, final, run.steps, time.perf_counter() - started)


def _steps(life: _Life, sampler: Sampler | None) -> None:
    trainer, recorder, reporter, run = life.trainer, life.recorder, life.reporter, life.run
    clock, skipped = _Clock(run, life.world), 0
    while trainer.done < run.steps:
        result, rate = trainer.update()
        seconds = clock.tick()
        done = trainer.done
        recorder.write(METRICS, done, loss=result.loss, grad_norm=result.grad_norm, learning_rate=rate)
        speed, used = clock.per_step / seconds, clock.flops / seconds / clock.peak
        recorder.write(TIMINGS, done, tokens_per_second=round(speed), utilisation=round(used, 4))
        left = (run.steps - done) * seconds
        reporter.progress(Progress(done, run.steps, result.loss, result.grad_norm, rate, speed, used, left))
        skipped = 0 if result.finite else skipped + 1
        if not result.finite:
            _refuse_nonfinite(life, result, skipped)
        if done % run.keeping.validate_every == 0 and done < run.steps and (measures := trainer.validate()):
            recorder.write(METRICS, done, **measures)
            reporter.validated(done, measures)
        every = run.keeping.sample_every
        if sampler is not None and life.world.first and every and done % every == 0 and done < run.steps:
            with eagerly():
                written = sampler(trainer.model)
            if written:
                reporter.sample(done, written)
        if done % run.keeping.checkpoint_every == 0:
            life.save()
        life.refuse_stop(f"step {done} of {run.steps}", "run the same command again to go on")
        clock.restart()


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
