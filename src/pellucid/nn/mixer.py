"""What a token mixer answers for itself: its name, what it shares with other layers, and what it keeps between calls.

A new mixer is one module that derives from ``Mixer`` (or from ``RunningState``) and says ``@computes(ItsSpec)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.batch import Tokens
from pellucid.nn.documents import Documents, OpenDocuments, find_documents
from pellucid.nn.rope import rotation
from pellucid.nn.stores import LayerCache, StateCache, StorePlan
from pellucid.nn.view import View
from pellucid.spec import RotarySpec
from pellucid.taps import Tapped

Store: TypeAlias = LayerCache | StateCache
ScoreBias: TypeAlias = Callable[[Tokens, Tokens], Tensor]  # (queries, keys) -> (rows, heads, query, key)


def split_heads(x: Float[Tensor, "batch time width"], head_dim: int) -> Float[Tensor, "batch heads time head_dim"]:
    """Cut the last axis into heads: (b, t, h·d) -> (b, h, t, d)."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def merge_heads(z: Float[Tensor, "batch heads time head_dim"]) -> Float[Tensor, "batch time width"]:
    """The inverse: (b, h, t, d) -> (b, t, h·d)."""
    return z.transpose(1, 2).flatten(-2)


class Mixer(Tapped, ABC):
    """A module whose ``forward(x, view, past)`` mixes the tokens of each row and returns what the stream is to gain.

    kind: the name of its sublayer in a block, and so of its weights and activation points.
    reads_memory: whether forward also takes an encoder's states: ``forward(x, view, past, cross, cross_past)``.
    """

    kind: ClassVar[str]
    reads_memory: ClassVar[bool] = False

    @abstractmethod
    def view_key(self) -> Hashable:
        """What ``view`` depends on: mixers of one stack with equal keys share one view in a forward."""

    @abstractmethod
    def view(self, tokens: Tokens, past: Store | None, score_bias: ScoreBias | None) -> View | Documents:
        """What ``forward`` must know of the places of ``tokens``.

        past: the mixer's store in a cache, whose places for ``tokens`` are already taken. score_bias: the stack's term
        that is added to attention scores.
        """

    @abstractmethod
    def new_store(self, plan: StorePlan) -> Store:
        """What this mixer keeps of past tokens in a new cache, still empty."""


class RunningState(Mixer):
    """A mixer that keeps a state of fixed size per row, in place of all past tokens."""

    rotary: RotarySpec | None = None
    head_dim: int = 0  # that of the heads which ``rotary`` turns

    @abstractmethod
    def empty_state(self, batch: int, like: Tensor) -> tuple[Tensor, ...]:
        """The state of ``batch`` rows that have read nothing, on the device of ``like`` and for inputs of its dtype."""

    def view_key(self) -> Hashable:
        return (self.rotary, self.head_dim) if self.rotary else ()

    def view(self, tokens: Tokens, past: Store | None, score_bias: ScoreBias | None) -> Documents:
        turned = None if self.rotary is None else rotation(self.rotary, self.head_dim, tokens)
        open_documents = None if past is None else past.slots
        before = open_documents.before if isinstance(open_documents, OpenDocuments) else None
        return find_documents(tokens, before, turned)

    def new_store(self, plan: StorePlan) -> StateCache:
        like = torch.empty(0, dtype=plan.state_dtype, device=plan.device)
        return StateCache(plan.documents, self.empty_state(plan.batch, like))
