"""Where every number of a run comes from: asked for, or derived from the text's size, the time and this machine."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import replace
from typing import TypeVar

import torch

from pellucid.data.packing import Packed
from pellucid.designs import design, width
from pellucid.engine.compiling import compiler_here
from pellucid.errors import UsageError
from pellucid.nn.flops import count_parameters, training_flops
from pellucid.spec import DecoderSpec
from pellucid.train.config import PrecisionName, Reason, Run, TrainOptions
from pellucid.train.loop import build_model
from pellucid.train.objectives import objective_for
from pellucid.train.optim import build_optimizers
from pellucid.train.precision import autocast, measure_peak
from pellucid.train.prepare import Prepared
from pellucid.train.step import step

DEFAULT_MINUTES = 5.0
TOKENS_PER_PARAMETER = 2.5  # of the blocks: brief training with Muon wants far fewer than Hoffmann et al.'s 20
MAX_EPOCHS = 8.0  # of the text that a size is planned for: further repetition teaches little (Muennighoff et al. 2023)
ASSUMED_UTILISATION = 0.25  # of the measured peak, for planning the size; the number of steps is then measured
MAX_DEPTH = 32

T = TypeVar("T", bound=object)


class _Settled:
    """Numbers as they are settled, each with its reason."""

    def __init__(self) -> None:
        self.reasons: list[Reason] = []

    def __call__(self, field: str, asked: T | None, derived: T, why: str) -> T:
        value = derived if asked is None else asked
        forms: dict[type, str] = {int: ",", float: "g"}
        shown = format(value, forms.get(type(value), ""))
        self.reasons.append(Reason(field, shown, why if asked is None else "asked for"))
        return value


def resolve(texts: tuple[str, ...], options: TrainOptions, prepared: Prepared) -> Run:
    """Fix every number of the run.

    With ``minutes``, the number of steps is measured on this machine: the one number that another machine would choose
    differently, besides the size and precision that follow from its speed. Raises DataError for a text shorter than a
    context, UsageError or SpecError for sizes that do not fit together.
    """
    settle = _Settled()
    minutes = DEFAULT_MINUTES if options.minutes is None and options.steps is None else options.minutes
    precision = _precision(options, settle)
    spec, batch_size = _size(options, prepared, minutes, precision, settle)
    muon = options.optimizer == "muon"
    run = Run(
        texts=texts,
        options=options,
        spec=spec,
        tokenizer=prepared.tokenizer.hash,
        data=prepared.training.hash,
        steps=options.steps or 1,
        batch_size=batch_size,
        micro_batches=options.micro_batches,
        seed=options.seed,
        optimizer=options.optimizer,
        learning_rate=settle(
            "learning_rate",
            options.learning_rate,
            (0.03 if muon else 0.004) * math.sqrt(128 / spec.d_model),
            "of AdamW, at the peak; lower for wider models",
        ),
        matrix_learning_rate=settle("matrix_learning_rate", options.matrix_learning_rate, 0.02, "of Muon, at the peak"),
        weight_decay=settle("weight_decay", options.weight_decay, 0.05, "on matrices only"),
        schedule=options.schedule,
        warmup=0,
        clip=options.clip,
        dropout=options.dropout,
        precision=precision,
        compile=options.compile,
        init=settle("init", options.init, "fan_in" if muon else "normal", f"goes with {options.optimizer}"),
        validate_every=1,
        sample_every=0,
        checkpoint_every=1,
        keep_checkpoints=options.keep_checkpoints,
        on_nonfinite=options.on_nonfinite,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        load_balance=options.load_balance,
        router_z=options.router_z,
    )
    seconds = _seconds_per_step(run, prepared)
    wanted = 1 if minutes is None else max(10, round(minutes * 60 / seconds))
    steps = settle("steps", options.steps, wanted, f"{minutes or 0:g} minutes at {seconds:.3f} s a step, measured here")
    each = steps * run.tokens_per_step / prepared.training.n_tokens
    settle("tokens", None, steps * run.tokens_per_step, f"{each:.2g} times the text")
    warmup = settle("warmup", options.warmup, min(100, max(1, steps // 20)), "a twentieth of the steps, at most 100")
    often = max(1, min(steps, round(30 / seconds)))
    run = replace(
        run,
        steps=steps,
        warmup=warmup,
        validate_every=settle("validate_every", options.validate_every, often, "about every 30 seconds"),
        sample_every=settle("sample_every", options.sample_every, often, "about every 30 seconds"),
        checkpoint_every=settle("checkpoint_every", options.checkpoint_every, often, "about every 30 seconds"),
    )
    return replace(run, reasons=(*prepared.reasons, *settle.reasons))


def _precision(options: TrainOptions, settle: _Settled) -> PrecisionName:
    peak = measure_peak()
    why = f"measured here: fp32 {peak.fp32 / 1e9:.0f}, bf16 {peak.bf16 / 1e9:.0f} GFLOP/s"
    return settle("precision", options.precision, peak.faster, why)


def _size(
    options: TrainOptions, prepared: Prepared, minutes: float | None, precision: PrecisionName, settle: _Settled
) -> tuple[DecoderSpec, int]:
    """The model and the rows of a batch that suit the text and the time, or the number of steps."""
    n_tokens, vocab_size = prepared.training.n_tokens, prepared.tokenizer.vocab_size
    context = settle("context", options.context, _context(n_tokens, minutes), "longer for more text and time")
    Packed(prepared.training, context, options.seed)  # refuses a text that is too short before anything is measured
    if options.compile and not compiler_here():
        raise UsageError(
            "compile was asked for, but there is no C++ compiler", "install g++ or clang++, or leave it out"
        )
    budget = (minutes or math.inf) * 60 * measure_peak().of(precision) * ASSUMED_UTILISATION  # FLOPs
    rows = options.batch_size or max(1, 4096 // context)
    asked = math.inf if options.steps is None else float(options.steps * rows * context)
    tokens = min(MAX_EPOCHS * n_tokens, asked)
    depth = _depth(options, vocab_size, context, budget, tokens)
    why = f"the deepest that sees {TOKENS_PER_PARAMETER:g} tokens a block parameter in the time and text there is"
    depth = settle("depth", options.depth, depth, why)
    spec = _spec(options, vocab_size, context, depth)
    settle("d_model", options.d_model, spec.d_model, "64 for each layer above two")
    head_dim = getattr(spec.stack.blocks[0].mixer, "head_dim", None)  # a recurrence has none
    if head_dim is not None:
        settle("head_dim", options.head_dim, head_dim, "greatest common divisor of the width and 64")
    parameters = count_parameters(spec)
    settle("parameters", None, parameters.total, f"{parameters.mixers + parameters.ffn:,} of them in the blocks")
    tokens = min(tokens, budget * context / training_flops(spec, context))
    fitting = max(1, 2 ** round(math.log2(math.sqrt(tokens) * 1.25)) // context)
    fitting = max(options.micro_batches, rows if options.steps else fitting)
    batch_size = settle("batch_size", options.batch_size, fitting, f"rows; {fitting * context:,} tokens a step")
    if batch_size < options.micro_batches:
        raise UsageError(
            f"batch_size = {batch_size} cannot be split into {options.micro_batches} micro-batches",
            f"choose --micro-batches from 1 to {batch_size}, or a larger --batch-size",
        )
    return spec, batch_size


def _context(n_tokens: int, minutes: float | None) -> int:
    longest = 256 if (minutes or 0) < 20 else 512
    while longest > 32 and n_tokens < 8 * longest:
        longest //= 2
    return longest


def _spec(options: TrainOptions, vocab_size: int, context: int, depth: int) -> DecoderSpec:
    d_model = options.d_model or width(depth)
    head_dim = options.head_dim or math.gcd(d_model, 64)
    return design(options.design)(vocab_size, context, depth, d_model, head_dim)


def _depth(options: TrainOptions, vocab_size: int, context: int, budget: float, tokens: float) -> int:
    """The deepest model that sees TOKENS_PER_PARAMETER tokens a block parameter within these FLOPs and tokens."""
    best = 2
    for depth in range(2, MAX_DEPTH + 1):
        spec = _spec(options, vocab_size, context, depth)
        parameters = count_parameters(spec)
        affordable = min(tokens, budget * context / training_flops(spec, context))
        if affordable < TOKENS_PER_PARAMETER * (parameters.mixers + parameters.ffn):
            break
        best = depth
    return best


def _seconds_per_step(run: Run, prepared: Prepared, repeats: int = 4) -> float:
    """Median time of a real step, on a model that is thrown away."""
    model = build_model(run)
    optimizers = build_optimizers(
        model,
        run.optimizer,
        learning_rate=run.learning_rate,
        matrix_learning_rate=run.matrix_learning_rate,
        weight_decay=run.weight_decay,
    )
    objective = objective_for(model, run.load_balance, run.router_z)
    data = Packed(prepared.training, run.spec.context, run.seed)
    times: list[float] = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        batches = [batch.with_segments() for batch in data.batches(i, run.batch_size, run.micro_batches)]
        step(model, optimizers, objective, batches, clip=run.clip, autocast=autocast(run.precision))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
