"""The parts of a run: frozen values, each with the options that decide it (``options.option``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pellucid.spec import InitRule
from pellucid.train.options import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, UP_TO_1, Legal, Part, option
from pellucid.train.schedule import Decision, ScheduleName, factor, position

ObjectiveName = Literal["causal", "mlm", "rtd", "spans", "denoise", "prefix", "fim", "ul2", "seq2seq", "labels"]
OptimizerName = Literal["muon", "adamw"]
PrecisionName = Literal["fp32", "bf16"]

# --- asked for, and answered by the model's spec and the number of steps ----------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sizing(Part):
    """What is asked of the model's size and of the time; a run holds the answers."""

    minutes: float = option(
        "Time to train, all in all: the number of steps follows on the way, from the speed. Default: 5.", POSITIVE
    )
    design: str = option(
        "modern, classic, window, moe, delta, hybrid, lstm, ...: `pellucid info` lists them all; or one of your own, "
        "module:function. Default: modern; encoder, encoder_decoder or prefix where the objective needs one."
    )
    depth: int = option("Layers; the width follows (64 for each above two).", COUNT)
    d_model: int = option("Width of the residual stream.", COUNT)
    head_dim: int = option("Width of one attention head.", COUNT)
    vocab_size: int = option("Entries of the tokenizer that is trained on the text.", COUNT)


@dataclass(frozen=True, kw_only=True)
class Reading(Part):
    """How the texts are read; a run holds the hash of what came of it."""

    field: str = option("Where a row of JSON, or of a dataset, holds its text.", default="text")
    deduplicate: Literal["no", "exact", "near"] = option(
        "Leave out documents that are copies of others: equal ones, or also nearly equal ones (needs datasketch). "
        "Default: no; exact for a mixture.",
        default="no",
        later=True,
    )


# --- the parts of a run ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FeedSpec(Part):
    """What is learned from. hash: of the training data; tokens_per_step: of one update, on all processes together.

    This class itself stands for a feed that the caller made.
    """

    hash: str
    tokens_per_step: int


@dataclass(frozen=True, kw_only=True)
class TextSpec(FeedSpec):
    """A feed read from ``texts`` (for the objective seq2seq: files of pairs). tokenizer: hash of the tokenizer."""

    texts: tuple[str, ...]
    tokenizer: str
    context: int = option("Longest sequence, in tokens.", Legal(8, math.inf, "at least 8 tokens"))
    batch_size: int = option("Rows of `context` tokens in one update.", COUNT)
    batch_tokens: int | None = option(
        "Tokens of targets in one update, pairs of like length together (seq2seq, unless `batch_size` rows are asked "
        "for).",
        COUNT,
        default=None,
        later=True,
    )
    validation: float = option(
        "Share of the documents held out (of the text's end, when there is only one document).", SHARE, default=0.05
    )
    held_out: tuple[str, ...] = option("Names of documents to hold out, instead of a share.", default=())
    mix: tuple[float, ...] = option(
        "Weights of the texts in a mixture, in their order, instead of one text of all.", default=(), later=True
    )
    mix_temperature: float = option(
        "Flatten the mixture's weights, or else the texts' sizes, to their power 1 / this.",
        POSITIVE,
        default=1.0,
        later=True,
    )
    mix_epochs: float | None = option(
        "How often each text of a mixture is read at most, while others are not read so often.",
        POSITIVE,
        default=None,
        later=True,
    )
    masked: float | None = option(
        "Share of the tokens that are hidden (mlm, rtd, spans, denoise). Default: 0.15; denoise: 0.3.",
        SHARE,
        default=None,
    )
    whole_words: bool = option("Hide whole words instead of tokens (mlm, rtd).", default=False, later=True)
    span: float | None = option(
        "Mean length of a hidden span, in tokens (spans, denoise). Default: 3.", POSITIVE, default=None, later=True
    )
    permute: bool = option("Let sentences change places (denoise).", default=True, later=True)
    fim_rate: float = option("Share of the documents whose middle is moved (fim).", UP_TO_1, default=0.5, later=True)
    spm_rate: float = option("Share of those in which the suffix comes first (fim).", UP_TO_1, default=0.5, later=True)


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec(Part):
    """What is minimised."""

    name: ObjectiveName = option(
        "causal (the next token), prefix (the same behind a prefix that is read both ways), fim (middles between two "
        "texts), mlm (masked tokens, by an encoder), rtd (which tokens were replaced); by an encoder-decoder: spans "
        "(hidden spans), denoise (a text from what is left of it), ul2 (several kinds of spans), seq2seq (the second "
        "column of a .tsv file from the first). "
        "Default: the one that fits the model.",
        flag="objective",
    )
    smoothing: float = option(
        "Share of each label that goes to all tokens alike. Default: 0.1 for pairs, else 0.", SHARE
    )
    tokens_ahead: int = option(
        "Tokens that are predicted from each place (causal): a block of its own learns each but the first, and is left "
        "out at the end.",
        COUNT,
        default=1,
        later=True,
    )
    discriminator: float = option(
        "Weight of a token that is told from replaced ones, beside one that is filled in (rtd). Default: 7.5, 50 where "
        "means are added and 15 % are masked.",
        POSITIVE,
        default=7.5,
        later=True,
    )
    dropout: float = option("On each sublayer's output, and on the embeddings.", SHARE, default=0.0)
    load_balance: float = option(
        "Weight of the loss that keeps all experts in use (designs with experts only).", NOT_NEGATIVE, default=0.01
    )
    router_z: float = option(
        "Weight of the loss that keeps the router's logits small (designs with experts only).",
        NOT_NEGATIVE,
        default=0.001,
    )


