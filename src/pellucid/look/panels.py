"""What was measured inside a model, as tables: patching, causal traces, habits of heads, reasons, memories."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.errors import UsageError
from pellucid.interpret.attribution import attribute
from pellucid.interpret.dependence import dependence
from pellucid.interpret.facts import writes
from pellucid.interpret.faithfulness import METHODS, NEARNESS, Curves, curves
from pellucid.interpret.heads import habits
from pellucid.interpret.pairs import pair, rows_of
from pellucid.interpret.patching import Grid, patch
from pellucid.interpret.record import capture
from pellucid.interpret.tracing import POINTS, trace
from pellucid.look.seen import Panel
from pellucid.look.text import label, reader
from pellucid.nn.models import Decoder

HABITS = ("induction", "previous", "duplicate", "copying")
MOST_HEADS, MOST_NEURONS, WRITTEN = 20, 12, 4  # heads and neurons that are listed; tokens that a neuron writes
RIVALS = 10  # other likely tokens, before which the neurons put the answer
TRACED = {"resid_post": "the stream", "ffn_out": "feed-forward layers", "attn_out": "attention"}


def patched(model: Decoder, clean: str | Sequence[int], corrupt: str | Sequence[int]) -> tuple[Panel, ...]:
    """Which states and which heads of a clean prompt bring its answer back in a corrupt one.

    What is measured is the logit of the clean prompt's likeliest next token minus that of the corrupt one's. Raises
    UsageError where both are the same token, and as ``interpret.pairs.pair`` does.
    """
    prompts, read = pair(model, clean, corrupt), reader(model.tokenizer)
    right, wrong = (_next(model, ids)[0] for ids in (prompts.clean, prompts.corrupt))
    if right == wrong:
        raise UsageError(
            f"both prompts are followed by {label(read(right))}, so there is no difference to trace",
            "change the word on which the answer depends",
        )
    states = patch(model, prompts, right, wrong)
    heads = patch(model, prompts, right, wrong, point="attn.z", over=("layer", "head"))
    what = f"share of the difference {label(read(right))} − {label(read(wrong))} that comes back"
    tokens = tuple(label(read(token)) for token in prompts.corrupt[0].tolist())
    layers = tuple(f"layer {layer}" for layer in states.layers)
    columns = tuple(f"head {head}" for head in heads.heads)
    return (
        Panel("Patching: states", f"{what}; one state of the clean prompt put in", layers, tokens, _share(states)),
        Panel("Patching: heads", f"{what}; one head of the clean prompt put in", layers, columns, _share(heads)),
    )


def traced(model: Decoder, text: str | Sequence[int], subject: str) -> tuple[Panel, ...]:
    """Which states bring the answer back when the subject of a prompt is drowned in noise (Meng et al. 2022)."""
    found, read = trace(model, text, subject), reader(model.tokenizer)
    tokens = tuple(
        label(read(token)) + ("*" if found.subject[0] <= place < found.subject[1] else "")
        for place, token in enumerate(found.ids.tolist())
    )
    note = f"p({label(read(found.answer))}): {found.clean:.0%} clean, {found.corrupt:.0%} with noise on *; restored:"
    return tuple(
        Panel(
            f"Causal trace: {TRACED[point]}", f"{note} {_windows(found.grids[point], model)}",
            tuple(f"layer {layer}" for layer in found.grids[point].layers), tokens, _array(found.restored(point)),
        )
        for point in POINTS
    )  # fmt: skip


def habitual(model: Decoder) -> Panel:
    """The heads with the plainest habits, scored on a repeated random text."""
    found = habits(model, length=min(24, model.spec.context // 2))
    scores = torch.stack([getattr(found, habit) for habit in HABITS], -1).flatten(0, 1)  # (heads, habits)
    there = (~scores.isnan().any(-1)).nonzero()[:, 0]
    by_attention = scores[there, :3].amax(-1)
    best = there[by_attention.argsort(descending=True)][:MOST_HEADS]
    per_layer = found.induction.shape[1]
    rows = tuple(f"{head // per_layer}.{head % per_layer}" for head in best.tolist())
    note = "on random tokens read twice: attention to what followed, stood before, is the same; says what it sees"
    return Panel("Habits of heads", note, rows, HABITS, _array(scores[best]), ranked=True)


def explained(model: Decoder, text: str | Sequence[int]) -> tuple[Panel, ...]:
    """What several methods hold for the reason of the next token, whether taking tokens out agrees, and whether the
    answer depends on where attention looks (``interpret.faithfulness``, ``interpret.dependence``)."""
    ids, read = rows_of(model, text), reader(model.tokenizer)
    found, moved = curves(model, ids), dependence(model, ids)
    tokens, answer = tuple(label(read(token)) for token in ids[0].tolist()), label(read(found.answer))
    names = (*METHODS, NEARNESS)
    shares = torch.stack([_shares(found.importance[name]) for name in METHODS])
    best = sorted(names, key=lambda name: -found.area(name))
    tested = [[*_means(found, name), found.area(name), found.beats_random(name)] for name in best]
    layers = (*(f"layer {layer}" for layer in moved.layers), "all layers")
    changed = torch.stack((moved.uniform, moved.permuted), -1)
    return (
        Panel(
            f"Why {answer}? Importance of tokens", "each method's positive importance, as shares of its sum",
            METHODS, tokens, _array(shares), ranked=True,
        ),
        Panel(
            "Is that what it reads?",
            f"mean p({answer}) as a method's tokens come in and go out; {NEARNESS}: the nearest token first",
            tuple(best), ("in", "out", "in − out", "beats random"), np.array(tested), ranked=True,
        ),
        Panel(
            "Does it depend on where attention looks?",
            f"how far the guess {answer} and all others move, with even or shuffled weights (total variation)",
            layers, ("even", "shuffled"), np.concatenate((_array(changed), np.array([moved.all]))),
        ),
    )  # fmt: skip


def remembered(model: Decoder, text: str | Sequence[int]) -> Panel:
    """The neurons of feed-forward layers that put the next token farthest before its rivals, the likeliest others: what
    in the text is their key, and what their value writes (Geva et al. 2021).

    Raises UsageError for a model without such neurons, and for one whose parts do not add up.
    """
    ids, read = rows_of(model, text), reader(model.tokenizer)
    answer, *rivals = _next(model, ids, 1 + RIVALS)
    added = attribute(model, ids.expand(len(rivals), -1), answer, rivals).neurons
    found = [(x, layer, neuron) for layer, of in enumerate(added) for neuron, x in enumerate(of.mean(0).tolist())]
    best = sorted(found, reverse=True)[:MOST_NEURONS]
    if not best:
        raise UsageError("no layer of this model has neurons of its own", "leave facts out")
    points = {layer: f"blocks.{layer}.ffn_act" for _, layer, _ in best}
    acts = capture(model, ids, points.values())
    keys = torch.stack([acts[points[layer]][0, :, neuron] for _, layer, neuron in best])
    largest = keys.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(keys.dtype).tiny)
    sign = keys[:, -1:].sign()  # a gated activation may be negative: the last token's counts as positive
    return Panel(
        f"Memories that say {label(read(answer))}",
        f"neurons by how far they lift its logit above those of the {len(rivals)} next likeliest tokens (all together "
        f"{sum(x for x, _, _ in found):+.1f}); where in the text each is active, and which tokens its value raises",
        tuple(f"{layer}.{neuron}" for _, layer, neuron in best), tuple(label(read(i)) for i in ids[0].tolist()),
        _array(sign * keys / largest), ranked=True,
        words=tuple(
            f"{x:+.2f}  {' '.join(label(read(token)) for token in _raised(model, layer, neuron, float(side)))}"
            for (x, layer, neuron), side in zip(best, sign[:, 0].tolist(), strict=True)
        ),
    )  # fmt: skip


def _raised(model: Decoder, layer: int, neuron: int, side: float) -> list[int]:
    """The tokens that a neuron raises most when its activation is positive, or negative."""
    return [token for token, _ in writes(model, layer, neuron, WRITTEN, negative=side < 0)]


def _shares(importance: Float[Tensor, " time"]) -> Float[Tensor, " time"]:
    """Positive importance as shares of its sum; zeros where there is none."""
    positive = importance.clamp(min=0)
    return positive / positive.sum().clamp(min=torch.finfo(positive.dtype).tiny)


def _means(found: Curves, name: str) -> tuple[float, float]:
    """The means below the insertion and the deletion curve."""
    insertion, deletion = found.insertion[name], found.deletion[name]
    return float(torch.trapezoid(insertion)) / (len(insertion) - 1), float(torch.trapezoid(deletion)) / (
        len(deletion) - 1
    )


@torch.no_grad()
def _next(model: Decoder, ids: Int[Tensor, "1 time"], count: int = 1) -> list[int]:
    """The likeliest next tokens, best first."""
    logits = model(ids)[0, -1]
    return logits.topk(min(count, len(logits))).indices.tolist()


def _share(grid: Grid) -> Float[np.ndarray, "row column"]:
    return _array(grid.recovered[..., 0])


def _windows(grid: Grid, model: Decoder) -> str:
    return "one state" if grid.point.startswith("resid") else f"{max(1, model.spec.n_layers // 5)} layers around"


def _array(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()
