"""What every model can do, whatever it is for: losses and likelihoods of a batch, activation points, its size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pellucid.batch import IGNORE, Batch
from pellucid.errors import DataError
from pellucid.nn.loss import Predictions
from pellucid.nn.quantised import stored_of
from pellucid.taps import Activations, Edit, Keep, Tapped, point_axes, tapped


class Model(Tapped):
    """What every model can do, whatever it is for. ``tokenizer`` is set by whoever loads both together.

    generation: what a published folder says of how its model writes; class_names: what it calls the classes that its
    head tells apart, () where nobody named them; sentences: how it reads a text that is to become a vector
    (``checkpoints.sentence.reading``). All are kept for those who open the model elsewhere.
    """

    spec: Any  # a ModelSpec; each kind of model says which
    entries: ClassVar[tuple[str, ...]] = ("nll_sum", "logprobs", "scores", "states", "unembed")  # called beside forward

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer: Any = None
        self.generation: Mapping[str, Any] = {}
        self.class_names: tuple[str, ...] = ()
        self.sentences: Mapping[str, Any] = {}

    def predictions(self, batch: Batch) -> Predictions:
        """The distribution of each label of a batch, its logits not yet made.

        Raises DataError for a model that predicts nothing, and for a batch that lacks what this one reads; TapError
        where somebody edits the point ``logits``, which no loss passes.
        """
        raise DataError(f"this {type(self).__name__} predicts nothing", "give its spec a head that does")

    def nll_sum(self, batch: Batch, smoothing: float = 0.0) -> Float[Tensor, ""]:
        """Sum of -ln p(label) over the scored places of a batch, in nats, each times its weight if there are any.

        smoothing: the share of each label that all entries are given alike (``nn.loss``). Never holds all logits, so a
        tap that reads ``logits`` hears nothing of it. Raises as ``predictions`` does.
        """
        return self.predictions(batch).nll(batch.labels, smoothing=smoothing, weights=batch.weights)

    def logprobs(self, batch: Batch) -> Float[Tensor, "batch labels"]:
        """ln p(label) of each label, in nats; 0 where it is IGNORE. Raises as ``predictions`` does."""
        return -self.predictions(batch).nll(batch.labels, reduction="tokens")

    def scores(self, batch: Batch) -> tuple[Float[Tensor, "batch labels"], Bool[Tensor, "batch labels"]]:
        """(``logprobs``, whether the label is the likeliest of all; True where it is IGNORE), from one forward."""
        predictions = self.predictions(batch)
        right = (predictions.likeliest() == batch.labels) | (batch.labels == IGNORE)
        return -predictions.nll(batch.labels, reduction="tokens"), right

    @property
    def dtype(self) -> torch.dtype:
        """The type of its floating-point weights; other weights do not count."""
        kinds = (p.dtype for p in self.parameters() if p.is_floating_point())
        return next(kinds, torch.get_default_dtype())

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    def taps(
        self,
        read: Iterable[str] | str = (),
        edit: Mapping[str, Edit] | None = None,
        *,
        rows: Sequence[int] | Tensor | None = None,
        keep: Keep = "last",
        gradients: bool = False,
    ) -> AbstractContextManager[Activations]:
        """``with model.taps(read=["blocks.*.attn.pattern"]) as acts: model(ids)``; see ``pellucid.taps.tapped``."""
        return tapped(self, read, edit, rows=rows, keep=keep, gradients=gradients)

    def point_names(self) -> list[str]:
        """Full names of all activation points."""
        return list(point_axes(self))

    @property
    def n_parameters(self) -> int:
        """How many numbers the model has learnt; those that are quantised count like others."""
        return sum(stored.shape.numel() for stored in stored_of(self).values())

    def __rich__(self) -> str:
        spec = self.spec
        reads = f"vocabulary {spec.vocab_size:,}" if spec.vocab_size else "images"
        return (
            f"[bold]{type(self).__name__}[/] {self.n_parameters / 1e6:.2f} M parameters · {spec.n_layers} layers"
            f" × {spec.d_model} wide · {reads} · context {spec.context:,}"
        )
