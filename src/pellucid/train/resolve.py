"""Where every number of a run comes from: asked for, or derived from the text's size, the time and this machine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any, Generic, TypeVar, overload

import torch

from pellucid.data.feed import Feed
from pellucid.designs import design, width
from pellucid.engine.compiling import compiler_here
from pellucid.errors import UsageError
from pellucid.nn.flops import count_parameters, training_flops
from pellucid.spec import EncoderDecoderSpec, InitRule, ModelSpec
from pellucid.train.config import (
    Keeping,
    ObjectiveName,
    ObjectiveSpec,
    Optimiser,
    PrecisionName,
    Reason,
    Run,
    Runtime,
    Schedule,
    Start,
    TextSpec,
    TrainOptions,
)
from pellucid.train.feeds import open_feed
from pellucid.train.optim import default_eps
from pellucid.train.options import declared
from pellucid.train.precision import measure_peak
from pellucid.train.prepare import Prepared
from pellucid.train.trainer import Trainer
from pellucid.train.world import ALONE, World
from pellucid.values import Value

DEFAULT_MINUTES = 5.0
TOKENS_PER_PARAMETER = 2.5  # of the blocks: brief training with Muon wants far fewer than Hoffmann et al.'s 20
MAX_EPOCHS = 8.0  # of the text that a size is planned for: further repetition teaches little (Muennighoff et al. 2023)
ASSUMED_UTILISATION = 0.25  # of the measured peak, for planning the size; the number of steps is then measured
MAX_DEPTH = 32

T = TypeVar("T", bound=object)
P = TypeVar("P", bound=Value)


class derived(Generic[T]):  # noqa: N801 - it is used like property
    """An open number of a run: the method of its name gives (value, why), unless it was asked for. Read once."""

    def __init__(self, derive: Callable[[Any], tuple[T, str]]):
        self.derive, self.name = derive, derive.__name__

    @overload
    def __get__(self, numbers: None, owner: object) -> derived[T]: ...
    @overload
    def __get__(self, numbers: Numbers, owner: object) -> T: ...
    def __get__(self, numbers: Numbers | None, owner: object) -> derived[T] | T:
        if numbers is None:
            return self
        asked = getattr(numbers.asked, self.name)
        value, why = self.derive(numbers) if asked is None else (asked, "asked for")
        numbers.note(self.name, value, why)
        numbers.__dict__[self.name] = value  # found before this descriptor from now on
        return value


def attends(spec: ModelSpec) -> bool:
    """Whether the model's first mixer has heads: a recurrence has none."""
    stack = spec.decoder.stack if isinstance(spec, EncoderDecoderSpec) else spec.stack
    return hasattr(stack.blocks[0].mixer, "head_dim")


