"""Faults of a forward: who sees whom, where tokens stand, what rows and documents know of each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from faults_base import Fault, called_with, of, through, without
from subjects import VOCAB, bert, decoder, encoder, gpt2, learned, llama, pair, t5
from torch import Tensor
from torch.nn import functional as F

from pellucid.batch import Tokens
from pellucid.nn import attention, kernels
from pellucid.nn.cache import Cache
from pellucid.nn.heads import PoolerHead
from pellucid.nn.kernels.reference import expand_heads, forbidden
from pellucid.nn.models import Decoder, EncoderDecoder
from pellucid.nn.slots import Contiguous
from pellucid.nn.stores import LayerCache, Memory
from pellucid.spec import PoolerHeadSpec
from pellucid.verify import hugging_face_facts as facts

Patch = pytest.MonkeyPatch


# --- the future ------------------------------------------------------------------------------------------------------


def one_too_far(model: Any, monkeypatch: Patch) -> None:
    """The mask's <= has a + 1: each query stands one place too far right."""
    lower = attention.lower

    def shifted(mask: Any, tokens: Tokens, keys: Tokens, **how: Any) -> Any:
        return lower(mask, Tokens(torch.where(tokens.pos < 0, -1, tokens.pos + 1), tokens.seg), keys, **how)

    monkeypatch.setattr(attention, "lower", shifted)


def their_one_too_far(model: Any, monkeypatch: Patch) -> None:
    import transformers.masking_utils as masks

    monkeypatch.setattr(masks, "causal_mask_function", lambda batch, head, q, k: k <= q + 1)


def eager(make: Any) -> Any:
    """A model whose mask is always written out."""
    return lambda: make("eager")


over_time = through(lambda x: x - 0.2 * x.mean(1, keepdim=True))
over_batch = through(lambda x: x - 0.2 * x.mean(0, keepdim=True))


def hidden_leak(x: Tensor) -> Tensor:
    """Adds nothing, but for the gradient: of the next token."""
    later = x.roll(-1, 1)
    return x + 0.1 * (later - later.detach())


def knows_the_next(ids: Tensor) -> Tensor:
    """A function whose logits name the token that comes."""
    return F.one_hot(ids, VOCAB).float() + F.one_hot(ids.roll(-1, 1), VOCAB).float()


def instead(function: Any) -> Any:
    """A plain function as the broken subject."""
    return lambda model, monkeypatch: function


def bigram(ids: Tensor) -> Tensor:
    """A clean function."""
    return F.one_hot((ids * 7 + 3) % VOCAB, VOCAB).float()


FUTURE = [
    *of(
        "future future-gradient",
        ("a mask with one token too many", decoder, one_too_far),
        ("a mask with one token too many, of an encoder–decoder", pair, one_too_far),
        ("theirs with one token too many", eager(gpt2), their_one_too_far),
        ("theirs with one token too many", eager(llama), their_one_too_far),
        ("a norm over time", decoder, over_time),
        ("a norm over time, of an encoder–decoder", pair, over_time),
        ("theirs, a norm over time", llama, over_time),
        ("theirs, a norm over time in the decoder", t5, over_time),
    ),
    *of("future", ("a function that looks ahead", lambda: bigram, instead(knows_the_next))),
    *of(
        "future-gradient",
        ("a leak of gradients alone", decoder, through(hidden_leak)),
        ("theirs, a leak of gradients alone", gpt2, through(hidden_leak)),
    ),
]

# --- padding ---------------------------------------------------------------------------------------------------------


def blind_to_padding(model: Any, monkeypatch: Patch) -> None:
    """Takes what it is told about places, and forgets it."""
    forward = model.forward
    model.forward = lambda ids, tokens=None, *rest: forward(ids, None, *rest)


def by_column(model: Any, monkeypatch: Patch) -> None:
    """Padding is masked, but positions count it: the old way to pad on the left."""
    forward = model.forward

    def counted(ids: Tensor, tokens: Tokens | None = None, *rest: Any) -> Tensor:
        if tokens is not None:
            tokens = Tokens(torch.arange(ids.shape[1]).expand_as(ids).where(tokens.pos >= 0, -1))
        return forward(ids, tokens, *rest)

    model.forward = counted


