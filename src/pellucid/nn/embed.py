"""From token ids, or the pixels of an image, to the residual stream."""

from __future__ import annotations

from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.batch import Tokens
from pellucid.errors import DataError
from pellucid.nn.loss import Product, logits_of
from pellucid.nn.norms import build_norm
from pellucid.nn.positions import build_positions
from pellucid.nn.quantised import QuantisedEmbedding
from pellucid.spec import EmbedSpec, PatchSpec

Inputs: TypeAlias = Int[Tensor, "batch time"] | Float[Tensor, "batch channels height width"]  # token ids, or images

TokenTable: TypeAlias = nn.Embedding | QuantisedEmbedding


class Patches(nn.Module):
    """One learned vector, then W p + b of each patch p, row by row (Dosovitskiy et al. 2021, equation 1).

    Paper names: E is ``project``, x_class is ``first``. A patch's values stand channel by channel, row by row.
    """

    def __init__(self, spec: PatchSpec, width: int):
        super().__init__()
        self.size, self.shape = spec.size, (spec.channels, spec.height, spec.width)
        self.first = nn.Parameter(torch.zeros(1, width))
        self.project = nn.Linear(spec.n_values, width)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch places d_embed"]:
        """Raises DataError for images of another shape."""
        if images.shape[1:] != self.shape:
            raise DataError(
                f"images of (channels, height, width) = {tuple(images.shape[1:])}, but the model reads {self.shape}",
                "resize them",
            )
        cut = images.unflatten(3, (-1, self.size)).unflatten(2, (-1, self.size))  # (b, c, down, size, across, size)
        patches = cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (b, down · across, c · size · size)
        return torch.cat((self.first.expand(len(images), 1, -1), self.project(patches)), 1)


def refuse_unreadable(ids: object) -> None:
    """Raise DataError, with what makes it readable, for what is no batch of token ids or images."""
    if not isinstance(ids, Tensor):
        raise DataError(f"token ids come as a tensor, not as a {type(ids).__name__}", "torch.tensor([ids]) is one row")
    if ids.ndim not in (2, 4):
        remedy = "ids[None] is a batch of one row" if ids.ndim == 1 else "token ids have the shape (batch, time)"
        raise DataError(f"ids of shape {tuple(ids.shape)} are no batch of rows", remedy)
    if ids.ndim == 2 and ids.is_floating_point():
        raise DataError(f"token ids are whole numbers, not {ids.dtype}", "ids.long()")


class Embedding(nn.Module):
    """norm(tokens[id] · scale + types[type] + positions[pos]) (Vaswani et al. 2017, section 3.4).

    With ``patches``, they stand in the place of tokens[id]. ``project``: from d_embed to d_model, where they differ
    (Lan et al. 2020, section 3.1). shared: the table of another embedding, to be used instead of an own one.
    """

    tokens: TokenTable

    def __init__(self, spec: EmbedSpec, vocab_size: int, context: int, d_model: int, shared: TokenTable | None = None):
        super().__init__()
        self.scale, self.n_places = spec.scale, None if spec.patches is None else spec.patches.n_places
        width = spec.d_embed or d_model
        self.patches = None if spec.patches is None else Patches(spec.patches, width)
        if shared is not None:
            self.__dict__["tokens"] = shared  # not registered: its weight has one name, its owner's
        elif spec.patches is None:
            self.tokens = nn.Embedding(vocab_size, width)
        self.types = nn.Embedding(spec.n_types, width) if spec.n_types else None
        self.positions = build_positions(spec.positions, context, width)
        self.norm = build_norm(spec.norm, width)
        self.project = None if spec.d_embed is None else nn.Linear(width, d_model)
        self.dropout = 0.0  # of the sum (Vaswani et al. 2017, section 5.4); a setting of training

    def places(self, ids: Inputs) -> Tokens:
        """Where each token stands unless the caller says it: one document a row, or the patches of one image.

        Raises DataError as ``refuse_unreadable`` does.
        """
        refuse_unreadable(ids)
        time = ids.shape[1] if self.n_places is None else self.n_places
        return Tokens.plain(ids.shape[0], time, device=ids.device)

    @property
    def head_table(self) -> Product:
        """What makes logits in a tied head: the matrix of ``tokens``, or the ``product`` of a module that stands in its
        place because it is quantised or adapted."""
        product: Product | None = getattr(self.tokens, "product", None)
        if product is not None:
            return product
        assert isinstance(self.tokens, nn.Embedding)
        return self.tokens.weight

    def as_head(self, x: Float[Tensor, "*axes d_embed"]) -> Float[Tensor, "*axes vocab"]:
        """x · Eᵀ, the product of a tied head (Press and Wolf 2017)."""
        return logits_of(x, self.head_table)

    def vectors(self, ids: Inputs) -> Float[Tensor, "batch time d_embed"]:
        """The vectors of tokens or patches alone. Raises DataError for what this model does not read."""
        if (ids.ndim == 4) != (self.patches is not None):
            read, given = ("images", "ids") if ids.ndim == 2 else ("token ids", "images")
            raise DataError(f"this model reads {read}, not {given}", "what it reads follows from its spec")
        if self.patches is not None:
            return self.patches(ids)
        # elsewhere the check would wait for the device
        if not torch.compiler.is_compiling() and ids.device.type == "cpu":
            self.refuse_unknown(ids)
        return self.tokens(ids)

    def refuse_unknown(self, ids: Int[Tensor, "batch time"]) -> None:
        """Raise DataError, naming the id, where one is outside the vocabulary."""
        if ids.numel() == 0:
            return
        low, high = (int(x) for x in torch.aminmax(ids))
        if low < 0 or high >= self.tokens.num_embeddings:
            raise DataError(
                f"token id {low if low < 0 else high} is outside the vocabulary 0..{self.tokens.num_embeddings - 1}",
                "encode the text with the tokenizer that belongs to this model",
            )

    def forward(
        self, ids: Inputs, tokens: Tokens, types: Int[Tensor, "batch places"] | None = None
    ) -> Float[Tensor, "batch places d_model"]:
        """``types``: the kind of each token; all 0 when None. Raises DataError for ids outside the vocabulary."""
        x = self.vectors(ids)
        if self.scale != 1.0:
            x = x * self.scale
        if self.positions is not None:
            x = x + self.positions(tokens).to(x.dtype)
        if self.types is not None:
            x = x + (self.types.weight[0] if types is None else self.types(types))
        elif types is not None:
            raise DataError("token types were given, but this model knows none", "leave types out")
        x = F.dropout(self.norm(x), self.dropout, self.training) if self.dropout else self.norm(x)
        return x if self.project is None else self.project(x)
