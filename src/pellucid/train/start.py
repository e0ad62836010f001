"""The model as it is before the first step: drawn by a rule, or another run's or a published one's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch

from pellucid.checkpoints.by_name import load
from pellucid.engine.compiling import compilable, compile_each
from pellucid.errors import UsageError
from pellucid.families.weights import tensors_of
from pellucid.nn.base import Model
from pellucid.nn.embed import Embedding
from pellucid.nn.init import initialise
from pellucid.nn.models import AnyModel, build_model
from pellucid.nn.residual import Sublayer
from pellucid.surgery.holding import names, train_only
from pellucid.surgery.lora import adapt
from pellucid.text.tokenizer import Tokenizer
from pellucid.train.config import Run

ADAPTER = "adapter"  # the name of the one that a run trains


@dataclass(frozen=True, eq=False)
class Base:
    """The model that a run goes on from, with its tokenizer. weights: their hash, by which the run knows it again."""

    model: AnyModel
    weights: str

    @staticmethod
    def load(name: str, *, quantised: bool = False) -> Base:
        """What ``pellucid.load`` finds under a name. Raises CheckpointError where that is no model."""
        model = load(name, quantised=quantised)
        digest = hashlib.sha256()
        for key, tensor in sorted(tensors_of(model).items()):
            digest.update(key.encode())
            digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return Base(model, digest.hexdigest())

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; None where it has none."""
        return self.model.tokenizer


def starting_model(run: Run, model: AnyModel | None = None) -> AnyModel:
    """The run's model in training mode: ``model``, or a new one whose weights are drawn by (rule, seed).

    An adapter is put in if the run trains one, and all else is frozen; the parameters to freeze are frozen, dropout is
    set, and the blocks are compiled if that was asked for.
    """
    if model is None:
        model = initialise(build_model(run.model), run.start.init, run.seed)
    if run.adapter.targets:
        if ADAPTER not in names(model):  # a checkpoint's model has it
            adapt(model, run.adapter.asked, name=ADAPTER, seed=run.seed)
        train_only(model, ADAPTER)
    freeze(model, run.start.freeze)
    set_dropout(model, run.objective.dropout)
    if run.runtime.compile:
        compile_each(compilable(model))
    return model.train()


def set_dropout(model: Model, share: float) -> None:
    """Dropout on each sublayer's output, and on embeddings."""
    for module in model.modules():
        if isinstance(module, Sublayer | Embedding):
            module.dropout = share


def freeze(model: Model, patterns: tuple[str, ...]) -> None:
    """Parameters of these names, or that match these patterns, take no gradient any more.

    Raises UsageError for a pattern that matches none, or where nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        found = [name for name in parameters if fnmatchcase(name, pattern)]
        if not found:
            near = get_close_matches(pattern, parameters, 1) or [next(iter(parameters))]
            raise UsageError(f"freeze: the model has no parameter {pattern!r}", f"name some, such as {near[0]!r}")
        for name in found:
            parameters[name].requires_grad_(False)
    if patterns and not any(p.requires_grad for p in parameters.values()):
        raise UsageError(f"freeze: {' '.join(patterns)} leaves nothing to train", "freeze fewer parameters")
