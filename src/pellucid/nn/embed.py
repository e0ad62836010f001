"""From token ids to the residual stream."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.batch import Tokens
from pellucid.errors import DataError
from pellucid.nn.norms import build_norm
from pellucid.nn.positions import build_positions
from pellucid.spec import EmbedSpec


class Embedding(nn.Module):
    """norm(tokens[id] · scale + types[type] + positions[pos]) (Vaswani et al. 2017, section 3.4).

    shared: the table of another embedding, to be used instead of an own one.
    """

    tokens: nn.Embedding

    def __init__(
        self, spec: EmbedSpec, vocab_size: int, context: int, d_model: int, shared: nn.Embedding | None = None
    ):
        super().__init__()
        self.scale = spec.scale
        if shared is None:
            self.tokens = nn.Embedding(vocab_size, d_model)
        else:
            self.__dict__["tokens"] = shared  # not registered: its weight has one name, its owner's
        self.types = nn.Embedding(spec.n_types, d_model) if spec.n_types else None
        self.positions = build_positions(spec.positions, context, d_model)
        self.norm = build_norm(spec.norm, d_model)
        self.dropout = 0.0  # of the sum (Vaswani et al. 2017, section 5.4); a setting of training

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
        self, ids: Int[Tensor, "batch time"], tokens: Tokens, types: Int[Tensor, "batch time"] | None = None
    ) -> Float[Tensor, "batch time d_model"]:
        """``types``: the kind of each token; all 0 when None. Raises DataError for ids outside the vocabulary."""
        if (
            not torch.compiler.is_compiling() and ids.device.type == "cpu"
        ):  # elsewhere the check would wait for the device
            self.refuse_unknown(ids)
        x = self.tokens(ids)
        if self.scale != 1.0:
            x = x * self.scale
        if self.positions is not None:
            x = x + self.positions(tokens).to(x.dtype)
        if self.types is not None:
            x = x + (self.types.weight[0] if types is None else self.types(types))
        elif types is not None:
            raise DataError("token types were given, but this model knows none", "leave types out")
        return F.dropout(self.norm(x), self.dropout, self.training) if self.dropout else self.norm(x)
