"""The life of a run: step, validate, save, stop when asked, and go on later as if nothing had happened."""

from __future__ import annotations

import itertools
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from pellucid.batch import Batch
from pellucid.checkpoints.native import save_model
from pellucid.checkpoints.tensors import save_tensors
from pellucid.data.packing import Packed, evaluation
from pellucid.data.store import TokenStore
from pellucid.engine.compiling import compilable, compile_each, eagerly, uncompile
from pellucid.errors import RunError
from pellucid.nn.embed import Embedding
from pellucid.nn.flops import training_flops
from pellucid.nn.init import initialise
from pellucid.nn.models import Decoder
from pellucid.nn.residual import Sublayer
from pellucid.train import checkpoint
from pellucid.train.config import Run
from pellucid.train.metrics import FINAL, METRICS, TIMINGS, Recorder
from pellucid.train.objectives import objective_for
from pellucid.train.optim import build_optimizers, set_rate
from pellucid.train.precision import autocast, measure_peak
from pellucid.train.report import Progress, Reporter
from pellucid.train.schedule import factor
from pellucid.train.step import StepResult, step
from pellucid.train.validate import bits_per_byte

VALIDATION_BATCHES = 16  # of the run's batch size, during training; the end measures all of it
MAX_SKIPS = 20  # non-finite steps in a row that even the policy "skip" does not pass over

Sampler = Callable[[Decoder], str]


class Interrupted(RunError):
    """The run was asked to stop (Ctrl-C, SIGTERM); its state is saved and the same command goes on."""

    exit_code = 75  # EX_TEMPFAIL: schedulers take it as "run me again"


@dataclass(frozen=True)
class Result:
    """model: trained, in eval mode. bits_per_byte: on the whole held-out text (nan without one)."""

    model: Decoder
    bits_per_byte: float
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


def build_model(run: Run) -> Decoder:
    """The model as it is before the first step: weights by (rule, seed), dropout set, blocks compiled if asked."""
    model = initialise(Decoder(run.spec), run.init, run.seed)
    for module in model.modules():
        if isinstance(module, Sublayer | Embedding):
            module.dropout = run.dropout
    if run.compile:
        compile_each(compilable(model))
    return model.train()


