"""The numbers of a run that nobody asked for, each derived by the method of its name, with the reason."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Int64

from pellucid.designs import design, width
from pellucid.engine.compiling import compiler_here
from pellucid.engine.memory import free_bytes
from pellucid.errors import UsageError
from pellucid.nn.flops import count_parameters, training_flops
from pellucid.spec import EncoderDecoderSpec, InitRule, ModelSpec
from pellucid.train.adaptation import Adaptation
from pellucid.train.config import Reason, Run, TrainOptions
from pellucid.train.derived import derived
from pellucid.train.feeds import PreparedPairs
from pellucid.train.fits import DESIGN_OF, choose_objective
from pellucid.train.needs import training_needs
from pellucid.train.optim import default_eps
from pellucid.train.options import declared
from pellucid.train.parts import (
    FeedSpec,
    Keeping,
    ObjectiveName,
    ObjectiveSpec,
    Optimiser,
    PrecisionName,
    Runtime,
    Schedule,
    Start,
)
from pellucid.train.precision import measure_peak
from pellucid.train.prepare import Prepared
from pellucid.train.start import Base
from pellucid.values import Value

DEFAULT_MINUTES = 5.0
TOKENS_PER_PARAMETER = 2.5  # of the blocks: brief training with Muon wants far fewer than Hoffmann et al.'s 20
MAX_EPOCHS = 8.0  # of the text that a size is planned for: further repetition teaches little (Muennighoff et al. 2023)
ASSUMED_UTILISATION = 0.25  # of the measured peak, for planning the size; the number of steps is then measured
GENTLENESS = 0.1  # of the learning rates, for a model that has learned already
ADAPTERS_GENTLENESS = 0.4  # for one that is put beside such a model, and begins as nothing
MAX_DEPTH = 32
STEP_OF_PAIRS = 2048  # tokens of targets, where the number of steps is asked for

Known = Prepared | PreparedPairs

P = TypeVar("P", bound=Value)


def attends(spec: ModelSpec) -> bool:
    """Whether the model's first mixer has heads: a recurrence has none."""
    stack = spec.decoder.stack if isinstance(spec, EncoderDecoderSpec) else spec.stack
    return hasattr(stack.blocks[0].mixer, "head_dim")


