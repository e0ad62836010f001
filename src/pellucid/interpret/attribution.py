"""Direct logit attribution: what each part of a model adds to a logit, exactly (Elhage et al. 2021).

What enters the final norm is a sum: the embedding, and what every head and feed-forward layer adds. With the scale that
the norm had in this very run (``Attribution.scale``), a logit is a linear function of that sum, so it is the sum of
what its parts say, with nothing left over. What a part does *through later layers* is no part of this: ``patching``
measures that.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.arguments import checked
from pellucid.batch import Tokens
from pellucid.errors import UsageError
from pellucid.interpret.answers import Answer, place_of
from pellucid.interpret.linear_parts import FrozenNorm, pull_back
from pellucid.interpret.record import capture
from pellucid.nn.attention import Attention
from pellucid.nn.block import Block
from pellucid.nn.feed_forward import FeedForward
from pellucid.nn.mixer import merge_heads
from pellucid.nn.models import Decoder
from pellucid.nn.residual import Sublayer
from pellucid.nn.wide import wide


@dataclass(frozen=True)
class Attribution:
    """What the parts of a model add to a logit, or to a difference of two, in one text a row.

    total: the logit (difference) itself, before a soft cap. token, position: of the vectors that the embedding adds.
    heads, neurons: of each layer, (batch, heads) and (batch, d_ff), one tensor a layer; without columns where a layer
    has none that add up (running states, experts). mixers, ffns: of whole layers, their biases included.
    bias: of the final norm's and the head's own biases. scale: 1 / σ of the final norm, by which all is multiplied.
    """

    total: Float[Tensor, " batch"]
    token: Float[Tensor, " batch"]
    position: Float[Tensor, " batch"]
    mixers: Float[Tensor, "batch layer"]
    ffns: Float[Tensor, "batch layer"]
    heads: tuple[Float[Tensor, "batch _"], ...]
    neurons: tuple[Float[Tensor, "batch _"], ...]
    bias: Float[Tensor, " batch"]
    scale: Float[Tensor, " batch"]

    def sum(self) -> Float[Tensor, " batch"]:
        """The sum of all parts, which is ``total`` but for rounding."""
        return self.token + self.position + self.mixers.sum(-1) + self.ffns.sum(-1) + self.bias

    def parts(self, row: int = 0) -> list[tuple[str, float]]:
        """(name, what it adds) of embedding, heads, feed-forward layers and the rest, the largest first.

        The names are "token", "position", "5.3" (layer.head), "5.ffn", "5.mixer" (of a layer what its heads do not
        tell), "bias".
        """
        return sorted(self._named(row), key=lambda part: -abs(part[1]))

    def _named(self, row: int) -> Iterator[tuple[str, float]]:
        for name in ("token", "position", "bias"):
            yield name, float(getattr(self, name)[row])
        for layer, heads in enumerate(self.heads):
            yield from ((f"{layer}.{head}", float(x)) for head, x in enumerate(heads[row]))
            rest = float(self.mixers[row, layer] - heads[row].sum())
            if not heads.shape[1] or abs(rest) > 1e-6:
                yield f"{layer}.mixer", rest
            yield f"{layer}.ffn", float(self.ffns[row, layer])


@checked(model="give a decoder, e.g. of pellucid.load")
@torch.no_grad()
def attribute(
    model: Decoder,
    ids: Int[Tensor, "batch time"],
    right: int | Sequence[int] | Tensor,
    wrong: int | Sequence[int] | Tensor | None = None,
    *,
    read: int = -1,
) -> Attribution:
    """What each part adds to logit(right) - logit(wrong), or to logit(right), behind the token at position ``read``.

    right, wrong: token ids, one for all rows or one a row. Raises UsageError for a model whose parts do not add up: one
    that norms the sum of stream and branch (post-norm), and one that reads an encoder.
    """
    _refuse_sums_that_are_normed(model)
    answer, place = Answer.of(model, right, wrong, len(ids)), place_of(ids, read)
    points = ["embed", *(f"blocks.*.{point}" for point in ("attn_out", "rnn_out", "ffn_out", "attn.z", "ffn_act"))]
    known = model.point_names()
    acts = capture(
        model, ids, [glob for glob in (*points, "blocks.*.resid_post") if fnmatch.filter(known, glob)],
        positions=[place],
    )  # fmt: skip
    last = acts[f"blocks.{model.spec.n_layers - 1}.resid_post"][:, 0]
    norm, direction = FrozenNorm.at(model.final_norm, last), answer.direction(model)
    bias = norm.constant(direction) + answer.bias(model)
    layers, pulled = list[_Layer](), norm.pull_back(direction)
    for number, block in reversed(list(enumerate(model.layers))):
        at = {name.split(".", 2)[2]: x for name, x in acts.items() if name.startswith(f"blocks.{number}.")}
        layer, pulled = _layer(block, at, pulled)
        layers.insert(0, layer)
    token, position = _embedding(model, acts["embed"][:, 0], place, pulled)
    return Attribution(
        total=(wide(model.final_norm(last)) * direction).sum(-1) + answer.bias(model),
        token=token,
        position=position,
        mixers=torch.stack([layer.mixer for layer in layers], 1),
        ffns=torch.stack([layer.ffn for layer in layers], 1),
        heads=tuple(layer.heads for layer in layers),
        neurons=tuple(layer.neurons for layer in layers),
        bias=bias,
        scale=norm.scale[:, 0],
    )


class _Layer(NamedTuple):
    """What one layer adds: its mixer and feed-forward layer, and within these its heads and neurons."""

    mixer: Float[Tensor, " batch"]
    ffn: Float[Tensor, " batch"]
    heads: Float[Tensor, "batch _"]
    neurons: Float[Tensor, "batch _"]


def _layer(
    block: Block, at: Mapping[str, Tensor], after: Float[Tensor, "batch d_model"]
) -> tuple[_Layer, Float[Tensor, "batch d_model"]]:
    """What a layer adds along the direction ``after`` of the stream behind it, and the direction of what enters it.

    at: the layer's activations at one place, (batch, 1, d_model) or (batch, heads, 1, head_dim).
    """
    middle = after
    ffn, neurons = after.new_zeros(len(after)), after.new_zeros(len(after), 0)
    if block.ffn_norms is not None:
        ffn = (wide(at["ffn_out"][:, 0]) * after).sum(-1)
        if isinstance(block.ffn, FeedForward):
            act = at["ffn_act"][:, 0]
            neurons = wide(act) * _into(block.ffn_norms, block.ffn.down, act, after)
        middle = after if block.parallel else block.ffn_norms.skip_factor * after
    mixer, heads = (wide(at[f"{block.kind}_out"][:, 0]) * middle).sum(-1), after.new_zeros(len(after), 0)
    if isinstance(block.mixer, Attention):
        z = at["attn.z"]
        merged = merge_heads(z)[:, 0]
        pulled = _into(block.mixer_norms, block.mixer.o, merged, middle)
        heads = (wide(merged) * pulled).unflatten(-1, (z.shape[1], -1)).sum(-1)
    return _Layer(mixer, ffn, heads, neurons), block.mixer_norms.skip_factor * middle


def _into(
    around: Sublayer, out: nn.Module, x: Float[Tensor, "batch d_in"], direction: Float[Tensor, "batch d_model"]
) -> Float[Tensor, "batch d_in"]:
    """The direction of what enters the last linear map of a branch, from that of what the branch adds to the stream."""
    scaled = direction * around.branch_factor * getattr(around.gain, "weight", 1.0)
    return pull_back(out, FrozenNorm.at(around.post, out(x)).pull_back(scaled).to(x.dtype), x.shape[-1]).to(
        scaled.dtype
    )


def _embedding(
    model: Decoder, embedded: Float[Tensor, "batch d_model"], place: int, pulled: Float[Tensor, "batch d_model"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """What tokens and added positions say; where a norm or a projection stands behind their sum, all is the tokens'."""
    whole, embed = (wide(embedded) * pulled).sum(-1), model.embed
    plain = isinstance(embed.norm, nn.Identity) and embed.project is None
    if embed.positions is None or not plain:
        return whole, torch.zeros_like(whole)
    tokens = Tokens.plain(len(embedded), 1, place, embedded.device)
    position = (wide(embed.positions(tokens)).expand(len(embedded), -1, -1)[:, 0] * pulled).sum(-1)
    return whole - position, position


def _refuse_sums_that_are_normed(model: Decoder) -> None:
    spec = model.spec
    if spec.reads_memory:
        raise UsageError("this decoder reads an encoder", "attribution is of decoders that stand alone")
    normed = next((i for i, block in enumerate(spec.stack.blocks) if block.placement.out), None)
    if normed is not None:
        raise UsageError(
            f"blocks.{normed} norms the sum of stream and branch (post-norm), so what parts add does not add up",
            "measure their effects instead: pellucid.interpret.patching.ablate",
        )
