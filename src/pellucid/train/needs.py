"""The memory that a run takes: weights, gradients, the optimiser's state, and what a forward keeps for its backward."""

from __future__ import annotations

from typing import NamedTuple

from pellucid.engine.memory import gigabytes, require
from pellucid.nn.flops import activation_bytes, count_parameters
from pellucid.nn.loss import CHUNK_BYTES
from pellucid.spec import ModelSpec
from pellucid.train.aids import aid_specs
from pellucid.train.config import Run
from pellucid.train.parts import OptimizerName, PrecisionName
from pellucid.train.world import World


class Needs(NamedTuple):
    """Bytes, each kind by itself."""

    weights: int
    gradients: int
    optimiser: int
    casts: int
    activations: int

    @property
    def total(self) -> int:
        return sum(self)


def training_needs(
    spec: ModelSpec, rows: int, context: int, optimizer: OptimizerName = "muon", precision: PrecisionName = "fp32"
) -> Needs:
    """What one step over ``rows`` rows of ``context`` tokens holds at its peak, by the spec alone; an estimate.

    Muon keeps one number for each of a block's weights, AdamW two for each weight that it changes. bf16 keeps another
    copy of what products read, and activations of half the size.
    """
    p = count_parameters(spec)
    by_muon = p.mixers + p.ffn if optimizer == "muon" else 0
    size = 4 if precision == "fp32" else 2
    logits = min(CHUNK_BYTES, 4 * rows * context * spec.vocab_size)
    return Needs(
        weights=4 * p.total,
        gradients=4 * p.total,
        optimiser=4 * by_muon + 8 * (p.total - by_muon),
        casts=0 if precision == "fp32" else 2 * p.total,
        activations=activation_bytes(spec, rows, context, size) + logits,
    )


def run_needs(run: Run, micro_batches: int | None = None) -> Needs:
    """Of a run, where each update is split into so many parts (default: its own number); with all that is trained
    beside the model, whose tables it shares, and the mean of the weights."""
    context = run.model.context
    rows = -(-run.tokens_per_step // context // (micro_batches or run.runtime.micro_batches)) or 1
    how = rows, context, run.optimiser.name, run.runtime.precision
    found = training_needs(run.model, *how)
    for spec in aids_of(run):
        aid, p = training_needs(spec, *how), count_parameters(spec)
        tables = p.embedding + p.head
        aid = aid._replace(
            weights=aid.weights - 4 * tables,
            gradients=aid.gradients - 4 * tables,
            optimiser=aid.optimiser - 8 * tables,
            casts=aid.casts - (2 * tables if aid.casts else 0),
        )
        found = Needs(*map(sum, zip(found, aid, strict=True)))
    if run.keeping.ema is not None:
        found = found._replace(weights=found.weights + 4 * count_parameters(run.model).total)
    return found


def aids_of(run: Run) -> list[ModelSpec]:
    """Specs of what a run computes beside its model in each step."""
    asked = run.objective
    return aid_specs(run.model, replaced=asked.name == "rtd", further=asked.tokens_ahead - 1)


def refuse_too_large(run: Run, world: World) -> None:
    """Raise TooLargeError for a run whose steps need more memory than is free, with what would fit."""

    def remedy(free: int) -> str:
        rows = max(1, run.tokens_per_step // run.model.context)
        splits = (2**n for n in range(1, rows.bit_length()) if 2**n > run.runtime.micro_batches)
        fitting = next((n for n in splits if run_needs(run, n).total <= free), None)
        if fitting is not None:
            return f"--micro-batches {fitting} would fit, and gives the same gradient"
        needs = run_needs(run, rows)
        state = gigabytes(needs.total - needs.activations)
        parameters = count_parameters(run.model).total
        fits = parameters * free // needs.total
        return (
            f"its weights, gradients and optimiser alone take {state}: choose fewer --depth or --d-model, "
            f"up to about {fits / 1e6:,.0f} M of its {parameters / 1e6:,.0f} M parameters"
        )

    require(run_needs(run).total, "training this model", remedy, world.device)
