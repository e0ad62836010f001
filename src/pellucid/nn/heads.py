"""From the residual stream to what a model is for: a distribution over tokens or classes, or one vector a row."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.batch import Tokens
from pellucid.errors import DataError
from pellucid.nn.feed_forward import ACTIVATIONS
from pellucid.nn.loss import Predictions, Product
from pellucid.nn.norms import build_norm
from pellucid.nn.quantised import Matrix
from pellucid.nn.registry import computes
from pellucid.spec import ClassifierHeadSpec, LMHeadSpec, MaskedLMHeadSpec, PoolerHeadSpec, TaggerHeadSpec
from pellucid.spec.heads import Sizes
from pellucid.taps import Tapped


@computes(LMHeadSpec)
class LMHead(Matrix):
    """logits = scale · x · weightᵀ (+ bias), then cap · tanh(logits / cap) with a soft cap.

    A tied head has no weight of its own: it is given the embedding's ``head_table``, so there is no second name to keep
    in step. Something else than a plain matrix in the place of ``weight`` (adapted, sharded) overrides ``table``.
    """

    def __init__(self, spec: LMHeadSpec, sizes: Sizes):
        super().__init__()
        vocab_size, width = sizes.vocab_size, self.width(sizes)
        self.soft_cap, self.scale = spec.soft_cap, spec.scale
        self.weight = None if spec.tied else nn.Parameter(nn.init.constant_(torch.empty(vocab_size, width), 0.0))
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if spec.bias else None

    @staticmethod
    def width(sizes: Sizes) -> int:
        """That of the vectors which the table multiplies."""
        return sizes.d_model

    def table(self, embedding: Product) -> Product:
        """What makes logits of states: its own matrix, or the embedding's when tied."""
        if self.weight is None:
            return embedding
        return self.weight if self.kind is None else self.multiply

    def transform(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_model"]:
        """What is multiplied by the table."""
        return x if self.scale == 1.0 else x * self.scale

    def predictions(self, x: Float[Tensor, "batch time d_model"], embedding: Product) -> Predictions:
        """The distribution of each place's token, its logits not yet made."""
        return Predictions(x, self.table(embedding), self.bias, self.soft_cap, self.transform)

    def forward(self, x: Float[Tensor, "batch time d_model"], embedding: Product) -> Float[Tensor, "batch time vocab"]:
        return self.predictions(x, embedding).logits()


@computes(MaskedLMHeadSpec)
class MaskedLMHead(LMHead):
    """logits = norm(act(dense(x))) · weightᵀ + bias (Devlin et al. 2018, in their code); dense: d_model to d_embed."""

    def __init__(self, spec: MaskedLMHeadSpec, sizes: Sizes):
        super().__init__(LMHeadSpec(spec.tied, spec.bias), sizes)
        self.dense = nn.Linear(sizes.d_model, sizes.d_embed)
        self.activation = ACTIVATIONS[spec.activation]
        self.norm = build_norm(spec.norm, sizes.d_embed)

    @staticmethod
    def width(sizes: Sizes) -> int:
        return sizes.d_embed

    def transform(self, x: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_embed"]:
        return self.norm(self.activation(self.dense(x)))


@computes(PoolerHeadSpec)
class PoolerHead(Tapped):
    """One vector a row. Padding has no part in it, and a row without tokens is pooled as a zero vector.

    Point: ``pooled`` (batch, d_model).
    """

    def __init__(self, spec: PoolerHeadSpec, sizes: Sizes):
        super().__init__()
        self.take, self.normalise = spec.take, spec.normalise
        self.dense = nn.Linear(sizes.d_model, sizes.d_model) if spec.dense else None
        self.activation = torch.tanh if spec.activation == "tanh" else torch.relu

    def points(self) -> dict[str, str]:
        return {"pooled": "batch d_model"}

    def pool(self, x: Float[Tensor, "batch time d_model"], tokens: Tokens) -> Float[Tensor, "batch d_model"]:
        """The first or last token's state, or the mean or maximum over tokens."""
        valid = (tokens.pos >= 0)[..., None]  # (batch, time, 1)
        if self.take == "mean":
            return (x * valid).sum(1) / valid.sum(1).clamp(min=1)
        if self.take == "max":
            return torch.where(valid.any(1), x.masked_fill(~valid, -torch.inf).amax(1), torch.zeros_like(x[:, 0]))
        places = torch.arange(x.shape[1], device=x.device)[None, :, None].expand_as(valid)
        far = x.shape[1] if self.take == "first" else -1
        places = places.masked_fill(~valid, far)
        chosen = places.amin(1) if self.take == "first" else places.amax(1)  # (batch, 1)
        none = chosen == far
        picked = x.gather(1, chosen.masked_fill(none, 0)[..., None].expand(-1, -1, x.shape[-1]))[:, 0]
        return picked.masked_fill(none, 0.0)

    def forward(self, x: Float[Tensor, "batch time d_model"], tokens: Tokens) -> Float[Tensor, "batch d_model"]:
        """Raises DataError for packed rows, which hold several texts."""
        if tokens.seg is not None:
            raise DataError("a packed row is several texts, and has no one vector", "give each text a row of its own")
        y = self.pool(x, tokens)
        y = y if self.dense is None else self.activation(self.dense(y))
        return self.tap("pooled", F.normalize(y, dim=-1) if self.normalise else y)


@computes(ClassifierHeadSpec)
class ClassifierHead(nn.Module):
    """Logits of each row's class: W pooled(x) + b."""

    def __init__(self, spec: ClassifierHeadSpec, sizes: Sizes):
        super().__init__()
        self.pooler = PoolerHead(spec.pooler, sizes)
        self.out = nn.Linear(sizes.d_model, spec.n_classes)

    def predictions(self, x: Float[Tensor, "batch time d_model"], tokens: Tokens) -> Predictions:
        """The distribution of each row's class, its logits not yet made."""
        return Predictions(self.pooler(x, tokens)[:, None], self.out)

    def forward(self, x: Float[Tensor, "batch time d_model"], tokens: Tokens) -> Float[Tensor, "batch 1 classes"]:
        return self.predictions(x, tokens).logits()


@computes(TaggerHeadSpec)
class TaggerHead(nn.Module):
    """Logits of each token's class: W x + b."""

    def __init__(self, spec: TaggerHeadSpec, sizes: Sizes):
        super().__init__()
        self.out = nn.Linear(sizes.d_model, spec.n_classes)

    def predictions(self, x: Float[Tensor, "batch time d_model"], tokens: Tokens) -> Predictions:
        """The distribution of each token's class, its logits not yet made."""
        return Predictions(x, self.out)

    def forward(self, x: Float[Tensor, "batch time d_model"], tokens: Tokens) -> Float[Tensor, "batch time classes"]:
        return self.predictions(x, tokens).logits()
