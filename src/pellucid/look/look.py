"""One look into a model that reads one text: guesses, losses, logit lens, attention, norms, what its head says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from pellucid.arguments import checked
from pellucid.checkpoints.by_name import opened
from pellucid.errors import UsageError
from pellucid.interpret.lens import logit_lens
from pellucid.interpret.record import capture
from pellucid.look import measure, panels, reading
from pellucid.look.seen import Across, Guesses, Look, ModelFacts, Panel, Token
from pellucid.look.text import is_special, label, prose, reader
from pellucid.nn.models import AnyModel, Decoder, Encoder, EncoderDecoder
from pellucid.spec import MaskedLMHeadSpec
from pellucid.text.tokenizer import Tokenizer

ASKED = "patch, trace, heads, explain and facts"


@checked(model="give a model, e.g. of pellucid.load, or the name of one")
def look(
    model: AnyModel | str | Path,
    text_or_ids: str | Sequence[int],
    top: int = 10,
    name: str = "model",
    target: str | Sequence[int] | None = None,
    *,
    patch: tuple[str | Sequence[int], str | Sequence[int]] | None = None,
    trace: str | None = None,
    heads: bool = False,
    explain: bool = False,
    facts: bool = False,
) -> Look:
    """Read a text (or token ids) once and keep everything worth seeing.

    model: also the name of one, which is then loaded.
    A text is read as the model expects one: begun with <|endoftext|>, in [CLS] … [SEP]; for a model that fills in
    masks, a mask written in the text is one. target: what an encoder–decoder writes, by default what it would write
    itself. patch: (clean, corrupt), two prompts whose likeliest next tokens differ: which states and heads make the
    difference. trace: words of the text, whose causal trace is drawn. heads: habits of heads, on a repeated random
    text. explain: which tokens are the reason of the next one, by several methods, and whether that is so. facts: which
    neurons say the next token. All five are of decoders. Raises UsageError for a model of images, an empty text, one
    longer than the model's context, ids outside the vocabulary, ``top`` below 1, a target where there is no encoder,
    and prompts and subjects that cannot be compared or found.
    """
    model = opened(model)
    if top < 1:
        raise UsageError(f"top = {top}", "show at least 1 guess")
    if isinstance(model, EncoderDecoder):
        if patch is not None or trace is not None or heads or explain or facts:
            raise UsageError(f"{ASKED} are of decoders that stand alone", "leave them out")
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
    ids = reading.tensor(reading.read(model, model.tokenizer, text_or_ids), model)
    measured = _measured(model, text_or_ids, patch, trace, heads, explain, facts)
    seen = _side(model, capture(model, ids, _points(model)), ids, model.tokenizer, top, name)
    return replace(seen, panels=measured)


def _measured(
    model: Decoder | Encoder,
    text_or_ids: str | Sequence[int],
    patch: tuple[str | Sequence[int], str | Sequence[int]] | None,
    trace: str | None,
    heads: bool,
    explain: bool,
    facts: bool,
) -> tuple[Panel, ...]:
    """What is measured beside the text's reading; nothing where nothing is asked for."""
    if patch is None and trace is None and not (heads or explain or facts):
        return ()
    if not isinstance(model, Decoder):
        raise UsageError(f"{ASKED} are of decoders, and this model is an encoder", "leave them out")
    found = () if patch is None else panels.patched(model, *patch)
    found += () if trace is None else panels.traced(model, text_or_ids, trace)
    found += panels.explained(model, text_or_ids) if explain else ()
    found += (panels.remembered(model, text_or_ids),) if facts else ()
    return (*found, panels.habitual(model)) if heads else found


