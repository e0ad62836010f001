"""A run with every number fixed, from what is asked of it: sizes are derived first, steps once a step was measured."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from pellucid.data.feed import Feed
from pellucid.data.pairs import PairedText
from pellucid.errors import UsageError
from pellucid.spec import ModelSpec
from pellucid.train.config import Run, TrainOptions
from pellucid.train.derive import Known, Numbers
from pellucid.train.feeds import PreparedPairs, open_feed
from pellucid.train.needs import refuse_too_large
from pellucid.train.parts import FeedSpec, Keeping, Schedule, TextSpec
from pellucid.train.start import Base
from pellucid.train.trainer import Trainer
from pellucid.train.world import ALONE, World


def resolve(
    texts: tuple[str, ...],
    options: TrainOptions,
    prepared: Known,
    base: Base | None = None,
    world: World = ALONE,
    *,
    spec: ModelSpec | None = None,
) -> tuple[Run, Feed]:
    """Fix every number of a run that learns from texts; its feed beside it. base: the model that it goes on from.
    spec: the model's, where it is settled: that of ``base``, or one of a person's own.

    With ``minutes``, the number of steps is measured on this machine: the one number that another machine would choose
    differently, besides the size and precision that follow from its speed. Raises DataError for a text shorter than a
    context, UsageError or SpecError for sizes that do not fit together.
    """
    spec = spec if base is None else base.model.spec
    numbers = Numbers(options, prepared, spec, gently=base is not None)
    runtime = numbers.runtime()
    _ = numbers.context
    numbers.note_sizes()
    tokenizer, known = prepared.tokenizer.hash, dict[str, Any]()
    if isinstance(prepared, PreparedPairs):
        known["batch_tokens"] = numbers.batch_tokens
    texts_spec = numbers.part(TextSpec, hash="", tokens_per_step=1, texts=texts, tokenizer=tokenizer, **known)
    if texts_spec.batch_size < runtime.micro_batches:
        raise UsageError(
            f"batch_size = {texts_spec.batch_size} cannot be split into {runtime.micro_batches} micro-batches",
            f"choose --micro-batches from 1 to {texts_spec.batch_size}, or a larger --batch-size",
        )
    run = numbers.run(texts_spec, runtime, base)
    feed = open_feed(run, prepared)
    run = replace(run, feed=replace(texts_spec, hash=feed.hash, tokens_per_step=feed.tokens_per_step))
    if isinstance(feed, PairedText):
        numbers.note("padding", f"{feed.padding():.1%}", "of the places that the steps of an epoch compute")
    run = _measured(numbers, run, feed, base, world)
    each = run.steps * run.tokens_per_step / prepared.training.n_tokens
    numbers.note("tokens", run.steps * run.tokens_per_step, f"{each:.2g} times the text")
    return replace(run, reasons=(*prepared.reasons, *numbers.reasons)), feed


def resolve_feed(
    feed: Feed, model: ModelSpec, options: TrainOptions, base: Base | None = None, world: World = ALONE
) -> Run:
    """Fix every number of a run of a known model that learns from a feed which the caller made."""
    numbers = Numbers(options, None, model, gently=base is not None)
    spec = FeedSpec(hash=feed.hash, tokens_per_step=feed.tokens_per_step)
    run = _measured(numbers, numbers.run(spec, numbers.runtime(), base), feed, base, world)
    return replace(run, reasons=tuple(numbers.reasons))


def _measured(numbers: Numbers, run: Run, feed: Feed, base: Base | None, world: World) -> Run:
    """The run with what follows from the time of a step, measured by a trainer of this very run that is thrown away.

    Raises TooLargeError, before anything is allocated, where a step would not fit into memory.
    """
    refuse_too_large(run, world)
    trainer = Trainer(run, feed, World(world.device), base=None if base is None else copy.deepcopy(base.model))
    numbers.seconds = trainer.measure() / world.size
    return replace(run, schedule=numbers.part(Schedule, minutes=numbers.minutes), keeping=numbers.part(Keeping))
