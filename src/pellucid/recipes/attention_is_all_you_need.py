"""The 2017 Transformer as it was trained, and our count of its parameters and FLOPs beside what the paper says."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from pellucid.designs import width
from pellucid.designs.published import attention_is_all_you_need
from pellucid.errors import UsageError
from pellucid.nn.flops import count_parameters, training_flops
from pellucid.spec import EncoderDecoderSpec
from pellucid.train.config import TrainOptions

P100 = 9.5e12  # FLOP/s that one GPU sustains in single precision, as the paper assumes (section 6.1, footnote 5)
SENTENCE = 25  # tokens that a sentence has here; it moves the count of FLOPs by a few percent only: attention is cheap


@dataclass(frozen=True)
class Recipe:
    """One model of table 3 and how it was trained (Vaswani et al. 2017, sections 5 and 6.2).

    source_tokens, target_tokens: of a batch, approximately. hours: on ``gpus`` P100. smoothing: of labels, by
    ``train.objectives.Smoothed``. average: of so many last checkpoints (section 6.1). ``said_`` is what the paper
    reports (tables 2 and 3).
    """

    spec: EncoderDecoderSpec
    steps: int
    hours: float
    dropout: float
    said_parameters: float
    said_flops: float
    source_tokens: int = 25_000
    target_tokens: int = 25_000
    warmup: int = 4000
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-9
    smoothing: float = 0.1
    gpus: int = 8
    average: int = 5

    def options(self, **more: Any) -> TrainOptions:
        """What to ask of ``pellucid.train`` on pairs, so that they are learned as in the paper; ``more`` is added.

        The peak rate is the schedule's at the end of the warm-up. The model is one's own to name: the paper's, or a
        smaller one of the same kind.
        """
        return TrainOptions(
            objective="seq2seq",
            smoothing=self.smoothing,
            dropout=self.dropout,
            init="xavier",
            optimizer="adamw",
            learning_rate=self.learning_rate(self.warmup),
            weight_decay=0.0,
            beta1=self.betas[0],
            beta2=self.betas[1],
            eps=self.eps,
            clip=None,
            schedule="inverse_sqrt",
            warmup=self.warmup,
            **({"steps": self.steps} | more if "minutes" not in more else more),
        )

    def learning_rate(self, step: int) -> float:
        """d_model^(−1/2) · min(step^(−1/2), step · warmup^(−3/2)), for steps from 1 (equation 3).

        Raises UsageError for an earlier one.
        """
        if step < 1:
            raise UsageError(f"step = {step}: the schedule begins with step 1", "count from 1")
        return self.spec.d_model**-0.5 * min(step**-0.5, step * self.warmup**-1.5)


def cook(recipe: Recipe, asked: TrainOptions) -> TrainOptions:
    """``asked``, and where it leaves something open, what the paper says (sections 3 and 5).

    The model is the paper's in the sizes that are asked for, so that the peak rate of the schedule follows from its own
    width and warm-up. A shorter warm-up than the paper's does not raise that peak: for a width of 128 and 100 steps it
    would be 0.009, where a post-norm model learns little. Batches hold as many tokens of targets as in the paper, pairs
    of like length together.
    """
    default, spec = TrainOptions(), recipe.spec
    attention = spec.decoder.stack.blocks[0].mixer
    d_model = asked.d_model or (spec.d_model if asked.depth is None else width(asked.depth))
    warmup = asked.warmup or recipe.warmup
    said = recipe.options(minutes=asked.minutes, steps=recipe.steps if asked.minutes is None else None)
    said = replace(
        said,
        design="transformer_2017",
        depth=len(spec.decoder.stack.blocks),
        d_model=d_model,
        head_dim=math.gcd(d_model, getattr(attention, "head_dim", d_model)),
        vocab_size=spec.vocab_size,
        batch_tokens=recipe.target_tokens,
        average=recipe.average,
        learning_rate=(d_model * max(warmup, recipe.warmup)) ** -0.5,
        validation=default.validation,
    )
    given = {name: getattr(asked, name) for name in TrainOptions.options}
    return replace(said, **{name: value for name, value in given.items() if value != getattr(default, name)})


RECIPES: dict[str, Recipe] = {
    "base": Recipe(attention_is_all_you_need("base"), 100_000, 12.0, 0.1, said_parameters=65e6, said_flops=3.3e18),
    "big": Recipe(
        attention_is_all_you_need("big"), 300_000, 84.0, 0.3, average=20, said_parameters=213e6, said_flops=2.3e19
    ),
}


@dataclass(frozen=True)
class Comparison:
    """Ours beside the paper's: parameters, and FLOPs of the whole training.

    in_layers: parameters outside the one table of vectors. implied_vocabulary: entries of that table with which the
    number of parameters would be the paper's. paid: FLOPs by the paper's own method, time × GPUs × ``P100``. used: the
    part of those that the model's arithmetic needs, so the share of that rate which the training kept up.
    """

    parameters: int
    in_layers: int
    said_parameters: float
    implied_vocabulary: float
    flops: float
    paid: float
    said_flops: float

    @property
    def used(self) -> float:
        """The share of the FLOPs paid for that the model's products are."""
        return self.flops / self.paid


def compare(recipe: Recipe) -> Comparison:
    """Count a recipe's parameters and training FLOPs, and put the paper's numbers beside them."""
    spec, counted = recipe.spec, count_parameters(recipe.spec)
    in_layers = counted.total - counted.embedding
    sentences = recipe.target_tokens / SENTENCE
    source = round(SENTENCE * recipe.source_tokens / recipe.target_tokens)
    return Comparison(
        parameters=counted.total,
        in_layers=in_layers,
        said_parameters=recipe.said_parameters,
        implied_vocabulary=(recipe.said_parameters - in_layers) / spec.d_model,
        flops=recipe.steps * sentences * training_flops(spec, SENTENCE, source),
        paid=recipe.hours * 3600 * recipe.gpus * P100,
        said_flops=recipe.said_flops,
    )


NOTES = (
    "Parameters: with what layers have here, one table of some 41,100 vectors gives every row of the paper's table 3 "
    "but the last, to its rounding (2 to 8 layers, widths of 256 to 1024). The big model leaves 35,900 for its table, "
    "and the text says about 37,000 for all: no one number gives both.",
    "FLOPs: the paper did not count operations. It multiplied hours, GPUs and the 9.5 TFLOP/s that it takes a P100 to "
    "sustain. Ours are the operations of forward and backward, so the two differ by how much of that rate was used. "
    f"Batches are approximate and sentences of {SENTENCE} tokens assumed; beside that, neither matters much.",
)