class Numbers:
    """Every open number of a run, by the name of its option, and the reason of each that was read."""

    def __init__(
        self, asked: TrainOptions, prepared: Known | None, base: ModelSpec | None = None, *, gently: bool = False
    ):
        """prepared: None where the feed is given. base: a model whose sizes are settled; gently: so are its weights."""
        self.asked, self._prepared, self.base, self.gently = asked, prepared, base, gently
        self.reasons: list[Reason] = []
        self.seconds: float | None = None  # of a step, once it was measured
        self.minutes = DEFAULT_MINUTES if asked.minutes is None and asked.steps is None else asked.minutes

    def note(self, field: str, value: object, why: str) -> None:
        """Keep the reason of a number."""
        forms: dict[type, str] = {int: ",", float: "g"}
        self.reasons.append(Reason(field, format(value, forms.get(type(value), "")), why))

    @property
    def prepared(self) -> Known:
        """The texts, read and encoded."""
        assert self._prepared is not None  # whoever gives a feed gives no text whose sizes could be asked for
        return self._prepared

    # --- sizes

    @derived
    def precision(self) -> tuple[PrecisionName, str]:
        peak = measure_peak()
        return peak.faster, f"measured here: fp32 {peak.fp32 / 1e9:.0f}, bf16 {peak.bf16 / 1e9:.0f} GFLOP/s"

    @cached_property
    def _lengths(self) -> Int64[np.ndarray, "pairs 2"] | None:
        """Tokens of source and target of each pair; None where texts are read."""
        return self.prepared.training.lengths if isinstance(self.prepared, PreparedPairs) else None

    @derived
    def context(self) -> tuple[int, str]:
        n_tokens = self.prepared.training.n_tokens
        longest = 256 if (self.minutes or 0) < 20 else 512
        if isinstance(self.prepared, PreparedPairs):
            return self.prepared.context(longest if self.base is None else self.base.context)
        while longest > 32 and n_tokens < 8 * longest:
            longest //= 2
        if self.base is not None and self.base.context < longest:
            return self.base.context, "as much as the model reads"
        return longest, "longer for more text and time"

    @derived
    def objective(self) -> tuple[ObjectiveName, str]:
        return choose_objective(self.asked, self.base)

    @derived
    def design(self) -> tuple[str, str]:
        return DESIGN_OF[self.objective], f"for the objective {self.objective}"

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
        """Tokens that are worth planning for, whatever the time; of pairs, those of their targets."""
        a_step = self._rows * self.context if self._lengths is None else self.asked.batch_tokens or STEP_OF_PAIRS
        asked = float((self.asked.steps or math.inf) * a_step)
        return min(MAX_EPOCHS * self.prepared.training.n_tokens, asked)

    def _spec(self, depth: int) -> ModelSpec:
        d_model = self.asked.d_model or width(depth)
        head_dim = self.asked.head_dim or math.gcd(d_model, 64)
        return design(self.design)(self.prepared.tokenizer.vocab_size, self.context, depth, d_model, head_dim)

    def _affordable(self, spec: ModelSpec) -> float:
        """Tokens that a model can be trained on in the time."""
        if self._lengths is None:
            return min(self._tokens, self._budget * self.context / training_flops(spec, self.context))
        read, said = np.minimum(self._lengths, self.context).mean(0).round().astype(int).tolist()
        return min(self._tokens, self._budget * said / training_flops(spec, said, read))

    @derived
    def depth(self) -> tuple[int, str]:
        why = f"the deepest that sees {TOKENS_PER_PARAMETER:g} tokens a block parameter in the time and text there is"
        best, free = 2, free_bytes()
        for depth in range(2, MAX_DEPTH + 1):
            spec = self._spec(depth)
            parameters = count_parameters(spec)
            if self._affordable(spec) < TOKENS_PER_PARAMETER * (parameters.mixers + parameters.ffn):
                break
            if free is not None and training_needs(spec, 1, self.context, self.asked.optimizer).total > free:
                why = "the deepest that can be trained in the memory that is free"
                break
            best = depth
        return best, why

    @derived
    def d_model(self) -> tuple[int, str]:
        return self.model.d_model, "64 for each layer above two"

    @derived
    def head_dim(self) -> tuple[int, str]:
        return math.gcd(self.d_model, 64), "greatest common divisor of the width and 64"

    @cached_property
    def model(self) -> ModelSpec:
        """The spec of the model that is trained."""
        return self._spec(self.depth) if self.base is None else self.base

    def note_sizes(self) -> None:
        """Read the sizes of the model, in the order in which people ask for them."""
        if self.base is None:
            _ = self.design, self.depth, self.d_model
        if self.base is None and attends(self.model):
            _ = self.head_dim
        parameters = count_parameters(self.model)
        self.note("parameters", parameters.total, f"{parameters.mixers + parameters.ffn:,} of them in the blocks")

    @cached_property
    def _fitting(self) -> int:
        """Tokens of a step that suit what can be trained on in the time."""
        return 2 ** round(math.log2(math.sqrt(self._affordable(self.model)) * 1.25))

    @derived
    def batch_size(self) -> tuple[int, str]:
        if self._lengths is not None and (tokens := self.batch_tokens) is not None:
            rows = max(1, self.asked.micro_batches, tokens // 32)
            return rows, "rows at once where it is measured; a step has as many as its tokens ask for"
        fitting = max(1, self._fitting // self.context)
        fitting = max(self.asked.micro_batches, self._rows if self.asked.steps else fitting)
        return fitting, f"rows; {fitting * self.context:,} tokens a step"

    @derived
    def batch_tokens(self) -> tuple[int | None, str]:
        """Read for pairs alone."""
        if self.asked.batch_size is not None:
            return None, "rows are asked for"
        if self.asked.compile:
            return None, "a compiled model reads rows of one shape"
        return STEP_OF_PAIRS if self.asked.steps else self._fitting, "tokens of targets in a step, on average"

    # --- how it learns

    @derived
    def smoothing(self) -> tuple[float, str]:
        if self.objective == "seq2seq":
            return 0.1, "as translators have it (Vaswani et al. 2017)"
        return 0.0, "only pairs are learned with it, unless it is asked for"

    @derived
    def learning_rate(self) -> tuple[float, str]:
        peak = (0.03 if self.asked.optimizer == "muon" else 0.004) * self._gentleness
        why = "of AdamW, at the peak; lower for wider models" + self._and_gentler
        return peak * math.sqrt(128 / self.model.d_model), why

    @derived
    def matrix_learning_rate(self) -> tuple[float, str]:
        return 0.02 * self._gentleness, "of Muon, at the peak" + self._and_gentler

    @property
    def _gentleness(self) -> float:
        return ADAPTERS_GENTLENESS if self.asked.lora else GENTLENESS if self.gently else 1.0

    @property
    def _and_gentler(self) -> str:
        return ", and for weights that have learned" if self.gently else ""

    @derived
    def weight_decay(self) -> tuple[float, str]:
        return 0.05, "on matrices only"

    @derived
    def eps(self) -> tuple[float, str]:
        return default_eps(self.asked.optimizer), f"goes with {self.asked.optimizer}"

    @derived
    def init(self) -> tuple[InitRule, str]:
        return "fan_in" if self.asked.optimizer == "muon" else "normal", f"goes with {self.asked.optimizer}"

    # --- how long: once a step was measured

    @derived
    def steps(self) -> tuple[int, str]:
        assert self.minutes is not None and self.seconds is not None  # else they are asked for
        wanted = max(10, round(self.minutes * 60 / self.seconds))
        return wanted, f"{self.minutes:g} minutes at {self.seconds:.3f} s a step, measured here; kept on the way"

    @derived
    def warmup(self) -> tuple[int, str]:
        return min(100, max(1, self.steps // 20)), "a twentieth of the steps, at most 100"

    def _every_half_minute(self) -> tuple[int, str]:
        assert self.seconds is not None
        return max(1, min(self.steps, round(30 / self.seconds))), "about every 30 seconds"

    @derived
    def validate_every(self) -> tuple[int, str]:
        return self._every_half_minute()

    @derived
    def sample_every(self) -> tuple[int, str]:
        return self._every_half_minute()

    # --- parts and the whole

    def runtime(self) -> Runtime:
        """Raises UsageError where compilation is asked for and impossible."""
        if self.asked.compile and not compiler_here():
            raise UsageError(
                "compile was asked for, but there is no C++ compiler", "install g++ or clang++, or leave it out"
            )
        return self.part(Runtime, threads=torch.get_num_threads(), torch=torch.__version__)

    def run(self, feed: FeedSpec, runtime: Runtime, base: Base | None) -> Run:
        """The run but for what follows from the time of a step: until that is measured, it has one step."""
        return Run(
            model=self.model,
            feed=feed,
            objective=self.part(ObjectiveSpec),
            start=self.part(Start, weights=None if base is None else base.weights),
            adapter=self.part(Adaptation),
            optimiser=self.part(Optimiser),
            schedule=Schedule(name=self.asked.schedule, steps=self.asked.steps or 1, warmup=0),
            runtime=runtime,
            keeping=Keeping(validate_every=1, sample_every=0),
            seed=self.asked.seed,
            options=self.asked,
        )

    def part(self, kind: type[P], **known: Any) -> P:
        """A part of the run: its options asked for or derived here, in the order of its fields; the rest as given."""
        for each in declared(kind):
            if each.field not in known:
                known[each.field] = getattr(self if each.is_derived else self.asked, each.flag)
        return kind(**known)
