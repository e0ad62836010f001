"""A published encoder–decoder beside ours, with the same random weights: how far apart are they?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from against_hf import BATCH, TIME, VOCAB, every_block, gap, loss_gradient_gap, their_cache_name
from torch import Tensor

from pellucid.batch import IGNORE, Batch, Source, Tokens
from pellucid.nn.models import EncoderDecoder
from pellucid.spec import EncoderDecoderSpec
from pellucid.verify import hugging_face_facts as facts

SOURCE_TIME = 19  # another length than the target's, so that no one confuses the two


def random_pair() -> tuple[Tensor, Tensor]:
    """What is read, and what is written."""
    generator = torch.Generator().manual_seed(2)
    return tuple(torch.randint(VOCAB, (BATCH, time), generator=generator) for time in (SOURCE_TIME, TIME))  # type: ignore[return-value]


def ragged(side: str, time: int = SOURCE_TIME) -> Tensor:
    """Which places hold tokens, in rows of unequal length, padded on one side."""
    lengths, place = torch.tensor([time, time - 7, 2])[:, None], torch.arange(time).expand(BATCH, time)
    return place < lengths if side == "right" else place >= time - lengths


@torch.no_grad()
def pair_gap(model: EncoderDecoder, theirs: Any) -> float:
    source, ids = random_pair()
    return gap(model(source, ids), theirs(input_ids=source, decoder_input_ids=ids).logits)


@torch.no_grad()
def padded_pair_gap(model: EncoderDecoder, theirs: Any, side: str, tokens: Tokens | None = None) -> float:
    """A padded source. ``tokens``: what ours is told about it instead of the truth."""
    source, ids = random_pair()
    valid = ragged(side)
    want = theirs(input_ids=source, attention_mask=valid.long(), decoder_input_ids=ids).logits
    return gap(model(source, ids, Tokens.padded(valid) if tokens is None else tokens), want)


@torch.no_grad()
def cached_pair_gap(model: EncoderDecoder, theirs: Any) -> float:
    """A padded source, read once; then a chunk, and token by token: all logits, against the full forward too."""
    source, ids = random_pair()
    valid = ragged("right")
    mask, read = valid.long(), theirs.get_encoder()(input_ids=source, attention_mask=valid.long())
    full = theirs(encoder_outputs=read, attention_mask=mask, decoder_input_ids=ids).logits
    cache = model.new_cache(source, Tokens.padded(valid), TIME)
    past, name, worst = None, their_cache_name(theirs), 0.0
    for start, end in pairwise([0, 9, *range(10, TIME + 1)]):
        step = theirs(
            encoder_outputs=read,
            attention_mask=mask,
            decoder_input_ids=ids[:, start:end],
            use_cache=True,
            **{name: past},
        )
        past, logits = facts.cache_of(step), model.decoder(ids[:, start:end], cache=cache)
        worst = max(worst, gap(logits, step.logits), gap(logits, full[:, start:end]))
    return worst


@torch.no_grad()
def greedy_pair(model: EncoderDecoder, source: Tensor, valid: Tensor, n: int) -> Tensor:
    """The start token and ``n`` more."""
    cache = model.new_cache(source, Tokens.padded(valid), n)
    ids = new = torch.full((len(source), 1), model.spec.start_id)
    for _ in range(n):
        new = model.decoder(new, cache=cache)[:, -1:].argmax(-1)
        ids = torch.cat((ids, new), 1)
    return ids


@torch.no_grad()
def inner_pair_gaps(model: EncoderDecoder, theirs: Any) -> dict[str, float]:
    """What flows inside: attention patterns, to the source too, and residual streams of both sides."""
    source, ids = random_pair()
    read = [f"*.{point}" for point in ("attn.pattern", "cross.pattern", "resid_pre", "final_norm")]
    with model.taps(read=read) as acts:
        model(source, ids)
    usual = theirs.config._attn_implementation
    theirs.set_attn_implementation("eager")
    out = theirs(input_ids=source, decoder_input_ids=ids, output_attentions=True, output_hidden_states=True)
    theirs.set_attn_implementation(usual)
    lists = {
        "encoder.blocks.{}.attn.pattern": out.encoder_attentions,
        "decoder.blocks.{}.attn.pattern": out.decoder_attentions,
        "decoder.blocks.{}.cross.pattern": out.cross_attentions,
        "encoder.blocks.{}.resid_pre": out.encoder_hidden_states[:-1],
        "decoder.blocks.{}.resid_pre": out.decoder_hidden_states[:-1],
        "encoder.final_norm": out.encoder_hidden_states[-1:],
        "decoder.final_norm": out.decoder_hidden_states[-1:],
    }
    named = {name.format(i): x for name, several in lists.items() for i, x in enumerate(several)}
    assert named.keys() == acts.keys()
    return {name: gap(acts[name], want) for name, want in named.items()}


def pair_gradient_gap(family: ModuleType, model: EncoderDecoder, theirs: Any) -> float:
    """As ``gradient_gap``, of a padded source."""
    source, ids = random_pair()
    valid = ragged("right")
    labels = torch.cat((ids[:, 1:], torch.full((BATCH, 1), IGNORE)), 1)
    batch = Batch(ids, Tokens.plain(BATCH, TIME), labels, source=Source(source, Tokens.padded(valid)))
    loss = theirs(input_ids=source, attention_mask=valid.long(), decoder_input_ids=ids, labels=labels).loss
    return loss_gradient_gap(family, model, theirs, batch, loss)


def sides(spec: EncoderDecoderSpec, change: Callable[[Any], Any], which: str = "encoder decoder") -> EncoderDecoderSpec:
    """The spec with both sides, or the one that is named, changed."""
    return replace(spec, **{side: change(getattr(spec, side)) for side in which.split()})


def blocks_of(spec: EncoderDecoderSpec, which: str = "encoder decoder", **changes: Any) -> EncoderDecoderSpec:
    """As ``every_block``, on both sides or the one that is named."""
    return sides(spec, lambda side: every_block(side, **changes), which)
