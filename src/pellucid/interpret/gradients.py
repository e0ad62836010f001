"""Effects to first order, from gradients: attribution patching, gradient × activation, integrated gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.arguments import checked
from pellucid.batch import Tokens
from pellucid.engine.modes import evaluating
from pellucid.errors import UsageError
from pellucid.interpret.answers import Answer, Ids, Measure, place_of
from pellucid.interpret.choice import HEADS, TIME
from pellucid.interpret.pairs import Pair, Prompt, rows_of
from pellucid.interpret.patching import Axis, aligned, axes_of, embedded
from pellucid.interpret.record import capture
from pellucid.nn.models import Decoder, Encoder


@checked(model="give a decoder, e.g. of pellucid.load")
def estimate_patches(
    model: Decoder | Encoder,
    prompts: Pair,
    right: Ids,
    wrong: Ids | None = None,
    *,
    point: str = "resid_pre",
    over: Sequence[Axis] = ("layer", "position"),
    measure: Measure = "logit",
    read: int = -1,
) -> Float[Tensor, "*cells batch"]:
    """The effect of each cell of ``patching.patch``, to first order: (clean - corrupt) · gradient in the corrupt run.

    That is attribution patching (Nanda 2023; Syed et al. 2023): two forwards and a backward for any number of cells,
    and wrong where the model is far from linear between the two prompts, as in attention that is saturated. Axes of
    cells are ``over``, the prompt's rows come last; every layer must have the point and as many heads. Raises as
    ``patch`` does.
    """
    ids = prompts.corrupt
    answer, place, axes = Answer.of(model, right, wrong, len(ids), measure), place_of(ids, read), axes_of(model, point)
    named = {"layer": "layer", **dict.fromkeys(TIME, "position"), **dict.fromkeys(HEADS, "head"), "batch": "batch"}
    if "head" in over and not set(axes.split()) & set(HEADS):
        raise UsageError(f"{point} has no axis of heads", "choose one that has: attn.z, attn.q, attn.k")
    globs = [f"blocks.*.{point}"]
    with torch.inference_mode(False), evaluating(model), model.taps(read=globs, gradients=True) as acts:
        gradients = acts.gradients(answer(model(ids)[:, place]).sum())
    donors = capture(model, prompts.clean, globs)
    parts: list[Tensor] = []
    for name, gradient in gradients.items():
        there = acts[name].detach()
        moved = aligned(donors[name], there, prompts, axes, name) - there
        parts.append(_summed(moved * gradient, [named.get(axis, "") for axis in axes.split()], over))
    found = torch.stack(parts) if "layer" in over else sum(parts[1:], parts[0])
    inner = [axis for axis in over if axis != "layer"]
    return found.movedim(0, list(over).index("layer")) if inner and "layer" in over else found


def _summed(x: Tensor, axes: Sequence[str], over: Sequence[Axis]) -> Tensor:
    """The sum over all axes but those of ``over`` and the batch, in this order, the batch last."""
    seen: list[str] = []
    for axis in axes:  # of a map over queries and keys, the first axis of positions is that of the query
        seen.append(axis if axis in (*over, "batch") and axis not in seen else "")
    gone = [i for i, axis in enumerate(seen) if not axis]
    x = x.sum(gone) if gone else x
    kept = [axis for axis in seen if axis]
    return x.permute([kept.index(axis) for axis in (*(each for each in over if each != "layer"), "batch")])


@dataclass(frozen=True)
class Saliency:
    """What each token of a prompt adds to an answer, (batch, time).

    total: what the parts should add up to, the measure minus that of the baseline (batch); ``gap``: by how much they
    miss it, which more steps make smaller. None for measures that need not add up.
    """

    parts: Float[Tensor, "batch time"]
    total: Float[Tensor, " batch"] | None

    @property
    def gap(self) -> Float[Tensor, " batch"]:
        """|sum of the parts - total|."""
        if self.total is None:
            raise UsageError("gradient × activation does not add up to anything", "use integrated_gradients")
        return (self.parts.sum(-1) - self.total).abs()


@checked(model="give a decoder, e.g. of pellucid.load")
def gradient_times_activation(
    model: Decoder | Encoder,
    prompt: Prompt,
    right: Ids,
    wrong: Ids | None = None,
    *,
    measure: Measure = "logit",
    read: int = -1,
) -> Saliency:
    """x · ∂measure/∂x for the vector x of each token that enters the first block (Shrikumar et al. 2017)."""
    ids, answer, place = _asked(model, prompt, right, wrong, measure, read)
    x = embedded(model, ids)
    return Saliency((x * _slope(model, x, answer, place)[1]).sum(-1), None)


@checked(model="give a decoder, e.g. of pellucid.load")
def integrated_gradients(
    model: Decoder | Encoder,
    prompt: Prompt,
    right: Ids,
    wrong: Ids | None = None,
    *,
    baseline: Float[Tensor, "*axes d_model"] | None = None,
    steps: int = 32,
    measure: Measure = "logit",
    read: int = -1,
) -> Saliency:
    """(x - baseline) · the mean gradient between them, for each token's vector (Sundararajan et al. 2017, equation 1).

    baseline: of the stream that enters the first block, broadcast to it (default: zeros). steps: points of the
    integral, by the midpoint rule. The parts sum to the difference of both measures, as far as ``Saliency.gap`` says.
    """
    if steps < 1:
        raise UsageError(f"steps = {steps}", "integrate over at least 1 step")
    ids, answer, place = _asked(model, prompt, right, wrong, measure, read)
    x = embedded(model, ids)
    begin = torch.zeros_like(x) if baseline is None else baseline.to(x).expand_as(x)
    mean = torch.zeros_like(x)
    for step in range(steps):
        mean += _slope(model, begin + (step + 0.5) / steps * (x - begin), answer, place)[1] / steps
    total = _slope(model, x, answer, place)[0] - _slope(model, begin, answer, place)[0]
    return Saliency(((x - begin) * mean).sum(-1), total)


def _asked(
    model: Decoder | Encoder, prompt: Prompt, right: Ids, wrong: Ids | None, measure: Measure, read: int
) -> tuple[Int[Tensor, "batch time"], Answer, int]:
    ids = rows_of(model, prompt)
    return ids, Answer.of(model, right, wrong, len(ids), measure), place_of(ids, read)


def _slope(
    model: Decoder | Encoder, x: Float[Tensor, "batch time d_model"], answer: Answer, place: int
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch time d_model"]]:
    """The measure where x enters the first block, and its gradient there."""
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        x = x.clone().requires_grad_()
        end = model.blocks_from(x, Tokens.plain(*x.shape[:2], device=x.device))[:, place : place + 1]
        score = answer(model.unembed(end)[:, 0])
        (gradient,) = torch.autograd.grad(score.sum(), x)
    return score.detach(), gradient
