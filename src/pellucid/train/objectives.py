"""What training minimises: functions (model, batch) -> sum of losses. How many were summed is the batch's to know."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from pellucid.batch import IGNORE, Batch
from pellucid.nn.models import Decoder


@runtime_checkable  # the shape checks of the tests look
class Objective(Protocol):
    """(model, batch) -> summed loss in nats; ``count``: how many terms a batch has, known before any forward."""

    def __call__(self, model: Decoder, batch: Batch) -> Float[Tensor, ""]: ...

    @staticmethod
    def count(batch: Batch) -> int: ...


class CausalLM:
    """Next-token prediction: the sum of -ln p(label) over scored positions (Radford et al. 2018, equation 1)."""

    def __call__(self, model: Decoder, batch: Batch) -> Float[Tensor, ""]:
        return model.nll_sum(batch)

    @staticmethod
    def count(batch: Batch) -> int:
        """Scored positions."""
        return int((batch.labels != IGNORE).sum())


causal_lm = CausalLM()
