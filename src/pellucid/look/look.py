"""One look into a model that reads one text: guesses, losses, logit lens, attention, norms, what its head says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.errors import UsageError, shown
from pellucid.interpret.capture import capture
from pellucid.interpret.lens import logit_lens
from pellucid.look import measure
from pellucid.look.display import is_special, label, prose, reader
from pellucid.look.seen import Look, ModelFacts, Token
from pellucid.nn.models import AnyModel, Decoder, Encoder, EncoderDecoder
from pellucid.spec import ClassifierHeadSpec, MaskedLMHeadSpec, TaggerHeadSpec

_MOST_WRITTEN = 64  # tokens that an encoder–decoder writes where nobody says what it should have


def look(
    model: AnyModel,
    text_or_ids: str | Sequence[int],
    top: int = 10,
    name: str = "model",
    target: str | Sequence[int] | None = None,
) -> Look:
    """Read a text (or token ids) once and keep everything worth seeing.

    A text is read as the model expects one: begun with <|endoftext|>, in [CLS] … [SEP]; for a model that fills in
    masks, a mask written in the text is one. target: what an encoder–decoder writes, by default what it would write
    itself. Raises UsageError for a model of images, an empty text, one longer than the model's context, ids outside the
    vocabulary, ``top`` below 1, and a target where there is no encoder.
    """
    if top < 1:
        raise UsageError(f"top = {top}", "show at least 1 guess")
    if isinstance(model, EncoderDecoder):
        return _look_at_pair(model, text_or_ids, target, top, name)
    if target is not None:
        raise UsageError("a target is what an encoder–decoder writes, and this model has no encoder", "leave it out")
    if isinstance(model, Decoder) and model.spec.reads_memory:
        raise UsageError("this decoder answers what an encoder reads", "look at the whole encoder–decoder")
    if isinstance(model, Encoder) and model.spec.embed.patches is not None:
        raise UsageError(
            "look shows texts, and this model reads images",
            "read its patterns with model.taps(read=...); model.point_names() lists them",
        )
    ids = _tensor(_read(model, model.tokenizer, text_or_ids), model)
    return _side(model, capture(model, ids, _points(model)), ids, model.tokenizer, top, name)


def _look_at_pair(
    model: EncoderDecoder,
    text_or_ids: str | Sequence[int],
    target: str | Sequence[int] | None,
    top: int,
    name: str,
) -> Look:
    """The decoder's side, with the encoder's in ``source``."""
    source = _tensor(_read(model.encoder, model.tokenizer, text_or_ids), model)
    ids = _tensor(_written(model, source, target), model)
    parts: tuple[Encoder, Decoder] = (model.encoder, model.decoder)
    acts = capture(model, ids, [part.path + point for part in parts for point in _points(part)], source)
    reads, writes = (
        {point: acts[part.path + point] for point in _points(part) if part.path + point in acts} for part in parts
    )
    read = _side(model.encoder, reads, source, model.tokenizer, top, f"{name}: encoder")
    wrote = _side(model.decoder, writes, ids, model.tokenizer, top, f"{name}: decoder")
    cross = measure.patterns(writes, model.spec.decoder.n_layers, _ACROSS, source.shape[1])
    heads = tuple(measure.cross_habits(i, h, head) for i, layer in enumerate(cross) for h, head in enumerate(layer))
    return replace(wrote, source=read, cross=cross, cross_heads=heads)


def _written(model: EncoderDecoder, source: Int[Tensor, "batch time"], target: str | Sequence[int] | None) -> list[int]:
    """What the decoder is shown to write, behind its first token: the target, or else its own greedy choice."""
    start, context = model.spec.start_id, model.spec.context
    if target is not None:
        return [start, *_read(model.decoder, model.tokenizer, target, context - 1)]
    ends, never = ((), ()) if model.tokenizer is None else (model.tokenizer.stop_ids, model.tokenizer.never_ids)
    ids = [start]
    with torch.inference_mode():
        cache = model.new_cache(source, capacity=min(_MOST_WRITTEN, context))
        while len(ids) < min(_MOST_WRITTEN, context):
            logits = model.decoder(_tensor(ids[-1:], model), cache=cache)[0, -1]
            logits[[number for number in never if number < len(logits)]] = -torch.inf
            ids.append(int(logits.argmax()))
            if ids[-1] in ends:
                break
    return ids


def _tensor(ids: list[int], model: AnyModel) -> Int[Tensor, "1 time"]:
    return torch.tensor([ids], device=next(model.parameters()).device)


def _read(
    model: Decoder | Encoder, tokenizer: Any, text_or_ids: str | Sequence[int], room: int | None = None
) -> list[int]:
    """The ids to look at; raises UsageError for what cannot be looked at."""
    if isinstance(text_or_ids, str):
        if not text_or_ids:
            raise UsageError("the text is empty", "give at least one character to look at")
        if tokenizer is None:
            raise UsageError("this model has no tokenizer, so it cannot read a text", "give token ids instead")
        ids = _encode(model, tokenizer, text_or_ids)
    else:
        ids = [int(token) for token in text_or_ids]
        if not ids:
            raise UsageError("there are no token ids", "give at least one token to look at")
    vocab_size, context = model.spec.vocab_size, model.spec.context if room is None else room
    for place, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise UsageError(
                f"token id {token} (at place {place}) is not in the vocabulary of {vocab_size}",
                f"ids run from 0 to {vocab_size - 1}; was the text encoded with another tokenizer?",
            )
    if len(ids) > context:
        raise UsageError(
            f"the text is {len(ids)} tokens long, but the model's context is {context}",
            f"cut the text by at least {len(ids) - context} tokens",
        )
    return ids


def _encode(model: Decoder | Encoder, tokenizer: Any, text: str) -> list[int]:
    """As the model expects a text; a mask that is written in it becomes one where the model fills masks in."""
    mask = _mask_id(model, tokenizer)
    word = next((word for word, number in tokenizer.special.items() if number == mask), None)
    if word is None or word not in text:
        return tokenizer.encode_prompt(text)
    around, inside = tokenizer.encode_prompt("a"), tokenizer.encode("a")
    before = next(i for i in range(len(around)) if around[i : i + len(inside)] == inside)
    parts = text.split(word)
    ids = tokenizer.encode_between(parts, [word] * (len(parts) - 1))
    return [*around[:before], *ids, *around[before + len(inside) :]]


def _mask_id(model: Decoder | Encoder, tokenizer: Any) -> int | None:
    """The token that hides another, of a model that guesses what is hidden."""
    return tokenizer.mask_id if tokenizer is not None and isinstance(model.spec.head, MaskedLMHeadSpec) else None


def _points(model: Decoder | Encoder) -> list[str]:
    """What a look reads of one stack, by the names it has there."""
    wanted = {point for points in measure.STREAMS.values() for point in points}
    wanted |= {"attn.pattern", "cross.pattern", "rnn.pattern", "expert_ids", "expert_weights"}
    names = [name.removeprefix(model.path) for name in model.point_names()]
    outside = {"embed", "final_norm"} | ({"logits"} if isinstance(model, Encoder) else set())
    return [
        name
        for name in names
        if (name.split(".", 2)[2] in wanted if name.startswith("blocks.") else name in outside)
        or name.endswith("pooled")
    ]


def _side(
    model: Decoder | Encoder, acts: measure.Acts, ids: Int[Tensor, "1 time"], tokenizer: Any, top: int, name: str
) -> Look:
    """The look at one stack that has read ``ids``."""
    spec, n_layers = model.spec, model.spec.n_layers
    both_ways = isinstance(model, Encoder)
    points = ["embed", *(f"blocks.{layer}.resid_post" for layer in range(n_layers))]
    patterns = measure.patterns(acts, n_layers, _OWN, ids.shape[1])
    found = [(i, h, head) for i, layer in enumerate(patterns) for h, head in enumerate(layer)]
    tokens, mask, read = ids[0].tolist(), _mask_id(model, tokenizer), reader(tokenizer)
    seen = Look(
        model=ModelFacts(
            name,
            sum(parameter.numel() for parameter in model.parameters()),
            n_layers,
            max(len(pattern) for pattern in patterns),
            spec.d_model,
            spec.vocab_size,
            spec.context,
        ),
        layers=tuple(map(measure.layer_facts, spec.stack.blocks)),
        tokens=tuple(Token(i, prose(read(i)), label(read(i)), is_special(tokenizer, i)) for i in tokens),
        labels={token: label(read(token)) for token in sorted(set(tokens))},
        **_NO_GUESSES,
        patterns=patterns,
        heads=tuple(measure.habits(layer, head, pattern, both_ways) for layer, head, pattern in found),
        norms=measure.norms(acts, n_layers),
        experts=measure.experts(spec.stack, acts),
        ahead=0 if both_ways else 1,
        masked=tuple(place for place, token in enumerate(tokens) if token == mask),
        alike=measure.alike(acts, points) if both_ways else (),
        pooled=measure.pooled(model, acts) if isinstance(model, Encoder) else None,
        classes=(classes := _classes(model, acts)),
        class_names=()
        if classes is None
        else tuple(map(shown, model.class_names or map(str, range(classes.shape[1])))),
    )
    if isinstance(model, Encoder) and not isinstance(model.spec.head, MaskedLMHeadSpec):
        return seen
    return _with_guesses(seen, model, {point: acts[point] for point in points}, ids, tokenizer, top)


_OWN, _ACROSS = ("attn.pattern",), ("cross.pattern", "rnn.pattern")  # the latter of a recurrence that looks back
_NO_GUESSES: dict[str, Any] = {
    "top_ids": np.zeros((0, 0), np.int64),
    "top_probs": np.zeros((0, 0), np.float32),
    "entropy": np.zeros(0, np.float32),
    "loss": np.zeros(0, np.float32),
    "rank": np.zeros(0, np.int64),
    "lens": (),
}


def _with_guesses(
    seen: Look,
    model: Decoder | Encoder,
    residuals: dict[str, Tensor],
    ids: Int[Tensor, "1 time"],
    tokenizer: Any,
    top: int,
) -> Look:
    """The same with what the model guesses, after each layer and at last."""
    lens = logit_lens(model, residuals, ids, top, seen.ahead)
    rows = measure.lens_rows(lens, ids[0], seen.ahead)
    loss, rank = lens.actual_nll[-1, 0].numpy().copy(), rows[-1].actual_rank.copy()
    hidden = list(seen.masked)  # what stands there is the mask, which is no guess at what it hides
    loss[hidden], rank[hidden] = np.nan, 0
    read = reader(tokenizer)
    guessed = {int(token) for row in rows for token in row.ids.flatten()}
    return replace(
        seen,
        labels={**seen.labels, **{token: label(read(token)) for token in sorted(guessed)}},
        top_ids=rows[-1].ids,
        top_probs=rows[-1].probs,
        entropy=rows[-1].entropy,
        loss=loss,
        rank=rank,
        lens=rows,
    )


def _classes(model: Decoder | Encoder, acts: measure.Acts) -> Float[np.ndarray, "places classes"] | None:
    head = model.spec.head
    if isinstance(head, ClassifierHeadSpec | TaggerHeadSpec) and head.n_classes > 1:
        return acts["logits"][0].float().softmax(-1).cpu().numpy()
    return None