def _look_at_pair(
    model: EncoderDecoder,
    text_or_ids: str | Sequence[int],
    target: str | Sequence[int] | None,
    top: int,
    name: str,
) -> Look:
    """The decoder's side, with the encoder's in ``across``."""
    encoder, decoder = model.encoder, model.decoder
    words = reading.read(encoder, model.tokenizer, text_or_ids)
    source = reading.tensor(words, model)
    ids = reading.tensor(reading.written(model, words, target), model)
    names = [part.path + point for part in (encoder, decoder) for point in _points(part)]
    acts = capture(model, ids, names, source)
    reads, writes = (_within(part, acts) for part in (encoder, decoder))
    across = Across(
        _side(encoder, reads, source, model.tokenizer, top, f"{name}: encoder"),
        measure.attention_across(writes, model.spec.decoder.n_layers, source.shape[1]),
    )
    return replace(_side(decoder, writes, ids, model.tokenizer, top, f"{name}: decoder"), across=across)


def _within(part: Decoder | Encoder, acts: measure.Acts) -> dict[str, Tensor]:
    """The activations of one side, by the names that they have there."""
    return {name.removeprefix(part.path): x for name, x in acts.items() if name.startswith(part.path)}


def _points(model: Decoder | Encoder) -> list[str]:
    """What a look reads of one stack, by the names it has there."""
    wanted = {point for points in measure.STREAMS.values() for point in points}
    wanted |= {*measure.OWN, *measure.ACROSS, "expert_ids", "expert_weights"}
    outside = {"embed", "final_norm"} | ({"logits"} if isinstance(model, Encoder) else set())

    def seen(name: str) -> bool:
        inside = name.split(".", 2)[2] in wanted if name.startswith("blocks.") else name in outside
        return inside or name.endswith("pooled")

    return [name for name in (full.removeprefix(model.path) for full in model.point_names()) if seen(name)]


def _side(
    model: Decoder | Encoder,
    acts: measure.Acts,
    ids: Int[Tensor, "1 time"],
    tokenizer: Tokenizer | None,
    top: int,
    name: str,
) -> Look:
    """The look at one stack that has read ``ids``."""
    spec, tokens, read = model.spec, ids[0].tolist(), reader(tokenizer)
    both_ways = isinstance(model, Encoder)
    points = ["embed", *(f"blocks.{layer}.resid_post" for layer in range(spec.n_layers))]
    attention = measure.attention(acts, spec.n_layers, ids.shape[1], both_ways=both_ways)
    guesses = _guesses(model, {model.path + point: acts[point] for point in points}, ids, tokenizer, top)
    guessed = set[int]() if guesses is None else {int(token) for row in guesses.lens for token in row.ids.flatten()}
    # in the order in which they have always been listed: those of the text, then those that are only guessed
    named = [*sorted(set(tokens)), *sorted(guessed - set(tokens))]
    return Look(
        model=_facts(model, name, max(len(pattern) for pattern in attention.patterns)),
        layers=tuple(map(measure.layer_facts, spec.stack.blocks)),
        tokens=tuple(Token(i, prose(read(i)), label(read(i)), is_special(tokenizer, i)) for i in tokens),
        labels={token: label(read(token)) for token in named},
        attention=attention,
        norms=measure.norms(acts, spec.n_layers),
        points=measure.points(acts, spec.n_layers, model.path),
        experts=measure.experts(spec.stack, acts),
        guesses=guesses,
        encoding=measure.encoding(model, acts, points) if isinstance(model, Encoder) else None,
    )


def _facts(model: Decoder | Encoder, name: str, n_heads: int) -> ModelFacts:
    spec = model.spec
    return ModelFacts(name, model.n_parameters, spec.n_layers, n_heads, spec.d_model, spec.vocab_size, spec.context)


def _guesses(
    model: Decoder | Encoder,
    residuals: dict[str, Tensor],
    ids: Int[Tensor, "1 time"],
    tokenizer: Tokenizer | None,
    top: int,
) -> Guesses | None:
    """What the model guesses after each layer and at last; None for an encoder whose head guesses no tokens."""
    if isinstance(model, Encoder) and not isinstance(model.spec.head, MaskedLMHeadSpec):
        return None
    ahead, mask = 0 if isinstance(model, Encoder) else 1, reading.mask_id(model, tokenizer)
    masked = [place for place, token in enumerate(ids[0].tolist()) if token == mask]
    return measure.guesses(logit_lens(model, residuals, ids, top, ahead), ids[0], ahead, masked)
