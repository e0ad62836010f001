"""Path patching: what one head tells another, or the logits, without what it tells anybody else.

A head (the *sender*) is given the activation that it has on the clean prompt, while all attention after it stays as in
the corrupt run. What then reaches the *receivers* is put into them alone, in a second run (Wang et al. 2023, section
3.1; Goldowsky-Dill et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.arguments import checked
from pellucid.errors import UsageError
from pellucid.interpret.answers import Answer, Ids, Measure, place_of
from pellucid.interpret.pairs import Pair
from pellucid.interpret.patching import Acts, aligned, axes_of, embedded
from pellucid.interpret.record import capture
from pellucid.interpret.sweep import Cell, Put, Run
from pellucid.nn.attention import Attention
from pellucid.nn.models import Decoder, Encoder

SENDER = "attn.z"


@dataclass(frozen=True)
class Paths:
    """The answer's measure with each sender's path patched, (layer, head, batch); NaN where there is no such head, and
    where it stands behind all receivers.

    before, target: the measure in the corrupt and in the clean run.
    """

    scores: Float[Tensor, "layer head batch"]
    before: Float[Tensor, " batch"]
    target: Float[Tensor, " batch"]

    @property
    def effect(self) -> Float[Tensor, "layer head batch"]:
        """How much each path changes the measure."""
        return self.scores - self.before


@checked(model="give a decoder, e.g. of pellucid.load")
def patch_paths(
    model: Decoder | Encoder,
    prompts: Pair,
    right: Ids,
    wrong: Ids | None = None,
    *,
    receivers: Sequence[tuple[int, str, int]] | None = None,
    through_ffn: bool = True,
    measure: Measure = "logit",
    read: int = -1,
) -> Paths:
    """The effect of the path from each head to the receivers.

    receivers: (layer, point, head) each, point being "attn.q", "attn.k" (head: of keys) or "attn.v"; None: the final
    stream, which is the direct effect on the logits. through_ffn: whether feed-forward layers on the way belong to the
    path, as in Wang et al.; otherwise they stay as in the corrupt run, too. Raises as ``patching.patch`` does.
    """
    answer, place = Answer.of(model, right, wrong, len(prompts.corrupt), measure), place_of(prompts.corrupt, read)
    if not any(isinstance(block.mixer, Attention) for block in model.layers):
        raise UsageError("no layer of this model has attention heads", "patch other points: patching.patch")
    run = Run.of(model, embedded(model, prompts.corrupt), place)
    clean = Run.of(model, embedded(model, prompts.clean), prompts.align[place])
    there = capture(model, prompts.corrupt[:, : run.time], ["blocks.*_out", f"blocks.*.{SENDER}"])
    donors = {
        name: aligned(x, there[name], prompts, axes_of(model, SENDER), name)
        for name, x in capture(model, prompts.clean, [f"blocks.*.{SENDER}"]).items()
    }
    last = model.spec.n_layers if receivers is None else max((layer for layer, _, _ in receivers), default=0)
    senders = [
        (layer, head)
        for layer, block in enumerate(model.layers[:last])
        if isinstance(block.mixer, Attention)
        for head in range(there[f"blocks.{layer}.{SENDER}"].shape[1])
    ]
    since = min(prompts.same_until, run.time - 1)
    cells = [_sent(model, donors, there, layer, head, since, through_ffn) for layer, head in senders]
    if receivers is not None:
        cells = _received(run, cells, receivers, since)
    found = run.scores(cells, answer)
    n_heads = max(x.shape[1] for name, x in there.items() if name.endswith(SENDER))
    scores = found.new_full((model.spec.n_layers, n_heads, run.batch), torch.nan)
    for (layer, head), score in zip(senders, found, strict=True):
        scores[layer, head] = score
    return Paths(scores, run.score(answer), clean.score(answer))


def _sent(
    model: Decoder | Encoder, donors: Acts, there: Acts, layer: int, head: int, since: int, through_ffn: bool
) -> Cell:
    """A head as in the clean run, and what comes after it as in the corrupt one."""

    def kept(number: int, point: str) -> Put:
        return Put(number, point, there[f"blocks.{number}.{point}"], since=since)

    puts = [Put(layer, SENDER, donors[f"blocks.{layer}.{SENDER}"], head=head, since=since)]
    for number, block in list(enumerate(model.layers))[layer:]:
        puts += [kept(number, f"{block.kind}_out")] if number > layer else []
        puts += [kept(number, "ffn_out")] if block.ffn is not None and not through_ffn else []
    return puts


def _received(run: Run, cells: Sequence[Cell], receivers: Sequence[tuple[int, str, int]], since: int) -> list[Cell]:
    """What reaches the receivers in each cell, put into them alone."""
    names = list(dict.fromkeys((layer, point) for layer, point, _ in receivers))
    seen = run.seen(cells, names)
    for layer, point, head in receivers:
        if not 0 <= head < seen[layer, point].shape[2]:
            raise UsageError(f"head {head} of blocks.{layer}.{point}, which has {seen[layer, point].shape[2]}")
    return [
        [Put(layer, point, seen[layer, point][number], None, head, since) for layer, point, head in receivers]
        for number in range(len(cells))
    ]
