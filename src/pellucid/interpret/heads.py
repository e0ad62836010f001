"""What heads do, as numbers: habits on a repeated random text, and how much an answer depends on each of them.

A text of random tokens, read twice, tells habits apart (Olsson et al. 2022, appendix): on its second half an
*induction* head looks at the token behind the earlier occurrence of the current one, a *duplicate-token* head at that
occurrence itself, a *previous-token* head at the token before. *Copying* is asked of the weights: whether what a head
writes when it looks at a token makes that token likelier (Elhage et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.arguments import checked
from pellucid.engine.modes import evaluating
from pellucid.errors import UsageError
from pellucid.interpret.answers import Answer, Ids, Measure, place_of
from pellucid.interpret.circuits import circuits_of
from pellucid.interpret.linear_parts import FrozenNorm
from pellucid.interpret.pairs import Prompt, rows_of
from pellucid.interpret.record import capture
from pellucid.nn.attention import Attention
from pellucid.nn.models import Decoder, Encoder
from pellucid.nn.wide import wide

COPIED = 256  # tokens that copying is asked of


@dataclass(frozen=True)
class Habits:
    """Scores of every head, (layer, head) each; NaN where a layer has no such head.

    induction, previous, duplicate: mean attention to those places, from 0 to 1. copying: when the head looks at a
    token, the share of other tokens which it raises less than that one: 1 for a head that always says what it sees,
    0.5 by chance, near 0 for one that suppresses it; from the weights, by the direct way from embedding to logits.
    """

    induction: Float[Tensor, "layer head"]
    previous: Float[Tensor, "layer head"]
    duplicate: Float[Tensor, "layer head"]
    copying: Float[Tensor, "layer head"]

    def ranked(self, habit: str, n: int = 10) -> list[tuple[int, int, float]]:
        """(layer, head, score) of the ``n`` heads with the largest scores. Raises UsageError for an unknown habit."""
        if habit not in self.__dataclass_fields__:
            raise UsageError(f"habit = {habit!r}", f"choose one of {', '.join(self.__dataclass_fields__)}")
        scores: Tensor = getattr(self, habit)
        flat = scores.flatten().nan_to_num(nan=-torch.inf)
        best = flat.topk(min(n, int((~scores.isnan()).sum()))).indices.tolist()
        return [(i // scores.shape[1], i % scores.shape[1], float(flat[i])) for i in best]


@checked(model="give a decoder, e.g. of pellucid.load")
@torch.no_grad()
def habits(model: Decoder, *, length: int = 24, rows: int = 4, seed: int = 0) -> Habits:
    """Score the heads of a decoder on ``rows`` random texts of ``length`` tokens, each read twice.

    Special tokens are drawn like others, without a beginning. Raises UsageError where the context is too short for
    that, and where no layer has attention patterns.
    """
    if not 2 <= length <= model.spec.context // 2:
        raise UsageError(f"length = {length}", f"choose 2 to {model.spec.context // 2}: the text is read twice")
    generator = torch.Generator().manual_seed(seed)
    once = torch.stack([_without_repeats(model.spec.vocab_size, length, generator) for _ in range(rows)])
    patterns = _patterns(model, torch.cat((once, once), 1).to(model.device))
    query = torch.arange(length, 2 * length, device=model.device)

    def mean_at(key: Tensor, queries: Tensor = query) -> Float[Tensor, "layer head"]:
        return _by_layer(model, lambda layer: patterns[layer][:, :, queries, key].mean((0, 2)), patterns)

    every = torch.arange(1, 2 * length, device=model.device)
    copying = _by_layer(model, lambda layer: _copying(model, layer, generator), patterns)
    return Habits(mean_at(query - length + 1), mean_at(every - 1, every), mean_at(query - length), copying)


@checked(model="give a decoder, e.g. of pellucid.load")
def importance(
    model: Decoder | Encoder,
    prompt: Prompt,
    right: Ids,
    wrong: Ids | None = None,
    *,
    measure: Measure = "logit",
    read: int = -1,
) -> Float[Tensor, "layer head batch"]:
    """How much an answer depends on each head, to first order: the derivative of its measure by a factor on the head's
    output, at factor 1 (Michel et al. 2019, section 4.1, with its sign); NaN where there is no such head.

    One forward and one backward for all heads. ``patching.ablate`` takes them out one by one instead. Raises UsageError
    where no layer has attention heads.
    """
    ids = rows_of(model, prompt)
    answer, place = Answer.of(model, right, wrong, len(ids), measure), place_of(ids, read)
    if not any(isinstance(block.mixer, Attention) for block in model.layers):
        raise UsageError("no layer of this model has attention heads", "ablate other points: patching.ablate")
    with torch.inference_mode(False), evaluating(model), model.taps(read="blocks.*.attn.z", gradients=True) as acts:
        score = answer(model(ids)[:, place]).sum()
        gradients = acts.gradients(score)
    by_layer = {name: (x.detach() * gradients[name]).sum((2, 3)).T for name, x in acts.items()}
    heads = max(x.shape[0] for x in by_layer.values())
    found = torch.full((model.spec.n_layers, heads, len(ids)), torch.nan, dtype=score.dtype, device=score.device)
    for name, x in by_layer.items():
        found[int(name.split(".")[1]), : len(x)] = x
    return found


def _without_repeats(vocab_size: int, length: int, generator: torch.Generator) -> Int[Tensor, " length"]:
    """Different random tokens, as far as the vocabulary allows."""
    repeats = -(-length // vocab_size)
    drawn = [torch.randperm(vocab_size, generator=generator)[:length] for _ in range(repeats)]
    return torch.cat(drawn)[:length]


def _patterns(model: Decoder, ids: Int[Tensor, "batch time"]) -> dict[int, Float[Tensor, "batch heads query key"]]:
    """The attention pattern of each layer that has one. Raises UsageError where none has."""
    with_maps = [layer for layer, block in enumerate(model.layers) if isinstance(block.mixer, Attention)]
    if not with_maps:
        raise UsageError("no layer of this model has attention patterns", "look at its running states instead")
    acts = capture(model, ids, [f"blocks.{layer}.attn.pattern" for layer in with_maps])
    return {layer: acts[f"blocks.{layer}.attn.pattern"] for layer in with_maps}


def _by_layer(
    model: Decoder, score: Callable[[int], Float[Tensor, " heads"]], layers: dict[int, Tensor]
) -> Float[Tensor, "layer head"]:
    """Scores of all heads; NaN where a layer has fewer, or none."""
    rows = {layer: score(layer) for layer in layers}
    found = torch.full((model.spec.n_layers, max(map(len, rows.values()))), torch.nan, dtype=torch.float64)
    for layer, row in rows.items():
        found[layer, : len(row)] = row.double().cpu()
    return found


def _copying(model: Decoder, layer: int, generator: torch.Generator) -> Float[Tensor, " heads"]:
    """How often a token that a head looks at gains more than the other tokens do, by the head's direct way out."""
    vocab = model.spec.vocab_size
    tokens = torch.randperm(vocab, generator=generator)[:COPIED].to(model.device)
    read = wide(model.layers[layer].mixer_norms.pre(model.embed(tokens[None], model.embed.places(tokens[None]))[0]))
    out = FrozenNorm.at(model.final_norm, torch.ones_like(read)).pull_back(Answer(tokens).direction(model))
    shares: list[Tensor] = []
    for head in circuits_of(model, layer):
        gained = (read @ head.v.T) @ (head.o.T @ out.T)  # (seen, said)
        shares.append((gained.diagonal()[:, None] > gained).double().sum(1).mean() / max(1, len(tokens) - 1))
    return torch.stack(shares)
