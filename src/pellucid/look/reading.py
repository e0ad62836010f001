"""What is looked at: a text or token ids, as the ids that a model reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from pellucid.engine.prompts import refuse_unreadable
from pellucid.engine.session import greedy
from pellucid.errors import UsageError
from pellucid.nn.models import AnyModel, Decoder, Encoder, EncoderDecoder
from pellucid.spec import MaskedLMHeadSpec
from pellucid.text.tokenizer import Tokenizer

# Tokens that an encoder–decoder writes where nobody says what it should have written.
MOST_WRITTEN = 64


def tensor(ids: Sequence[int], model: AnyModel) -> Int[Tensor, "1 time"]:
    """One row of ids where the model is."""
    return torch.tensor([list(ids)], device=next(model.parameters()).device)


def read(
    model: Decoder | Encoder, tokenizer: Tokenizer | None, text_or_ids: str | Sequence[int], room: int | None = None
) -> list[int]:
    """The ids to look at. A text is read as the model expects one; a mask written in it is one where masks are filled.

    room: how many ids there may be (default: the model's context). Raises UsageError for an empty text, a text without
    a tokenizer, more ids than there is room, and ids outside the vocabulary.
    """
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
    room = model.spec.context if room is None else room
    refuse_unreadable(ids, "the text", room=room, vocab_size=model.spec.vocab_size)
    return ids


def written(model: EncoderDecoder, source: Sequence[int], target: str | Sequence[int] | None) -> list[int]:
    """What the decoder is shown to write, behind its first token: the target, or else its own greedy choice."""
    start, context = model.spec.start_id, model.spec.context
    if target is not None:
        return [start, *read(model.decoder, model.tokenizer, target, context - 1)]
    roles = model.tokenizer
    stop, never = ((), ()) if roles is None else (roles.stop_ids, roles.never_ids)
    room = min(MOST_WRITTEN, context) - 1
    return [start, *greedy(model, [start], max_new_tokens=room, source=source, stop_ids=stop, never_ids=never)]


def mask_id(model: Decoder | Encoder, tokenizer: Tokenizer | None) -> int | None:
    """The token that hides another, of a model that guesses what is hidden."""
    return tokenizer.mask_id if tokenizer is not None and isinstance(model.spec.head, MaskedLMHeadSpec) else None


def _encode(model: Decoder | Encoder, tokenizer: Tokenizer, text: str) -> list[int]:
    mask = mask_id(model, tokenizer)
    word = next((word for word, number in tokenizer.special.items() if number == mask), None)
    if word is None or word not in text:
        return tokenizer.encode_prompt(text)
    around, inside = tokenizer.encode_prompt("a"), tokenizer.encode("a")
    before = next(i for i in range(len(around)) if around[i : i + len(inside)] == inside)
    parts = text.split(word)
    ids = tokenizer.encode_between(parts, [word] * (len(parts) - 1))
    return [*around[:before], *ids, *around[before + len(inside) :]]