class Numbers:
    """Every open number of a run, by the name of its option, and the reason of each that was read."""

    def __init__(self, asked: TrainOptions, prepared: Prepared, seconds_per_step: float | None = None):
        self.asked, self.prepared, self.seconds = asked, prepared, seconds_per_step
        self.reasons: list[Reason] = []
        self.minutes = DEFAULT_MINUTES if asked.minutes is None and asked.steps is None else asked.minutes

    def note(self, field: str, value: object, why: str) -> None:
        """Keep the reason of a number."""
        forms: dict[type, str] = {int: ",", float: "g"}
        self.reasons.append(Reason(field, format(value, forms.get(type(value), "")), why))

    # --- sizes

    @derived
    def precision(self) -> tuple[PrecisionName, str]:
        peak = measure_peak()
        return peak.faster, f"measured here: fp32 {peak.fp32 / 1e9:.0f}, bf16 {peak.bf16 / 1e9:.0f} GFLOP/s"

    @derived
    def context(self) -> tuple[int, str]:
        n_tokens = self.prepared.training.n_tokens
        longest = 256 if (self.minutes or 0) < 20 else 512
        while longest > 32 and n_tokens < 8 * longest:
            longest //= 2
        return longest, "longer for more text and time"

    @derived
    def design(self) -> tuple[str, str]:
        return "modern", "the default"

    @cached_property
    def _budget(self) -> float:
        """FLOPs that the time allows."""
        return (self.minutes or math.inf) * 60 * measure_peak().of(self.precision) * ASSUMED_UTILISATION

    @cached_property
    def _rows(self) -> int:
        """Rows of a step where the number of steps is asked for."""
        return self.asked.batch_size or max(1, 4096 // self.context)

    @cached_property
    def _tokens(self) -> float:
        """Tokens that are worth planning for, whatever the time."""
        asked = math.inf if self.asked.steps is None else float(self.asked.steps * self._rows * self.context)
        return min(MAX_EPOCHS * self.prepared.training.n_tokens, asked)

    def _spec(self, depth: int) -> ModelSpec:
        d_model = self.asked.d_model or width(depth)
        head_dim = self.asked.head_dim or math.gcd(d_model, 64)
        return design(self.design)(self.prepared.tokenizer.vocab_size, self.context, depth, d_model, head_dim)

    def _affordable(self, spec: ModelSpec) -> float:
        """Tokens that a model can be trained on in the time."""
        return min(self._tokens, self._budget * self.context / training_flops(spec, self.context))

    @derived
    def depth(self) -> tuple[int, str]:
        best = 2
        for depth in range(2, MAX_DEPTH + 1):
            spec = self._spec(depth)
            parameters = count_parameters(spec)
            if self._affordable(spec) < TOKENS_PER_PARAMETER * (parameters.mixers + parameters.ffn):
                break
            best = depth
        why = f"the deepest that sees {TOKENS_PER_PARAMETER:g} tokens a block parameter in the time and text there is"
        return best, why

    @derived
    def d_model(self) -> tuple[int, str]:
        return self.model.d_model, "64 for each layer above two"

    @derived
    def head_dim(self) -> tuple[int, str]:
        return math.gcd(self.d_model, 64), "greatest common divisor of the width and 64"

    @cached_property
    def model(self) -> ModelSpec:
        return self._spec(self.depth)

    def note_sizes(self) -> None:
        """Read the sizes of the model, in the order in which people ask for them."""
        _ = self.depth, self.d_model
        if attends(self.model):
            _ = self.head_dim
        parameters = count_parameters(self.model)
        self.note("parameters", parameters.total, f"{parameters.mixers + parameters.ffn:,} of them in the blocks")

    @derived
    def batch_size(self) -> tuple[int, str]:
        tokens = self._affordable(self.model)
        fitting = max(1, 2 ** round(math.log2(math.sqrt(tokens) * 1.25)) // self.context)
        fitting = max(self.asked.micro_batches, self._rows if self.asked.steps else fitting)
        return fitting, f"rows; {fitting * self.context:,} tokens a step"

    # --- how it learns

    @derived
    def learning_rate(self) -> tuple[float, str]:
        peak = 0.03 if self.asked.optimizer == "muon" else 0.004
        return peak * math.sqrt(128 / self.model.d_model), "of AdamW, at the peak; lower for wider models"

    @derived
    def matrix_learning_rate(self) -> tuple[float, str]:
        return 0.02, "of Muon, at the peak"

    @derived
    def weight_decay(self) -> tuple[float, str]:
        return 0.05, "on matrices only"

    @derived
    def eps(self) -> tuple[float, str]:
        return default_eps(self.asked.optimizer), f"goes with {self.asked.optimizer}"

    @derived
    def init(self) -> tuple[InitRule, str]:
        return "fan_in" if self.asked.optimizer == "muon" else "normal", f"goes with {self.asked.optimizer}"

    @derived
    def objective(self) -> tuple[ObjectiveName, str]:
        return "causal", "fits a decoder"

    # --- how long: once a step was measured

    @derived
    def steps(self) -> tuple[int, str]:
        assert self.minutes is not None and self.seconds is not None  # else they are asked for
        wanted = max(10, round(self.minutes * 60 / self.seconds))
        return wanted, f"{self.minutes:g} minutes at {self.seconds:.3f} s a step, measured here"

    @derived
    def warmup(self) -> tuple[int, str]:
        return min(100, max(1, self.steps // 20)), "a twentieth of the steps, at most 100"

    def _often(self) -> tuple[int, str]:
        assert self.seconds is not None
        return max(1, min(self.steps, round(30 / self.seconds))), "about every 30 seconds"

    @derived
    def validate_every(self) -> tuple[int, str]:
        return self._often()

    @derived
    def sample_every(self) -> tuple[int, str]:
        return self._often()

    @derived
    def checkpoint_every(self) -> tuple[int, str]:
        return self._often()

    def part(self, kind: type[P], **known: Any) -> P:
        """A part of the run: its options asked for or derived here, in the order of its fields; the rest as given."""
        for each in declared(kind):
            if each.field not in known:
                known[each.field] = getattr(self if each.is_derived else self.asked, each.flag)
        return kind(**known)


def resolve(texts: tuple[str, ...], options: TrainOptions, prepared: Prepared, world: World = ALONE) -> Run:
    """Fix every number of the run.

    With ``minutes``, the number of steps is measured on this machine: the one number that another machine would choose
    differently, besides the size and precision that follow from its speed. Raises DataError for a text shorter than a
    context, UsageError or SpecError for sizes that do not fit together.
    """
    if options.compile and not compiler_here():
        raise UsageError(
            "compile was asked for, but there is no C++ compiler", "install g++ or clang++, or leave it out"
        )
    numbers = Numbers(options, prepared)
    runtime = numbers.part(Runtime, threads=torch.get_num_threads(), torch=torch.__version__)
    feed = _feed(numbers, texts)
    run = Run(
        model=numbers.model,
        feed=feed[0],
        objective=numbers.part(ObjectiveSpec),
        start=numbers.part(Start),
        optimiser=numbers.part(Optimiser),
        schedule=Schedule(name=options.schedule, steps=options.steps or 1, warmup=0),
        runtime=runtime,
        keeping=Keeping(validate_every=1, sample_every=0, checkpoint_every=1),
        seed=options.seed,
        options=options,
    )
    numbers.seconds = Trainer(run, feed[1], World(world.device)).measure() / world.size
    schedule = numbers.part(Schedule)
    each = schedule.steps * run.tokens_per_step / prepared.training.n_tokens
    numbers.note("tokens", schedule.steps * run.tokens_per_step, f"{each:.2g} times the text")
    keeping = numbers.part(Keeping)
    return replace(run, schedule=schedule, keeping=keeping, reasons=(*prepared.reasons, *numbers.reasons))


def _feed(numbers: Numbers, texts: tuple[str, ...]) -> tuple[TextSpec, Feed]:
    """The feed and what the run says of it. Refuses what cannot be cut into rows before anything is measured."""
    options, prepared, context = numbers.asked, numbers.prepared, numbers.context
    numbers.note_sizes()
    batch_size, micro_batches = numbers.batch_size, options.micro_batches
    if batch_size < micro_batches:
        raise UsageError(
            f"batch_size = {batch_size} cannot be split into {micro_batches} micro-batches",
            f"choose --micro-batches from 1 to {batch_size}, or a larger --batch-size",
        )
    feed = open_feed(
        prepared,
        numbers.objective,
        context=context,
        batch_size=batch_size,
        micro_batches=micro_batches,
        seed=options.seed,
    )
    spec = numbers.part(
        TextSpec,
        hash=feed.hash,
        tokens_per_step=feed.tokens_per_step,
        texts=texts,
        tokenizer=prepared.tokenizer.hash,
    )
    return spec, feed
