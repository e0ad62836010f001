"""Does an answer depend on where attention looks? Maps made uniform, and maps whose weights are shuffled.

If weights could be exchanged without any effect, they would explain nothing (Jain & Wallace 2019, section 4.2.1).
Wiegreffe & Pinter (2019, section 3.2) train a model anew with uniform weights; here the model is kept as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pellucid.arguments import checked
from pellucid.engine.modes import evaluating
from pellucid.errors import UsageError
from pellucid.interpret.answers import place_of
from pellucid.interpret.pairs import Prompt, rows_of
from pellucid.nn.attention import Attention
from pellucid.nn.models import Decoder, Encoder
from pellucid.nn.wide import wide


@dataclass(frozen=True)
class Dependence:
    """How far the distribution of the next token moves: total variation, from 0 (not at all) to 1, mean over rows.

    uniform: where a map looks at all tokens that it may see alike. permuted: where each query's weights are shuffled
    among these tokens, mean over the samples. A number for each of ``layers``, changed alone. all: (uniform, permuted)
    where all maps are changed at once.
    """

    layers: tuple[int, ...]
    uniform: Float[Tensor, " layer"]
    permuted: Float[Tensor, " layer"]
    all: tuple[float, float]


@checked(model="give a decoder, e.g. of pellucid.load")
@torch.no_grad()
def dependence(
    model: Decoder | Encoder, prompt: Prompt, *, read: int = -1, samples: int = 4, seed: int = 0
) -> Dependence:
    """Change the attention maps of a model while it reads a prompt (or rows of one length), and compare what it says.

    read: where the next token's distribution is compared. samples: how often weights are shuffled. Raises UsageError
    where no layer has attention maps.
    """
    ids = rows_of(model, prompt)
    place, layers = (
        place_of(ids, read),
        [i for i, block in enumerate(model.layers) if isinstance(block.mixer, Attention)],
    )
    if not layers or samples < 1:
        raise UsageError(f"{len(layers)} layers with attention maps, samples = {samples}", "both must be 1 at least")
    generator = torch.Generator().manual_seed(seed)
    names = {layer: f"{model.path}blocks.{layer}.attn." for layer in layers}
    with evaluating(model):
        plain = _said(model, ids, place)
        zeros = {name + "scores": torch.zeros_like for name in names.values()}
        with model.taps(read=[name + "pattern" for name in names.values()], edit=zeros) as acts:
            model(ids)
        maps = {layer: acts[name + "pattern"] for layer, name in names.items()}
        rows = ids.repeat(1 + samples, 1)

        def moved(changed: list[int]) -> tuple[float, float]:
            edits = {names[i] + "pattern": partial(_shuffled, maps[i].clone(), generator) for i in changed}
            with model.taps(edit=edits):
                said = _said(model, rows, place).unflatten(0, (1 + samples, -1))
            apart = (said - plain).abs().sum(-1).mean(-1) / 2
            return float(apart[0]), float(apart[1:].mean())

        alone, whole = torch.tensor([moved([layer]) for layer in layers]).double(), moved(layers)
    return Dependence(tuple(layers), alone[:, 0], alone[:, 1], whole)


def _shuffled(
    level: Float[Tensor, "batch heads query key"], generator: torch.Generator, x: Float[Tensor, "rows heads query key"]
) -> Float[Tensor, "rows heads query key"]:
    """The first copy of the rows level, the others with each query's weights in another order."""
    batch = len(level)
    seen = (level > 0).repeat(len(x) // batch - 1, 1, 1, 1)
    return torch.cat((level.to(x.dtype), permuted(x[batch:], seen, generator)))


def permuted(
    pattern: Float[Tensor, "rows heads query key"],
    seen: Bool[Tensor, "rows heads query key"],
    generator: torch.Generator,
) -> Float[Tensor, "rows heads query key"]:
    """The weights of each query in a random order, among the keys that it sees."""
    lots = torch.rand(pattern.shape, generator=generator).to(pattern.device)
    drawn = lots.masked_fill(~seen, 2.0).argsort(-1)  # the keys that are seen come first
    ordered = (~seen).to(torch.uint8).argsort(dim=-1, stable=True)
    return torch.zeros_like(pattern).scatter(-1, ordered, pattern.gather(-1, drawn))


def _said(model: Decoder | Encoder, ids: Int[Tensor, "rows time"], place: int) -> Float[Tensor, "rows vocab"]:
    """The distribution at one position."""
    return wide(model(ids)[:, place]).softmax(-1)
