"""What a model is given to read, checked before anything is read."""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.errors import UsageError


def refuse_unreadable(ids: Sequence[int], name: str, *, room: int, vocab_size: int) -> None:
    """Raise UsageError where there are more ids than ``room``, or ids outside the vocabulary.

    name: what the ids are called in the message, such as "the prompt". room: in tokens.
    """
    if len(ids) > room:
        raise UsageError(
            f"{name} is {len(ids):,} tokens long, but the model's context is {room:,}",
            f"shorten it by at least {len(ids) - room:,} tokens, or use a model that was trained on a longer context",
        )
    for place, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise UsageError(
                f"{name} has token id {token} at place {place}, but the vocabulary ends at {vocab_size - 1}",
                "encode it with the model's own tokenizer",
            )
