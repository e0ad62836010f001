"""What a person asks of a run, and what a run is: two frozen values. ``resolve`` turns the first into the second."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

from pellucid.designs import DESIGNS
from pellucid.errors import UsageError, suggest
from pellucid.spec import DecoderSpec, InitRule
from pellucid.values import Value

OptimizerName = Literal["muon", "adamw"]
PrecisionName = Literal["fp32", "bf16"]
ScheduleName = Literal["wsd", "cosine"]

# what each number may be, and how that is said (nan is none of these)
_Legal = tuple[Callable[[float], bool], str]
_COUNT: _Legal = (lambda x: x >= 1, "at least 1")
_POSITIVE: _Legal = (lambda x: 0 < x < math.inf, "greater than 0, and finite")
_NOT_NEGATIVE: _Legal = (lambda x: 0 <= x < math.inf, "0 or more, and finite")
_SHARE: _Legal = (lambda x: 0 <= x < 1, "from 0 up to, not including, 1")
_LEGAL: dict[str, _Legal] = {
    **dict.fromkeys(("steps", "depth", "d_model", "head_dim", "vocab_size", "batch_size", "micro_batches"), _COUNT),
    **dict.fromkeys(("validate_every", "checkpoint_every", "keep_checkpoints", "threads"), _COUNT),
    **dict.fromkeys(("minutes", "learning_rate", "matrix_learning_rate", "clip"), _POSITIVE),
    **dict.fromkeys(("weight_decay", "warmup", "sample_every", "load_balance", "router_z"), _NOT_NEGATIVE),
    **dict.fromkeys(("validation", "dropout"), _SHARE),
    "context": (lambda x: x >= 8, "at least 8 tokens"),
    "seed": (lambda x: 0 <= x < 2**32, "from 0 to 4294967295"),
}


def _refuse_illegal(asked: TrainOptions | Run) -> None:
    """Raise UsageError naming the field, value and legal values of a number that no run can have."""
    for name, (is_legal, words) in _LEGAL.items():
        value = getattr(asked, name, None)
        if value is not None and not is_legal(value):
            raise UsageError(f"{name} = {value} cannot be used", f"--{name.replace('_', '-')} must be {words}")


@dataclass(frozen=True)
class TrainOptions(Value):
    """Everything that can be asked of a run. What is not (None) follows from the text's size and the time there is."""

    minutes: float | None = None
    """Time to train, on this machine; the number of steps follows from a measured one. Default: 5."""
    steps: int | None = None
    """Number of updates, instead of --minutes."""
    depth: int | None = None
    """Layers; the width follows (64 for each above two)."""
    seed: int = 0
    """Decides initial weights, data order and the validation split."""
    design: str = "modern"
    """modern, classic, window, moe, delta, hybrid, lstm, ...: `pellucid info` lists them all."""

    d_model: int | None = None
    """Width of the residual stream."""
    head_dim: int | None = None
    """Width of one attention head."""
    vocab_size: int | None = None
    """Entries of the tokenizer that is trained on the text."""
    context: int | None = None
    """Longest sequence, in tokens."""

    batch_size: int | None = None
    """Rows of `context` tokens in one update."""
    micro_batches: int = 1
    """Split each update's rows into this many parts, to save memory; the gradient stays the same."""
    optimizer: OptimizerName = "muon"
    """muon (matrices by Muon, the rest by AdamW) or adamw."""
    learning_rate: float | None = None
    """Peak rate of AdamW."""
    matrix_learning_rate: float | None = None
    """Peak rate of Muon."""
    weight_decay: float | None = None
    """Decoupled decay: of the blocks' matrices with muon, of all matrices with adamw."""
    schedule: ScheduleName = "wsd"
    """wsd (warm-up, stable, decay) or cosine."""
    warmup: int | None = None
    """Steps of linear warm-up."""
    clip: float | None = 1.0
    """Largest gradient norm; None: any."""
    dropout: float = 0.0
    """On each sublayer's output, and on the embeddings."""
    load_balance: float = 0.01
    """Weight of the loss that keeps all experts in use (designs with experts only)."""
    router_z: float = 0.001
    """Weight of the loss that keeps the router's logits small (designs with experts only)."""
    precision: PrecisionName | None = None
    """fp32 or bf16 (float32 master weights); default: the faster here."""
    compile: bool = False
    """torch.compile the blocks: slower to start, then faster; needs a C++ compiler."""
    init: InitRule | None = None
    """normal, fan_in or xavier."""

    validation: float = 0.05
    """Share of the documents held out (of the text's end, when there is only one document)."""
    held_out: tuple[str, ...] = ()
    """Names of documents to hold out, instead of a share."""
    validate_every: int | None = None
    """Steps between validations."""
    sample_every: int | None = None
    """Steps between samples of the model's writing; 0: none."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; default: about every 30 seconds."""
    keep_checkpoints: int = 2
    """How many to keep."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do when loss or gradient is not finite."""
    tensorboard: bool = False
    """Also write TensorBoard files."""

    def __post_init__(self) -> None:
        if self.design not in DESIGNS:
            raise UsageError(f"there is no design {self.design!r}", suggest(self.design, DESIGNS))
        if self.minutes is not None and self.steps is not None:
            raise UsageError("both minutes and steps are given", "give the one that should decide")
        _refuse_illegal(self)


