"""Two prompts that are compared: the one whose activations are put in, and the one that they are put into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from pellucid.engine.prompts import refuse_unreadable
from pellucid.errors import UsageError
from pellucid.nn.models import Decoder, Encoder

Prompt: TypeAlias = str | Sequence[int] | Sequence[Sequence[int]] | Tensor
NOWHERE = -1


@dataclass(frozen=True)
class Pair:
    """Prompts to compare, a row each. align: for each position of ``corrupt`` the one of ``clean`` that stands for it;
    NOWHERE (-1) where there is none."""

    clean: Int[Tensor, "batch clean_time"]
    corrupt: Int[Tensor, "batch time"]
    align: tuple[int, ...]

    @property
    def alike(self) -> bool:
        """Whether each position stands for itself."""
        return self.clean.shape == self.corrupt.shape and self.align == tuple(range(self.corrupt.shape[1]))

    @property
    def same_until(self) -> int:
        """How many tokens at the beginning are the same in both, in all rows, each in its own place."""
        time = min(self.clean.shape[1], self.corrupt.shape[1])
        same = (self.clean[:, :time] == self.corrupt[:, :time]).all(0).tolist()
        return next((t for t in range(time) if not same[t] or self.align[t] != t), time)


def pair(
    model: Decoder | Encoder,
    clean: Prompt,
    corrupt: Prompt,
    align: Literal["ends"] | Sequence[int] | None = None,
) -> Pair:
    """Two prompts (texts, ids, or rows of ids) as ids of the model, checked.

    align: where each position of ``corrupt`` stands in ``clean``, -1 for nowhere; "ends": the tokens that both begin
    with, and those that both end with, each in its place; positions between them have no partner. None: the prompts
    have as many tokens. Raises UsageError for prompts of different lengths without it, and for what cannot be read.
    """
    a, b = (rows_of(model, prompt, name) for prompt, name in ((clean, "clean"), (corrupt, "corrupt")))
    if len(a) != len(b):
        raise UsageError(f"{len(a)} clean prompts and {len(b)} corrupt ones", "give as many of each")
    if align is None and a.shape[1] != b.shape[1]:
        raise UsageError(
            f"the clean prompt has {a.shape[1]} tokens, the corrupt one {b.shape[1]}, so their positions do not match",
            'use words of as many tokens, or align="ends" (what both begin and end with), or give align= yourself',
        )
    if align is None:
        found = tuple(range(b.shape[1]))
    else:
        found = _ends(a, b) if align == "ends" else tuple(int(place) for place in align)
    if len(found) != b.shape[1] or any(not NOWHERE <= place < a.shape[1] for place in found):
        raise UsageError(
            f"align = {list(found)}", f"give one position of the clean prompt, -1 to {a.shape[1] - 1}, for each token"
            f" of the corrupt one ({b.shape[1]})",
        )  # fmt: skip
    return Pair(a, b, found)


def rows_of(model: Decoder | Encoder, prompt: Prompt, name: str = "the prompt") -> Int[Tensor, "batch time"]:
    """A prompt as rows of ids where the model is. Raises UsageError for one that cannot be read."""
    if isinstance(prompt, str):
        if model.tokenizer is None:
            raise UsageError("this model has no tokenizer, so it cannot read a text", "give token ids instead")
        prompt = model.tokenizer.encode_prompt(prompt)
    try:
        ids = torch.as_tensor(prompt, device=model.device)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} is no text, and no ids in rows of one length", "one list of ids a row") from error
    ids = ids[None] if ids.dim() == 1 else ids
    if ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        raise UsageError(f"{name} has the shape {tuple(ids.shape)}", "give a text, ids, or rows of ids, at least one")
    for row in ids.tolist():
        refuse_unreadable(row, name, room=model.spec.context, vocab_size=model.spec.vocab_size)
    return ids.long()


def _ends(clean: Int[Tensor, "batch clean_time"], corrupt: Int[Tensor, "batch time"]) -> tuple[int, ...]:
    """Positions that both prompts share at their beginning and at their end, in all rows."""
    n, m = clean.shape[1], corrupt.shape[1]
    short = min(n, m)
    first = (clean[:, :short] == corrupt[:, :short]).all(0).tolist()
    last = (clean.flip(1)[:, :short] == corrupt.flip(1)[:, :short]).all(0).tolist()
    begins = next((i for i, same in enumerate(first) if not same), short)
    ends = min(next((i for i, same in enumerate(last) if not same), short), short - begins)
    return tuple(t if t < begins else t - m + n if t >= m - ends else NOWHERE for t in range(m))
