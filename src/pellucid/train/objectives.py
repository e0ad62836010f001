"""What training minimises: functions (model, batch) -> sum of losses. How many were summed is the batch's to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from pellucid.batch import IGNORE, Batch
from pellucid.errors import DataError, UsageError
from pellucid.nn.base import Model
from pellucid.nn.init import initialise
from pellucid.nn.models import Decoder, Encoder
from pellucid.nn.moe import MixtureOfExperts, load_balance, router_z
from pellucid.predicates import Ahead
from pellucid.spec import InitRule
from pellucid.train.aids import FurtherHeads, MultiToken, ReplacedTokens, generator_for
from pellucid.train.parts import ObjectiveSpec


@runtime_checkable  # the shape checks of the tests look
class Objective(Protocol):
    """(model, batch) -> summed loss in nats; ``count``: how many terms, or which sum of their weights, a batch has.

    The count is known before any forward.
    """

    def __call__(self, model: Model, batch: Batch) -> Float[Tensor, ""]: ...

    def count(self, batch: Batch) -> int | float: ...


class NegativeLogLikelihood:
    """The sum of -ln p(label) over scored places, whatever the model predicts: the next token (Radford et al. 2018,
    equation 1), a translation, hidden tokens (Devlin et al. 2018, section 3.1), a class."""

    def __call__(self, model: Model, batch: Batch) -> Float[Tensor, ""]:
        return model.nll_sum(batch)

    def count(self, batch: Batch) -> float | int:
        """Scored places, or the sum of their weights where the batch has weights."""
        scored = batch.labels != IGNORE
        return int(scored.sum()) if batch.weights is None else float(batch.weights[scored].sum())


nll = NegativeLogLikelihood()


@dataclass(frozen=True)
class Smoothed:
    """Label smoothing (Szegedy et al. 2015; Vaswani et al. 2017, section 5.4): a share of each label goes to all alike.

    The sum of (1 - smoothing) · -ln p(label) + smoothing · mean over the vocabulary of -ln p.
    """

    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise UsageError(f"smoothing = {self.smoothing}: a label keeps a share of itself", "0 <= smoothing < 1")

    def __call__(self, model: Model, batch: Batch) -> Float[Tensor, ""]:
        return model.nll_sum(batch, smoothing=self.smoothing)

    def count(self, batch: Batch) -> float | int:
        """The number of terms, the same as without smoothing."""
        return nll.count(batch)


@dataclass(frozen=True)
class Routed:
    """Another objective, and for each term of it what keeps the experts of every layer in use, and their router calm.

    balance, z: weights of ``nn.moe``'s ``load_balance`` and ``router_z``. They are means over a micro-batch's tokens,
    and not linear in it: the one loss that another split into micro-batches changes.
    """

    balance: float = 0.01  # Fedus et al. 2021, section 2.2
    z: float = 0.001  # Zoph et al. 2022, section 3
    base: Objective = nll

    def __call__(self, model: Model, batch: Batch) -> Float[Tensor, ""]:
        routers = [(name, m) for name, m in model.named_modules() if isinstance(m, MixtureOfExperts)]
        with model.taps(read=[m.path + "router_logits" for _, m in routers]) as acts:
            loss = self.base(model, batch)
        for name, router in routers:
            tokens = batch.tokens
            if name.startswith("encoder."):
                if batch.source is None:
                    raise DataError("an encoder–decoder needs something to read", "give the batch a source")
                tokens = batch.source.tokens
            logits, valid = acts[router.path + "router_logits"], tokens.pos >= 0
            extra = self.balance * load_balance(logits, router.top_k, valid) + self.z * router_z(logits, valid)
            loss = loss + self.count(batch) * extra
        return loss

    def count(self, batch: Batch) -> int | float:
        """The number of terms, the same as of the other objective."""
        return self.base.count(batch)


def aid_for(model: Model, spec: ObjectiveSpec, rule: InitRule, seed: int) -> Encoder | FurtherHeads | None:
    """What helps ``model`` to learn and is left out at the end, its weights drawn anew; None for most objectives.

    Raises UsageError for a model that cannot be helped so.
    """
    if spec.name == "rtd":
        assert isinstance(model, Encoder)  # no other model fits
        return initialise(generator_for(model.spec, model.embed.tokens), rule, seed)
    if spec.tokens_ahead == 1:
        return None
    if not isinstance(model, Decoder) or model.spec.ahead != Ahead():
        raise UsageError(
            f"tokens_ahead = {spec.tokens_ahead} is for a decoder that sees no later token", "leave it out"
        )
    return initialise(FurtherHeads(model.spec, spec.tokens_ahead - 1), rule, seed)


def objective_for(model: Model, spec: ObjectiveSpec, aid: Encoder | FurtherHeads | None = None) -> Objective:
    """What ``model`` is trained on: its own predictions, their labels smoothed if asked, and with experts their balance
    too. aid: that of ``aid_for``.

    Raises UsageError where smoothing is asked for and the objective has none.
    """
    if aid is not None:
        if spec.smoothing:
            raise UsageError("smoothing does not go with an objective that trains an aid", "leave one of the two out")
        return MultiToken(aid) if isinstance(aid, FurtherHeads) else ReplacedTokens(aid, spec.discriminator)
    base = Smoothed(spec.smoothing) if spec.smoothing else nll
    routed = any(isinstance(module, MixtureOfExperts) for module in model.modules())
    return Routed(spec.load_balance, spec.router_z, base) if routed else base
