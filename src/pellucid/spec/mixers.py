"""What the two slots of a block for mixing tokens ask of a spec: a new mixer derives from these and answers.

The module of ``nn`` that computes it says so (``nn.registry``). Everything that needs no tensor (what it costs, what it
keeps, its words) is answered by the spec itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pellucid.predicates import Ahead, Mask
from pellucid.spec.costs import Cost
from pellucid.spec.parts import BiasSpec
from pellucid.spec.words import Part
from pellucid.values import Value


@dataclass(frozen=True)
class MixerSpec(Value, abstract=True):
    """What mixes the tokens of a row: one slot of a block, whatever stands in it.

    reads_memory: whether it also attends to an encoder's states.
    """

    reads_memory: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """What it is called, in a word or two."""
        raise NotImplementedError

    @property
    def visible(self) -> Mask | None:
        """Which pairs of tokens are compared; None for a mixer that compares none."""
        return None

    @property
    def ahead(self) -> Ahead | None:
        """Which later tokens it lets a token see at most; None where there is no such bound."""
        return Ahead()

    @property
    def asks_part(self) -> bool:
        """Whether it must be told the part of each token (``Tokens.part``)."""
        return False

    @property
    def score_heads(self) -> int:
        """Heads whose scores a stack's bias is added to; 0 for a mixer without scores."""
        return 0

    def problem_in(self, block: str, d_model: int) -> tuple[str, str] | None:
        """Why it cannot stand in ``block`` (its name, for the message) on a stream of this width, and the remedy."""
        return None

    def cost(self, d_model: int) -> Cost:
        """Its parameters, work and activations on a stream of this width."""
        raise NotImplementedError

    def kept_bytes(self, d_model: int, time: int, source_time: int, bytes_per_value: int) -> int:
        """Bytes that a cache keeps for a row of ``time`` tokens and the ``source_time`` tokens that an encoder read."""
        raise NotImplementedError

    def part(self, d_model: int, bias: BiasSpec | None = None) -> Part:
        """The mixer in words, for tables and drawings, on a stream of this width; ``bias``: the stack's score term."""
        raise NotImplementedError


@dataclass(frozen=True)
class CrossSpec(Value, abstract=True):
    """What attends to an encoder's states as a sublayer of its own."""

    def problem_across(self) -> tuple[str, str] | None:
        """Why it cannot attend to an encoder, and the remedy; None where it can."""
        return None

    def cost_across(self, d_model: int) -> Cost:
        """Its parameters, work and activations on a stream of this width."""
        raise NotImplementedError

    def kept_bytes_across(self, d_model: int, source_time: int, bytes_per_value: int) -> int:
        """Bytes that a cache keeps of ``source_time`` tokens that an encoder has read, beside their states."""
        raise NotImplementedError

    def part_across(self, d_model: int) -> Part:
        """The sublayer in words, for tables and drawings, on a stream of this width."""
        raise NotImplementedError
