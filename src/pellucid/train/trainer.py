"""Everything that a step of a run needs, and the step itself: what is measured is what trains."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import torch

from pellucid.batch import Batch
from pellucid.checkpoints.native import load_model
from pellucid.checkpoints.tensors import load_tensors, save_tensors
from pellucid.data.feed import Feed
from pellucid.engine.compiling import eagerly
from pellucid.engine.modes import evaluating
from pellucid.nn.models import AnyModel
from pellucid.train import checkpoint
from pellucid.train.aids import ReplacedTokens
from pellucid.train.average import MovingAverage
from pellucid.train.config import Run
from pellucid.train.objectives import aid_for, objective_for
from pellucid.train.optim import build_optimizers, set_rate
from pellucid.train.pace import Pace
from pellucid.train.parts import TextSpec
from pellucid.train.precision import autocast
from pellucid.train.start import set_dropout, starting_model
from pellucid.train.step import StepResult, step
from pellucid.train.validate import held_out_sums
from pellucid.train.world import ALONE, World

VALIDATION_BATCHES = 16  # at most, during training; the end measures all of them


class Trainer:
    """The model, the optimisers and the feed of a run, after ``done`` steps of it.

    It knows no folder but those it is given: whoever holds one (``loop``) says when to save.
    """

    def __init__(
        self, run: Run, feed: Feed, world: World = ALONE, *, base: AnyModel | None = None, resume: Path | None = None
    ):
        """Everything is as before the first step, or as the checkpoint ``resume`` left it.

        base: the model that ``run.start.init_from`` names, where the run has not gone on from it yet; it is trained.
        """
        if resume is not None:
            base = load_model(resume)
        self.run, self.feed, self.world = run, feed, world
        self.pace = Pace(run)
        self.model = starting_model(run, base).to(world.device)
        asked = run.optimiser
        self.aid = aid_for(self.model, run.objective, run.start.init, run.seed + 1)
        if self.aid is not None:
            set_dropout(self.aid.to(world.device).train(), run.objective.dropout)
        self.trained = checkpoint.with_aid(self.model, self.aid)
        self.optimizers = build_optimizers(
            self.trained,
            asked.name,
            learning_rate=asked.learning_rate,
            matrix_learning_rate=asked.matrix_learning_rate,
            weight_decay=asked.weight_decay,
            betas=(asked.beta1, asked.beta2),
            eps=asked.eps,
        )
        self.objective = objective_for(self.model, run.objective, self.aid)
        self.autocast = autocast(run.runtime.precision, world.device.type)
        decay = run.keeping.ema
        self.mean = None if decay is None else MovingAverage(self.model, decay)
        self.done = 0
        if resume is not None:
            checkpoint.load_state(resume, self.model, self.optimizers, self.aid)
            if self.mean is not None:
                self.mean.load(load_tensors(resume / checkpoint.MEAN)[0], resume / checkpoint.MEAN)
            self.done = checkpoint.step_of(resume)

    def batches(self, index: int) -> list[Batch]:
        """What this process reads in step ``index``."""
        batches = self.feed.batches(index, self.run.runtime.micro_batches, self.world)
        if self.run.runtime.compile:
            batches = [batch.with_segments() for batch in batches]
        return [batch.to(self.world.device) for batch in batches]

    def update(self) -> tuple[StepResult, float]:
        """The next step; its result, and AdamW's learning rate. Everything random in it depends on (seed, step) only,
        and on the process: dropout differs between them."""
        run, index = self.run, self.done
        torch.manual_seed(run.seed * 1_000_003 + index + (self.world.rank << 53))
        rate = self.pace.factor(index)
        set_rate(self.optimizers, rate)
        batches = self.batches(index)
        if index == 0:
            batches[0].refuse_unshifted()
        result = step(
            self.model,
            self.optimizers,
            self.objective,
            batches,
            clip=run.optimiser.clip,
            autocast=self.autocast,
            world=self.world,
            trained=self.trained,
        )
        self.done += 1
        if self.mean is not None and result.finite:
            self.mean.update(self.done)
        return result, rate * run.optimiser.learning_rate

    def measure(self, repeats: int = 4) -> float:
        """Median seconds of the next ``repeats`` updates, after one that is not counted.

        These are updates like all others, and change the model: measure with a trainer that is then thrown away.
        """
        times: list[float] = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            self.update()
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    def save_for_replay(self, index: int, path: Path) -> None:
        """Write the batches of step ``index`` and the weights before it, which a loss that is not finite left alone."""
        tensors = {}
        for i, batch in enumerate(self.batches(index)):
            parts = {"ids": batch.ids, "labels": batch.labels, "pos": batch.tokens.pos, "seg": batch.tokens.segments}
            if batch.source is not None:
                parts |= {"source.ids": batch.source.ids, "source.pos": batch.source.tokens.pos}
            tensors |= {f"{i}.{name}": tensor for name, tensor in parts.items()}
        tensors |= {f"weights.{name}": tensor for name, tensor in self.model.state_dict().items()}
        save_tensors(path, tensors)

    def validate(self) -> dict[str, float]:
        """The feed's measures of some held-out batches, spread evenly over all; empty where nothing is held out."""
        return self._measures(itertools.islice(self.feed.evaluation(), None, None, self._spacing))

    @cached_property
    def _spacing(self) -> int:
        """Every so-manyth held-out batch is measured during training, so that documents of all kinds are among them."""
        return max(1, -(-sum(1 for _ in self.feed.evaluation()) // VALIDATION_BATCHES))

    def held_out(self) -> Iterator[Batch]:
        """All that is held out, with at least half a context before each token of a long text."""
        spec = self.run.feed
        return self.feed.evaluation(max(1, spec.context // 2) if isinstance(spec, TextSpec) else None)

    def validate_all(self, before_each: Callable[[], None] = lambda: None, most: int | None = None) -> dict[str, float]:
        """The feed's measures of all that is held out, or of the first ``most`` batches.

        before_each: called before each batch, the same number of times on every process; it may raise.
        """

        def batches() -> Iterator[Batch]:
            for batch in itertools.islice(self.held_out(), most):
                before_each()
                yield batch

        return self._measures(batches())

    def _measures(self, batches: Iterable[Batch]) -> dict[str, float]:
        measured = self.objective.measured if isinstance(self.objective, ReplacedTokens) else None
        with eagerly(), nullcontext() if self.aid is None else evaluating(self.aid):
            return self.feed.score(held_out_sums(self.model, batches, self.autocast, self.world, measured))