@dataclass(frozen=True)
class Reason(Value):
    """Where a number came from."""

    field: str
    value: str
    why: str


@dataclass(frozen=True)
class Run(Value):
    """A run with every number fixed: with the same text, seed, machine and thread count it gives the same weights.

    Saved as ``run.json`` beside every checkpoint, and accepted back by ``pellucid train --run run.json``.
    """

    texts: tuple[str, ...]
    options: TrainOptions
    spec: DecoderSpec
    tokenizer: str
    """Hash of the tokenizer."""
    data: str
    """Hash of the training tokens."""
    steps: int
    batch_size: int
    micro_batches: int
    seed: int
    optimizer: OptimizerName
    learning_rate: float
    matrix_learning_rate: float
    weight_decay: float
    schedule: ScheduleName
    warmup: int
    clip: float | None
    dropout: float
    precision: PrecisionName
    compile: bool
    init: InitRule
    validate_every: int
    sample_every: int
    checkpoint_every: int
    keep_checkpoints: int
    on_nonfinite: Literal["stop", "skip"]
    threads: int
    torch: str
    reasons: tuple[Reason, ...] = ()
    load_balance: float = 0.01
    router_z: float = 0.001

    def __post_init__(self) -> None:
        _refuse_illegal(self)

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.spec.context

    def identity(self) -> Run:
        """The run without what may change while it is the same run, and without how its numbers were found."""
        plain = {"checkpoint_every": 1, "keep_checkpoints": 1, "on_nonfinite": "stop", "sample_every": 0}
        return replace(self, **plain, options=TrainOptions(), reasons=())

    def with_operations(self, options: TrainOptions) -> Run:
        """The same run with the operational options that are asked for now."""
        default = TrainOptions()
        asked = {
            name: getattr(options, name)
            for name in OPERATIONAL
            if name != "tensorboard" and getattr(options, name) != getattr(default, name)
        }
        return replace(self, **asked, options=replace(self.options, tensorboard=options.tensorboard))


# what may change when a run goes on: it decides what is kept and shown, never what is computed
OPERATIONAL = ("checkpoint_every", "keep_checkpoints", "on_nonfinite", "tensorboard", "sample_every")


def changed(before: TrainOptions, now: TrainOptions) -> list[str]:
    """Options that are asked for now but that the run was not started with, so that resuming it cannot meet them."""
    default = TrainOptions()
    return [
        f"{f.name} = {getattr(now, f.name)!r}, not {getattr(before, f.name)!r}"
        for f in fields(TrainOptions)
        if f.name not in OPERATIONAL and getattr(now, f.name) not in (getattr(before, f.name), getattr(default, f.name))
    ]