def source_unmasked(model: Any, monkeypatch: Patch) -> None:
    """The encoder is told of padding, but the decoder attends to all that was read."""

    def encode(self: EncoderDecoder, ids: Tensor, tokens: Tokens | None = None) -> Memory:
        tokens = Tokens.plain(*ids.shape, device=ids.device) if tokens is None else tokens
        return Memory(self.encoder.states(ids, tokens), Tokens.plain(*ids.shape, device=ids.device))

    monkeypatch.setattr(EncoderDecoder, "encode", encode)


def mean_of_all(model: Any, monkeypatch: Patch) -> None:
    """A mean over columns instead of tokens."""
    monkeypatch.setattr(PoolerHead, "pool", lambda self, x, tokens: x.mean(1))


def pooled() -> Any:
    return encoder(PoolerHeadSpec("mean"))


def heard(ids: Tensor, attention_mask: Tensor) -> Tensor:
    """A clean function that takes a mean of what it read so far; ``unheard`` has no ear for padding."""
    seen = F.one_hot(ids, VOCAB).float() * attention_mask[..., None]
    return seen.cumsum(1) / attention_mask.cumsum(1).clamp(min=1)[..., None]


def unheard(ids: Tensor, attention_mask: Tensor) -> Tensor:
    return heard(ids, torch.ones_like(attention_mask))


PADDING = [
    *of(
        "padding-left padding-middle",
        ("positions count padding", learned, by_column),
        ("theirs are given no positions", gpt2, without("position_ids")),
        ("a decoder blind to padding", decoder, blind_to_padding),
    ),
    *of(
        "padding-left padding-right padding-middle",
        ("an encoder blind to padding", encoder, blind_to_padding),
        ("a mean over padding", pooled, mean_of_all),
        ("theirs are given no mask", bert, without("attention_mask")),
    ),
    *of("padding-left", ("theirs are given no mask", llama, without("attention_mask", "position_ids"))),
    *of("padding-left", ("a function deaf to its mask", lambda: heard, instead(unheard))),
    *of(
        "padding-left padding-right",
        ("the source's padding is attended to", pair, source_unmasked),
        ("theirs, the source's padding is attended to", t5, without("encoder_attention_mask", part="decoder")),
    ),
]

# --- rows and documents ----------------------------------------------------------------------------------------------


def segments_dropped(model: Any, monkeypatch: Patch) -> None:
    packed = Tokens.packed
    monkeypatch.setattr(Tokens, "packed", staticmethod(lambda seg: Tokens(packed(seg).pos)))


def positions_go_on(model: Any, monkeypatch: Patch) -> None:
    packed = Tokens.packed
    places = staticmethod(lambda seg: replace(packed(seg), pos=torch.arange(seg.shape[1]).expand_as(seg)))
    monkeypatch.setattr(Tokens, "packed", places)


def their_documents_unseen(model: Any, monkeypatch: Patch) -> None:
    import transformers.masking_utils as masks

    monkeypatch.setattr(masks, "find_packed_sequence_indices", lambda position_ids: None)


def no_zero_for_nothing(model: Any, monkeypatch: Patch) -> None:
    """Softmax over nothing but -inf."""

    def naive(q: Tensor, k: Tensor, v: Tensor, visible: Any, *, bias: Any = None, scale: float, **how: Any) -> Tensor:
        scores = (q @ expand_heads(k, q.shape[1]).mT) * scale + (0 if bias is None else bias)
        hide = forbidden(visible, scores)
        scores = scores if hide is None else scores.masked_fill(hide, -torch.inf)
        return scores.softmax(-1) @ expand_heads(v, q.shape[1])

    monkeypatch.setattr(kernels, "sdpa", naive)


def minus_infinity(given: dict[str, Any]) -> dict[str, Any]:
    """A mask of additive terms, with -inf where others use the smallest number."""
    if given.get("attention_mask") is None:
        return given
    away = (given["attention_mask"] == 0)[:, None, None].expand(-1, 1, given["input_ids"].shape[1], -1)
    return given | {"attention_mask": torch.zeros(away.shape).masked_fill(away, -torch.inf)}


ROWS = [
    *of(
        "batch",
        ("a statistic over the batch", decoder, over_batch),
        ("a statistic over the batch, of an encoder", encoder, over_batch),
        ("theirs, a statistic over the batch", gpt2, over_batch),
        ("theirs, a statistic over the batch", bert, over_batch),
        ("theirs, a statistic over the batch", t5, over_batch),
    ),
    *of(
        "packing",
        ("documents see each other", decoder, segments_dropped),
        ("documents see each other, in an encoder", encoder, segments_dropped),
        ("positions do not begin again", learned, positions_go_on),
        ("theirs see each other", llama, their_documents_unseen),
    ),
    *of(
        "empty-rows",
        ("softmax over nothing", encoder, no_zero_for_nothing),
        ("softmax over nothing", pair, no_zero_for_nothing),
        ("theirs, softmax over nothing", eager(bert), called_with(minus_infinity)),
    ),
]