@dataclass(frozen=True, kw_only=True)
class Start(Part):
    """The weights before the first step. weights: hash of those that ``init_from`` held."""

    init: InitRule = option("normal, fan_in or xavier.")
    init_from: str | None = option(
        "A model to go on from: ours or a published one, with its tokenizer.", default=None, alias="--from"
    )
    weights: str | None = None
    freeze: tuple[str, ...] = option(
        "Parameters that stay as they are, by name or pattern, e.g. 'embed.*' 'blocks.0.*'.", default=()
    )


@dataclass(frozen=True, kw_only=True)
class Optimiser(Part):
    """How a gradient changes the weights."""

    name: OptimizerName = option(
        "muon (matrices by Muon, the rest by AdamW) or adamw.", default="muon", flag="optimizer"
    )
    learning_rate: float = option("Peak rate of AdamW.", POSITIVE)
    matrix_learning_rate: float = option("Peak rate of Muon.", POSITIVE)
    weight_decay: float = option(
        "Decoupled decay: of the blocks' matrices with muon, of all matrices with adamw.", NOT_NEGATIVE
    )
    beta1: float = option("AdamW's decay of the mean of gradients.", SHARE, default=0.9)
    beta2: float = option("AdamW's decay of the mean of squared gradients.", SHARE, default=0.95)
    eps: float = option("AdamW's term in the denominator.", POSITIVE)
    clip: float | None = option("Largest gradient norm; None: any.", POSITIVE, default=1.0)


@dataclass(frozen=True, kw_only=True)
class Schedule(Part):
    """How many steps there are, and the learning rate of each as a share of its peak."""

    name: ScheduleName = option(
        "wsd (warm-up, stable, decay), cosine, or inverse_sqrt (Vaswani et al. 2017).", default="wsd", flag="schedule"
    )
    steps: int = option("Number of updates, instead of --minutes.", COUNT)
    warmup: int = option("Steps of linear warm-up.", NOT_NEGATIVE)
    minutes: float | None = None
    """The time that the run has: ``steps`` is then only what was expected at the start, and ``pace`` decides on."""
    decisions: tuple[Decision, ...] = ()
    """All that was decided on the way, once the run is closed."""

    def factor(self, step: int, decisions: Sequence[Decision] = ()) -> float:
        """What the peak learning rates are multiplied by at ``step``, from 0, after these decisions."""
        at = position(step, self.steps, decisions)
        return factor(self.name, step, self.steps, self.warmup, at=at)

    def total(self, decisions: Sequence[Decision] = ()) -> int:
        """The number of steps, after these decisions."""
        return next((d.steps for d in reversed(decisions) if d.steps is not None), self.steps)


@dataclass(frozen=True, kw_only=True)
class Runtime(Part):
    """How the same numbers are computed."""

    micro_batches: int = option(
        "Split each update's rows into this many parts, to save memory; the gradient stays the same.", COUNT, default=1
    )
    precision: PrecisionName = option("fp32 or bf16 (float32 master weights); default: the faster here.")
    compile: bool = option(
        "torch.compile the blocks: slower to start, then faster; needs a C++ compiler.", default=False
    )
    follow_load: bool | None = option(
        "Compute with fewer threads while other programs use the processor. Default: with --minutes, not with --steps, "
        "so that the same steps give the same bits.",
        default=None,
    )
    threads: int
    torch: str


@dataclass(frozen=True, kw_only=True)
class Keeping(Part):
    """What is measured, shown and kept on the way."""

    validate_every: int = option("Steps between validations.", COUNT)
    sample_every: int = option("Steps between samples of the model's writing; 0: none.", NOT_NEGATIVE, neutral=0)
    checkpoint_every: int | None = option(
        "Steps between checkpoints; default: every 30 seconds, or less often where writing one takes long.",
        COUNT,
        default=None,
        neutral=None,
    )
    keep_checkpoints: int = option("How many to keep.", COUNT, default=2, neutral=1)
    average: int = option(
        "At the end, also measure the mean of the weights of so many last checkpoints, and save it in `averaged`.",
        COUNT,
        default=1,
        neutral=1,
        later=True,
    )
    ema: float | None = option(
        "Also keep a moving mean of the weights that fades by this factor a step, e.g. 0.999; measured at the end, and "
        "saved in `ema`.",
        SHARE,
        default=None,
        later=True,
    )
    on_nonfinite: Literal["stop", "skip"] = option(
        "What to do when loss or gradient is not finite.", default="stop", neutral="stop"
    )
    tensorboard: bool = option("Also write TensorBoard files.", default=False, neutral=False)


@dataclass(frozen=True, kw_only=True)
class Seed(Part):
    """Where everything random begins."""

    seed: int = option(
        "Decides initial weights, data order and the validation split.",
        Legal(0, 2**32, "from 0 to 4294967295"),
        default=0,
    )
