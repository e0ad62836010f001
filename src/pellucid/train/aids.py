"""Modules that help a model to learn and are then left out: they are trained, and kept in checkpoints alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pellucid.batch import IGNORE, Batch
from pellucid.designs.readers import encoder
from pellucid.errors import DataError
from pellucid.nn.base import Model
from pellucid.nn.embed import TokenTable
from pellucid.nn.loss import Predictions
from pellucid.nn.models import Decoder, Encoder
from pellucid.nn.stack import Stack
from pellucid.spec import DecoderSpec, EncoderSpec, ModelSpec, StackSpec

GENERATOR_WIDTH = 1 / 3  # of the model's (Clark et al. 2020, section 3.2: a quarter to a half is best)


def aid_specs(spec: ModelSpec, *, replaced: bool, further: int) -> list[ModelSpec]:
    """What is computed beside a model in each step: a generator, or a block and a head for each further token. Their
    tables are the model's own."""
    if replaced and isinstance(spec, EncoderSpec):
        return [generator_spec(spec)]
    if further and isinstance(spec, DecoderSpec):
        return [replace(spec, stack=replace(spec.stack, blocks=spec.stack.blocks[-1:]))] * further
    return []


# --- multi-token prediction ------------------------------------------------------------------------------------------


class FurtherHeads(Model):
    """For each token after the next one a block and a final norm of its own, on the trunk that all share.

    The trunk is the model without its last block, which is the head of the next token; the table that makes logits is
    shared (Gloeckle et al. 2024, section 2).
    """

    def __init__(self, spec: DecoderSpec, further: int):
        super().__init__()
        self.spec = spec
        of = StackSpec(spec.d_model, spec.stack.blocks[-1:], spec.stack.final_norm, spec.stack.bias)
        self.heads = nn.ModuleList(Stack(of) for _ in range(further))


@dataclass(frozen=True, eq=False)
class MultiToken:
    """The sum of -ln p of the next token and of those after it, each by a head of its own (equation 2).

    What is not in the document of a place is not predicted from there. count: of next tokens.
    """

    aid: FurtherHeads

    def __call__(self, model: Model, batch: Batch) -> Float[Tensor, ""]:
        if not isinstance(model, Decoder):
            raise DataError("only a decoder predicts several tokens at once", "use another objective")
        last, tokens = len(model.blocks) - 1, batch.tokens
        trunk = model.blocks_from(model.embed(batch.ids, tokens), tokens, last=last)
        table = model.embed.head_table
        states = model.final_norm(model.blocks_from(trunk, tokens, first=last))
        loss = model.head.predictions(states, table).nll(batch.labels, weights=batch.weights)
        for ahead, head in enumerate(self.aid.heads, start=1):
            assert isinstance(head, Stack)
            states = head.final_norm(head.blocks_from(trunk, tokens))
            loss = loss + model.head.predictions(states, table).nll(labels_ahead(batch, ahead), weights=batch.weights)
        return loss

    def count(self, batch: Batch) -> int | float:
        """Scored next tokens."""
        scored = batch.labels != IGNORE
        return int(scored.sum()) if batch.weights is None else float(batch.weights[scored].sum())


def labels_ahead(batch: Batch, ahead: int) -> Int[Tensor, "batch time"]:
    """For each place the label that stands ``ahead`` places later, if that place is of the same document."""
    labels = torch.full_like(batch.labels, IGNORE)
    seg = torch.where(batch.tokens.pos >= 0, batch.tokens.segments, -1)
    here = (seg[:, :-ahead] == seg[:, ahead:]) & (seg[:, ahead:] >= 0)
    labels[:, :-ahead] = torch.where(here, batch.labels[:, ahead:], IGNORE)
    return labels


# --- replaced-token detection ----------------------------------------------------------------------------------------


def generator_spec(spec: EncoderSpec) -> EncoderSpec:
    """A smaller encoder that fills in masks: as many blocks, narrower, on vectors of the discriminator's width."""
    width = max(1, round(spec.d_model * GENERATOR_WIDTH / 8)) * 8
    of = encoder(spec.vocab_size, spec.context, spec.n_layers, width, math.gcd(width, 64))
    return replace(of, embed=replace(of.embed, d_embed=spec.d_embed))


def generator_for(spec: EncoderSpec, table: TokenTable) -> Encoder:
    """The generator of a discriminator, on its own table of vectors."""
    return Encoder(generator_spec(spec), table)


@dataclass(frozen=True, eq=False)
class ReplacedTokens:
    """Masked tokens are drawn from a generator, which learns to fill them in; the model tells replaced tokens from
    those of the text, at every place (Clark et al. 2020, section 2).

    A draw that hits the right token counts as the text's. The draws follow from ``batch.draws``, so from (seed, step,
    row). weight: of one term of the model beside one of the generator.
    """

    aid: Encoder
    weight: float

    def __call__(self, model: Model, batch: Batch) -> Float[Tensor, ""]:
        predictions = self.aid.predictions(batch)
        told = self.told(batch, predictions)
        return predictions.nll(batch.labels) + self.weight * model.nll_sum(told)

    def count(self, batch: Batch) -> int:
        """Masked tokens."""
        return int((batch.labels != IGNORE).sum())

    def measured(self, model: Model, batch: Batch) -> tuple[Float[Tensor, ""], int, int]:
        """(nats, places, replaced tokens) of the model's own task."""
        told = self.told(batch, self.aid.predictions(batch))
        return model.nll_sum(told), int((told.labels != IGNORE).sum()), int((told.labels == 1).sum())

    @torch.no_grad()
    def told(self, batch: Batch, predictions: Predictions) -> Batch:
        """What the model reads, and for each token whether it was replaced, 1, or not, 0."""
        if batch.draws is None:
            raise DataError("the batch has no numbers to draw tokens by", "use a feed made for replaced tokens")
        masked = batch.labels != IGNORE
        drawn = drawn_tokens(predictions, masked, batch.draws)
        ids, truth = batch.ids.masked_scatter(masked, drawn), torch.where(masked, batch.labels, batch.ids)
        labels = torch.where(batch.tokens.pos >= 0, (ids != truth).long(), IGNORE)
        return replace(batch, ids=ids, labels=labels)


def drawn_tokens(
    predictions: Predictions, masked: Bool[Tensor, "batch time"], draws: Float[Tensor, "batch time"]
) -> Int[Tensor, " masked"]:
    """A token for each masked place: the first up to which the distribution holds more than its number in [0, 1)."""
    states = predictions.states[masked][None]
    upto = replace(predictions, states=states).logits()[0].double().softmax(-1).cumsum(-1)
    return torch.searchsorted(upto, draws[masked].double()[:, None], right=True)[:, 0].clamp_max(upto.shape[-1] - 1)