class Trainer:
    """One run in one folder: everything that a step needs, put back where the newest checkpoint left it."""

    def __init__(self, run: Run, folder: Path, training: TokenStore, validation: TokenStore | None, reporter: Reporter):
        self.run, self.folder, self.reporter = run, folder, reporter
        self.validation = validation
        self.data = Packed(training, run.spec.context, run.seed)
        self.model = build_model(run)
        self.optimizers = build_optimizers(
            self.model,
            run.optimizer,
            learning_rate=run.learning_rate,
            matrix_learning_rate=run.matrix_learning_rate,
            weight_decay=run.weight_decay,
        )
        self.objective = objective_for(self.model, run.load_balance, run.router_z)
        self.autocast = autocast(run.precision)
        self.done = self.saved = 0
        found = checkpoint.newest(folder, run, reporter.message)
        if found is not None:
            path, self.done = found
            self.saved = self.done
            checkpoint.load(path, self.model, self.optimizers)
            reporter.message(f"going on from {path.name}")

    def update(self) -> tuple[StepResult, float]:
        """The next step. Everything random in it depends on (seed, step) only."""
        run, index = self.run, self.done
        torch.manual_seed(run.seed * 1_000_003 + index)
        rate = factor(run.schedule, index, run.steps, run.warmup)
        set_rate(self.optimizers, rate)
        batches = self.data.batches(index, run.batch_size, run.micro_batches)
        if run.compile:
            batches = [batch.with_segments() for batch in batches]
        if index == 0:
            batches[0].refuse_unshifted()
        result = step(self.model, self.optimizers, self.objective, batches, clip=run.clip, autocast=self.autocast)
        self.done += 1
        if not result.finite:
            self._save_for_replay(index, batches)
        return result, rate * run.learning_rate

    def _save_for_replay(self, index: int, batches: list[Batch]) -> None:
        tensors = {}
        for i, batch in enumerate(batches):
            parts = {"ids": batch.ids, "labels": batch.labels, "pos": batch.tokens.pos, "seg": batch.tokens.segments}
            tensors |= {f"{i}.{name}": tensor for name, tensor in parts.items()}
        tensors |= {f"weights.{name}": tensor for name, tensor in self.model.state_dict().items()}
        save_tensors(self.folder / f"nonfinite-{index:08d}.safetensors", tensors)

    def validate(self) -> float:
        """Bits per byte of the beginning of the held-out text (nan without one)."""
        return self._measure(itertools.islice(self._held_out(), VALIDATION_BATCHES))

    def validate_all(self, asked_to_stop: Callable[[], bool]) -> float:
        """Bits per byte of all held-out text, at least half a context before each token (nan without one)."""

        def batches() -> Iterator[Batch]:
            for batch in self._held_out(stride=max(1, self.run.spec.context // 2)):
                if asked_to_stop():
                    raise Interrupted("stopped after the last step; saved", "run the same command again to finish")
                yield batch

        return self._measure(batches())

    def _held_out(self, stride: int | None = None) -> Iterator[Batch]:
        rows = max(1, self.run.batch_size // self.run.micro_batches)
        return iter(()) if self.validation is None else evaluation(self.validation, self.run.spec.context, rows, stride)

    def _measure(self, batches: Iterator[Batch]) -> float:
        with eagerly():
            return bits_per_byte(self.model, batches, self.autocast)

    def save(self, recorder: Recorder) -> None:
        """A checkpoint after the steps done so far, unless there is a valid one."""
        if self.done != self.saved:
            recorder.sync()
            checkpoint.save(self.folder, self.run, self.done, self.model, self.optimizers)
            self.saved = self.done


class _Clock:
    """Tokens a second over the last few seconds, utilisation and time left."""

    def __init__(self, run: Run):
        self.flops = training_flops(run.spec, run.spec.context) * run.batch_size
        self.peak = measure_peak().of(run.precision)
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


def fit(
    run: Run,
    folder: Path,
    training: TokenStore,
    validation: TokenStore | None = None,
    *,
    reporter: Reporter | None = None,
    sampler: Sampler | None = None,
    tokenizer: object = None,
) -> Result:
    """Train to the end, from wherever the folder's newest checkpoint is; leave a finished model folder.

    Raises Interrupted when asked to stop (saved first), RunError when the loss is not finite and the policy is "stop".
    The caller holds the folder's lock.
    """
    reporter = reporter or Reporter()
    started = time.perf_counter()
    trainer = Trainer(run, folder, training, validation, reporter)
    trainer.model.tokenizer = tokenizer
    with Recorder(folder, trainer.done, run.options.tensorboard) as recorder, _stop_requests() as asked_to_stop:
        reporter.start(run, trainer.done)
        try:
            _steps(trainer, recorder, reporter, sampler, asked_to_stop)
        finally:
            reporter.end()
        trainer.save(recorder)
        final = trainer.validate_all(asked_to_stop)
        if not math.isnan(final):
            recorder.write(METRICS, run.steps, **{FINAL: final})
        recorder.sync()
    uncompile(compilable(trainer.model.eval()))
    save_model(trainer.model, folder)
    return Result(trainer.model, final, run.steps, time.perf_counter() - started)


def _steps(
    trainer: Trainer, recorder: Recorder, reporter: Reporter, sampler: Sampler | None, asked_to_stop: Callable[[], bool]
) -> None:
    run, clock, skipped = trainer.run, _Clock(trainer.run), 0
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
            _refuse_nonfinite(trainer, recorder, result, skipped)
        if done % run.validate_every == 0 and done < run.steps and trainer.validation is not None:
            value = trainer.validate()
            recorder.write(METRICS, done, bits_per_byte=value)
            reporter.validated(done, value)
        if sampler is not None and run.sample_every and (done % run.sample_every == 0) and done < run.steps:
            with eagerly():
                reporter.sample(done, sampler(trainer.model))
        if done % run.checkpoint_every == 0:
            trainer.save(recorder)
        if asked_to_stop():
            trainer.save(recorder)
            raise Interrupted(f"stopped after step {done} of {run.steps}; saved", "run the same command again to go on")
        clock.restart()


def _refuse_nonfinite(trainer: Trainer, recorder: Recorder, result: StepResult, skipped: int) -> None:
    """Stop by policy. The step updated nothing and its batch is saved; under "skip" the run goes on to the next one."""
    index = trainer.done - 1
    what = f"step {index}: loss {json.dumps(result.loss)}, gradient norm {json.dumps(result.grad_norm)}"
    saved = trainer.folder / f"nonfinite-{index:08d}.safetensors"
    if trainer.run.on_nonfinite == "skip" and skipped < MAX_SKIPS:
        trainer.reporter.message(f"{what}: skipped; batch and weights are in {saved}")
        return
    recorder.sync()
    go_on = ", or go on with --on-nonfinite skip" if trainer.run.on_nonfinite == "stop" else ""
    raise RunError(
        f"{what} is not finite; batch and weights are in {saved}",
        "start anew with a lower --learning-rate and --matrix-learning-rate" + go_on,
    )
