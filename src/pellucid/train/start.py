"""The model as it is before the first step: drawn by a rule, or another run's or a published one's."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from pellucid.engine.compiling import compilable, compile_each
from pellucid.errors import UsageError, suggest
from pellucid.nn.embed import Embedding
from pellucid.nn.init import build_undrawn, initialise
from pellucid.nn.models import AnyModel, Model, build_model
from pellucid.nn.residual import Sublayer
from pellucid.train.config import Run


@dataclass(frozen=True, eq=False)
class Base:
    """The model that a run goes on from. weights: hash of its weights, by which the run knows it again."""

    model: AnyModel
    weights: str


def starting_model(run: Run, base: Base | None = None, *, blank: bool = False) -> AnyModel:
    """The run's model in training mode: weights by (rule, seed) or those of ``base``, the ones to freeze frozen,
    dropout set, blocks compiled if asked.

    blank: the weights hold anything; the caller fills them. Raises UsageError for a pattern that freezes nothing.
    """
    if blank:
        model = build_undrawn(run.model)
    elif base is not None:
        model = build_undrawn(run.model)
        model.load_state_dict(base.model.state_dict())
    else:
        model = initialise(build_model(run.model), run.start.init, run.seed)
    freeze(model, run.start.freeze)
    for module in model.modules():
        if isinstance(module, Sublayer | Embedding):
            module.dropout = run.objective.dropout
    if run.runtime.compile:
        compile_each(compilable(model))
    return model.train()


def freeze(model: Model, patterns: tuple[str, ...]) -> None:
    """Parameters of these names, or that match these patterns, take no gradient any more.

    Raises UsageError for a pattern that matches none, or where nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        found = [name for name in parameters if fnmatchcase(name, pattern)]
        if not found:
            raise UsageError(f"freeze: the model has no parameter {pattern!r}", suggest(pattern, parameters))
        for name in found:
            parameters[name].requires_grad_(False)
    if patterns and not any(p.requires_grad for p in parameters.values()):
        raise UsageError(f"freeze: {' '.join(patterns)} leaves nothing to train", "freeze fewer parameters")
