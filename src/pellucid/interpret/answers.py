"""Which answer is measured: the tokens that are right and wrong, and what of their logits counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.errors import UsageError
from pellucid.nn.models import Decoder, Encoder
from pellucid.nn.products import quantised_rows
from pellucid.nn.quantised import Matrix
from pellucid.nn.wide import wide, wide_dtype

Ids: TypeAlias = int | Sequence[int] | Int[Tensor, " batch"]
Measure: TypeAlias = Literal["logit", "logprob", "prob"]


@dataclass(frozen=True)
class Answer:
    """The token that should come next, and one that should not (None: no such one), for each row.

    measure: what of them counts: the logit, ln p in nats, or p; of two tokens the difference.
    """

    right: Int[Tensor, " batch"]
    wrong: Int[Tensor, " batch"] | None = None
    measure: Measure = "logit"

    @staticmethod
    def of(model: Decoder | Encoder, right: Ids, wrong: Ids | None, batch: int, measure: Measure = "logit") -> Answer:
        """An answer for ``batch`` rows. Raises UsageError for ids outside the vocabulary, and other numbers of them."""
        ids = [
            None if given is None else _ids(model, given, batch, name)
            for name, given in zip(("right", "wrong"), (right, wrong), strict=True)
        ]
        assert ids[0] is not None
        return Answer(ids[0], ids[1], measure)

    def __call__(self, logits: Float[Tensor, "*cells batch vocab"]) -> Float[Tensor, "*cells batch"]:
        """The measure of each row, from its logits at the place of the answer."""
        scores = wide(logits)
        if self.measure != "logit":
            scores = scores.log_softmax(-1)
        return self._of(scores, self.right) - (0.0 if self.wrong is None else self._of(scores, self.wrong))

    def _of(
        self, scores: Float[Tensor, "*cells batch vocab"], ids: Int[Tensor, " batch"]
    ) -> Float[Tensor, "*cells batch"]:
        index = ids.expand(scores.shape[:-1])[..., None]
        found = scores.gather(-1, index)[..., 0]
        return found.exp() if self.measure == "prob" else found

    def direction(self, model: Decoder) -> Float[Tensor, "batch d_model"]:
        """The direction of the normed stream that the logit (difference) reads, before a soft cap."""
        rows = _unembedding(model, self.right)
        rows = rows if self.wrong is None else rows - _unembedding(model, self.wrong)
        return rows * model.head.scale

    def bias(self, model: Decoder) -> Float[Tensor, " batch"]:
        """What the head's own bias adds to it."""
        bias = model.head.bias
        if bias is None:
            return torch.zeros(len(self.right), dtype=wide_dtype(model.dtype), device=model.device)
        return wide(bias[self.right]) - (0.0 if self.wrong is None else wide(bias[self.wrong]))


def place_of(ids: Int[Tensor, "batch time"], read: int) -> int:
    """The position ``read``, negative ones counted from the end, as a number from 0. Raises UsageError for others."""
    time = ids.shape[1]
    if not -time <= read < time:
        raise UsageError(f"read = {read}, but a row has {time} tokens", f"positions run from {-time} to {time - 1}")
    return read % time


def _unembedding(model: Decoder, ids: Int[Tensor, " batch"]) -> Float[Tensor, "batch d_model"]:
    """The rows of the head's matrix for some tokens, opened where it is quantised."""
    table: nn.Module = model.embed.tokens if model.head.weight is None else model.head
    if isinstance(table, Matrix) and table.kind is not None:
        assert table.weight is not None
        return wide(quantised_rows(table.weight, ids, table.kind, model.dtype))
    weight = table.weight
    assert isinstance(weight, Tensor)
    return wide(weight[ids])


def _ids(model: Decoder | Encoder, given: Ids, batch: int, name: str) -> Int[Tensor, " batch"]:
    ids = torch.as_tensor(given, device=model.device)
    if ids.is_floating_point() or ids.dim() > 1 or (ids.dim() == 1 and len(ids) != batch):
        raise UsageError(f"{name} = {given!r} for {batch} rows", "give a token id, or one for each row")
    wrong = next((int(each) for each in ids.flatten() if not 0 <= each < model.spec.vocab_size), None)
    if wrong is not None:
        raise UsageError(f"{name}: token id {wrong} is outside the vocabulary 0..{model.spec.vocab_size - 1}")
    return ids.long().expand(batch)