# --- the cache -------------------------------------------------------------------------------------------------------


def forgets(model: Any, monkeypatch: Patch) -> None:
    extend = LayerCache.extend

    def forgotten(self: LayerCache, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        all_k, all_v = extend(self, k, v)
        all_v = all_v.clone()
        all_v[:, :, : -k.shape[2]] = 0.0
        return all_k, all_v

    monkeypatch.setattr(LayerCache, "extend", forgotten)


def begins_again(model: Any, monkeypatch: Patch) -> None:
    """Each piece stands where the first stood."""
    monkeypatch.setattr(Cache, "continuing", lambda self, time: Tokens.plain(self.batch, time))


def not_advanced(model: Any, monkeypatch: Patch) -> None:
    """The next piece overwrites this one."""
    monkeypatch.setattr(Contiguous, "commit", lambda self, tokens: None)


def padding_kept(model: Any, monkeypatch: Patch) -> None:
    """Cached padding becomes a token like any other."""
    take = Contiguous.take

    def taken(self: Contiguous, tokens: Tokens) -> None:
        take(self, Tokens(tokens.pos.clamp(min=0), tokens.seg, tokens.start))

    monkeypatch.setattr(Contiguous, "take", taken)


def their_cache_forgets(model: Any, monkeypatch: Patch) -> None:
    from transformers.cache_utils import DynamicLayer

    update = DynamicLayer.update

    def forgotten(self: Any, k: Tensor, v: Tensor, *rest: Any, **how: Any) -> tuple[Tensor, Tensor]:
        all_k, all_v = update(self, k, v, *rest, **how)
        all_v = all_v.clone()
        all_v[:, :, : -k.shape[2]] = 0.0
        return all_k, all_v

    monkeypatch.setattr(DynamicLayer, "update", forgotten)


def positions_restart(given: dict[str, Any]) -> dict[str, Any]:
    return given | {"position_ids": torch.arange(given["input_ids"].shape[1])[None]}


def mask_lost_later(given: dict[str, Any]) -> dict[str, Any]:
    """The mask comes with the prompt alone."""
    return given | {"attention_mask": None} if facts.cache_of(given) is not None else given


CACHE = [
    *of(
        "cache cache-ragged",
        ("a cache that forgets", decoder, forgets),
        ("a cache that forgets, of an encoder–decoder", pair, forgets),
        ("a cache that is not advanced", learned, not_advanced),
        ("theirs forgets", gpt2, their_cache_forgets),
        ("theirs forgets", llama, their_cache_forgets),
        ("theirs begins again at position 0", gpt2, called_with(positions_restart)),
    ),
    *of("cache", ("a cache that begins again at position 0", learned, begins_again)),
    *of(
        "cache-ragged",
        ("padding is kept as tokens", decoder, padding_kept),
        ("theirs loses the mask after the prompt", llama, called_with(mask_lost_later)),
    ),
]

# --- compiled, and twice the same ------------------------------------------------------------------------------------


def other_code(model: Any, monkeypatch: Patch) -> None:
    """A branch for the compiler that is not quite the other one."""
    part = model.blocks[1] if isinstance(model, Decoder) else model.transformer.h[1]
    forward = part.forward

    def branched(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(x.roll(1, -1) if torch.compiler.is_compiling() else x, *args, **kwargs)

    part.forward = branched


dice_left = through(lambda x: F.dropout(x, 0.1, training=True))

AGAIN = [
    *of(
        "compiled",
        ("another branch for the compiler", decoder, other_code),
        ("theirs, another branch for the compiler", gpt2, other_code),
    ),
    *of(
        "deterministic",
        ("dropout left on", decoder, dice_left),
        ("dropout left on", encoder, dice_left),
        ("theirs, dropout left on", llama, dice_left),
        ("theirs, dropout left on", t5, dice_left),
    ),
]

FAULTS: list[Fault] = [*FUTURE, *PADDING, *ROWS, *CACHE, *AGAIN]
