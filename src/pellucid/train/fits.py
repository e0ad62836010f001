"""Which objective fits which model, and whether a feed's batches do: refused by name, before anything is written."""

from __future__ import annotations

from pellucid.batch import IGNORE
from pellucid.data.feed import Feed
from pellucid.designs import design
from pellucid.errors import DataError, UsageError
from pellucid.predicates import Ahead
from pellucid.spec import (
    ClassifierHeadSpec,
    DecoderSpec,
    EncoderDecoderSpec,
    EncoderHeadSpec,
    EncoderSpec,
    MaskedLMHeadSpec,
    ModelSpec,
    TaggerHeadSpec,
)
from pellucid.train.config import TrainOptions
from pellucid.train.parts import ObjectiveName
from pellucid.train.world import ALONE

DESIGN_OF: dict[ObjectiveName, str] = {
    "causal": "modern",
    "prefix": "prefix",
    "fim": "modern",
    "mlm": "encoder",
    "rtd": "discriminator",
    "seq2seq": "encoder_decoder",
    "spans": "encoder_decoder",
    "denoise": "encoder_decoder",
    "ul2": "encoder_decoder",
}
_OF_TEXTS: tuple[ObjectiveName, ...] = ("causal", "prefix", "fim", "mlm", "rtd", "spans", "denoise", "ul2")
USED_BY: dict[str, tuple[ObjectiveName, ...]] = {  # options that decide something for some objectives only
    "deduplicate": _OF_TEXTS,
    "mix": _OF_TEXTS,
    "mix_temperature": _OF_TEXTS,
    "mix_epochs": _OF_TEXTS,
    "batch_tokens": ("seq2seq",),
    "masked": ("mlm", "rtd", "spans", "denoise"),
    "whole_words": ("mlm", "rtd"),
    "span": ("spans", "denoise"),
    "permute": ("denoise",),
    "fim_rate": ("fim",),
    "spm_rate": ("fim",),
    "tokens_ahead": ("causal",),
    "discriminator": ("rtd",),
}


def objectives_of(spec: ModelSpec) -> tuple[ObjectiveName, ...]:
    """The objectives that fit a kind of model, the usual one first; none for a model that predicts nothing."""
    if isinstance(spec, EncoderDecoderSpec):
        return "seq2seq", "spans", "denoise", "ul2"
    if isinstance(spec, DecoderSpec):
        return () if spec.reads_memory else _objectives_of_decoder(spec.ahead)
    if isinstance(spec.head, MaskedLMHeadSpec):
        return ("mlm",)
    labelled = isinstance(spec.head, TaggerHeadSpec) or (
        isinstance(spec.head, ClassifierHeadSpec) and spec.head.n_classes > 1
    )
    return (("labels", "rtd") if _tells_two(spec.head) else ("labels",)) if labelled else ()


def _tells_two(head: EncoderHeadSpec | None) -> bool:
    """Whether it says of each token one of two things."""
    return isinstance(head, TaggerHeadSpec) and head.n_classes == 2


def _objectives_of_decoder(ahead: Ahead) -> tuple[ObjectiveName, ...]:
    if ahead.marked:
        return "causal", "prefix"
    return ("causal",) if ahead.first else ("causal", "fim")


def refuse_idle(options: TrainOptions, objective: ObjectiveName) -> None:
    """Raise UsageError for an option that decides nothing for this objective."""
    for name, users in USED_BY.items():
        if getattr(options, name) != TrainOptions.options[name].default and objective not in users:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} decides nothing for the objective {objective}", f"it is for {', '.join(users)}")


def choose_objective(options: TrainOptions, spec: ModelSpec | None) -> tuple[ObjectiveName, str]:
    """The objective of a run and why: asked for, or what fits the model it begins with or the design asked for.

    Raises UsageError where what is asked for does not fit.
    """
    if spec is None and options.design is None:
        return options.objective or "causal", "asked for" if options.objective else "the next token of a text"
    named = "this model" if spec is not None else f"the design {options.design!r}"
    fitting = objectives_of(spec if spec is not None else design(options.design)(512, 64, 4, 64, 16))
    kind = f"{named} is {kind_of(spec)}" if spec is not None else named
    if not fitting:
        raise UsageError(f"{kind}, and predicts nothing: no objective fits it", "give its spec a head that predicts")
    if options.objective not in (None, *fitting):
        problem = f"the objective {options.objective} does not fit {named}"
        problem += f", which is {kind_of(spec)}" if spec is not None else ""
        others = (
            f"a model for it, e.g. --design {DESIGN_OF[options.objective]}" if options.objective in DESIGN_OF else ""
        )
        choice = " or ".join(fitting)
        raise UsageError(problem, f"choose --objective {choice}" + (f", or {others}" if others else ""))
    return options.objective or fitting[0], "asked for" if options.objective else f"fits {named}"


def kind_of(spec: ModelSpec) -> str:
    """A kind of model, with its article."""
    if isinstance(spec, EncoderDecoderSpec):
        return "an encoder–decoder"
    return "an encoder" if isinstance(spec, EncoderSpec) else "a decoder"


def refuse_unfit_feed(feed: Feed, spec: ModelSpec) -> None:
    """Raise DataError where a feed gives no batches, or such as this kind of model cannot learn from."""
    name = type(feed).__name__
    batches = feed.batches(0, 1, ALONE)
    if not batches or not any(bool((batch.labels != IGNORE).any()) for batch in batches):
        raise DataError(f"the feed {name} has no batches with labels", "give it data that holds something to predict")
    batch = batches[0]
    if isinstance(spec, EncoderDecoderSpec) != (batch.source is not None):
        gives = "no source to read" if batch.source is None else "a source to read"
        raise DataError(
            f"the feed {name} gives {gives}, but the model is {kind_of(spec)}", "give another feed or model"
        )
    largest = max(int(batch.ids.max()) for batch in batches)
    if not batch.ids.is_floating_point() and largest >= spec.vocab_size:
        problem = f"the feed {name} has the id {largest}, but the model knows {spec.vocab_size} tokens"
        raise DataError(problem, "encode its text with the model's tokenizer")
