"""Feed-forward layers as memories: what a neuron reads and writes (Geva et al. 2021), and facts rewritten by ROME.

ROME (Meng et al. 2022, section 3) takes one layer's output matrix W for a memory of values by keys, W k = v, and puts
in one pair more with the smallest change to the others: the key is what the subject's last token is there, the value
what makes the model say another answer. ::

    edit = rewrite(model, "The capital of France is", "France", " Rome")
    scores(model, " Paris", " Rome", prompts, paraphrases, neighbours)
    edit.undo()                                # bit for bit
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.arguments import checked
from pellucid.engine.modes import evaluating
from pellucid.engine.session import Session
from pellucid.errors import UsageError
from pellucid.interpret.answers import Answer
from pellucid.interpret.choice import numbers
from pellucid.interpret.pairs import Prompt, rows_of
from pellucid.interpret.record import capture
from pellucid.interpret.tracing import span_of, trace
from pellucid.nn.feed_forward import FeedForward
from pellucid.nn.models import Decoder
from pellucid.nn.wide import wide

Words: TypeAlias = str | Sequence[int]
STEPS, RATE, FARTHEST, DECAY = 25, 0.5, 4.0, 0.05  # of the search for a value; the last two relative to its length
PREFIX, RIDGE = 8, 0.02  # tokens before the prompt; a share of the keys' mean square


@dataclass(frozen=True)
class Trigger:
    """Where a neuron is most active: a row and position of the texts, and how active."""

    row: int
    position: int
    activation: float


@checked(model="give a decoder, e.g. of pellucid.load")
@torch.no_grad()
def triggers(model: Decoder, texts: Prompt, layer: int, neuron: int, top: int = 10) -> list[Trigger]:
    """The tokens of some texts (rows of one length) at which a neuron of a feed-forward layer is most active."""
    layer, neuron, _ = _neuron(model, layer, neuron)
    act = capture(model, rows_of(model, texts, "texts"), f"blocks.{layer}.ffn_act")[f"blocks.{layer}.ffn_act"]
    best = act[..., neuron].flatten().topk(min(top, act[..., neuron].numel()))
    time = act.shape[1]
    return [Trigger(at // time, at % time, value) for at, value in zip(*map(Tensor.tolist, best[::-1]), strict=True)]


@checked(model="give a decoder, e.g. of pellucid.load")
@torch.no_grad()
def writes(
    model: Decoder, layer: int, neuron: int, top: int = 10, *, negative: bool = False
) -> list[tuple[int, float]]:
    """(token, what an activation of 1 adds to its logit) of the tokens that a neuron's value raises most, by the direct
    way to the logits, the final norm's scale left out. negative: what an activation of -1 adds, which gates allow."""
    layer, neuron, ffn = _neuron(model, layer, neuron)
    value = ffn.down(torch.eye(ffn.down.in_features, dtype=model.dtype, device=model.device)[neuron : neuron + 1])
    value = value - ffn.down(torch.zeros(1, ffn.down.in_features, dtype=model.dtype, device=model.device))
    gain = getattr(model.final_norm, "weight", torch.ones_like(value))
    gain = gain + getattr(model.final_norm, "offset", 0.0)
    raised = model.head((value * gain)[None], model.embed.head_table)[0, 0]
    bias = 0.0 if model.head.bias is None else model.head.bias
    added = (bias - raised) if negative else (raised - bias)
    best = added.topk(min(top, len(raised)))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


@dataclass(frozen=True)
class FactEdit:
    """A fact that was rewritten: in which layer, with which key and value, and what stood there before."""

    layer: int
    key: Float[Tensor, " d_ff"]
    value: Float[Tensor, " d_model"]
    weight: Float[Tensor, "d_model d_ff"]  # of the model itself
    before: Float[Tensor, "d_model d_ff"]

    @torch.no_grad()
    def undo(self) -> None:
        """Put the very numbers back that stood there before the edit."""
        self.weight.copy_(self.before)


@checked(model="give a decoder, e.g. of pellucid.load")
def rewrite(
    model: Decoder,
    prompt: Words,
    subject: str | tuple[int, int],
    target: Words,
    *,
    layer: int | None = None,
    texts: Prompt | None = None,
    prefixes: int = 4,
    seed: int = 0,
) -> FactEdit:
    """Let a model continue ``prompt`` with ``target``, by a change of rank one to one feed-forward layer.

    subject: words of the prompt, or (first position, the one behind the last). layer: by default the one whose
    feed-forward output restores the answer best in a causal trace of the subject's last token. texts: rows of ids that
    say which keys are to keep their values (default: what the model itself writes behind random tokens). prefixes: so
    many of these texts stand before the prompt while key and value are found. Raises UsageError for a layer whose
    output is not one plain matrix, for quantised weights, and for a subject that the prompt does not hold.
    """
    ids, wanted = rows_of(model, prompt)[0], _ids(model, target)
    first, end = span_of(model, ids, subject)
    if layer is None:
        layer = int(
            trace(model, ids.tolist(), (first, end), points=("ffn_out",)).restored("ffn_out")[:, end - 1].argmax()
        )
    layer, down = _memory(model, layer)
    known = _own_texts(model, 48, 32, seed) if texts is None else rows_of(model, texts, "texts")
    point = f"blocks.{layer}.ffn_act"
    keys = wide(capture(model, known, point)[point].flatten(0, 1))
    row = torch.cat((ids, wanted[:-1]))
    before = known[:prefixes, :PREFIX]
    groups = [(row[None], end - 1), (torch.cat((before, row.expand(len(before), -1)), 1), before.shape[1] + end - 1)]
    groups = [group for group in groups if len(group[0])]
    key = torch.cat([wide(capture(model, rows, point)[point][:, place]) for rows, place in groups]).mean(0)
    value = _value(model, layer, groups, wanted)
    apart = keys.T @ keys / len(keys)
    apart = apart + RIDGE * apart.diagonal().mean() * torch.eye(len(apart), dtype=apart.dtype, device=apart.device)
    direction = torch.linalg.solve(apart, key)
    kept = down.weight.detach().clone()
    with torch.no_grad():
        missing = value - wide(down(key.to(model.dtype)))
        down.weight.add_(torch.outer(missing, direction / (direction @ key)).to(down.weight.dtype))
    return FactEdit(layer, key, value, down.weight, kept)


@dataclass(frozen=True)
class FactScores:
    """Shares of prompts, from 0 to 1 (Meng et al. 2022, section 3.3).

    efficacy, paraphrase: on which the new answer is likelier than the old one; neighbourhood: on which, about other
    subjects with the old answer, it is not. NaN without such prompts.
    """

    efficacy: float
    paraphrase: float
    neighbourhood: float


@checked(model="give a decoder, e.g. of pellucid.load")
def scores(
    model: Decoder,
    old: Words,
    new: Words,
    prompts: Sequence[Words],
    paraphrases: Sequence[Words] = (),
    neighbours: Sequence[Words] = (),
) -> FactScores:
    """How often a model says the new answer, by the answers' first tokens."""

    @torch.no_grad()
    def share(texts: Sequence[Words]) -> float:
        answer = Answer.of(model, int(_ids(model, new)[0]), int(_ids(model, old)[0]), 1)
        with evaluating(model):
            found = [float(answer(model(rows_of(model, text))[:, -1])) > 0 for text in texts]
        return sum(found) / len(found) if found else float("nan")

    return FactScores(share(prompts), share(paraphrases), 1 - share(neighbours))


def _value(
    model: Decoder, layer: int, groups: Sequence[tuple[Int[Tensor, "_ _"], int]], wanted: Int[Tensor, " target"]
) -> Float[Tensor, " d_model"]:
    """What the layer must say at the subject for the model to say ``wanted``, as near as may be to what it says.

    groups: rows that end in all of ``wanted`` but its last token, and where the subject ends in them.
    """
    point = f"blocks.{layer}.ffn_out"
    start = capture(model, groups[0][0], point)[point][0, groups[0][1]].clone()
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        change = torch.zeros_like(start).requires_grad_()
        optimiser = torch.optim.Adam([change], RATE * float(start.norm()) / len(start) ** 0.5)
        for _ in range(STEPS):
            loss = DECAY * (change.square().sum() / start.square().sum())
            for rows, place in groups:

                def moved(x: Tensor, place: int = place, change: Tensor = change) -> Tensor:
                    return torch.cat((x[:, :place], x[:, place : place + 1] + change, x[:, place + 1 :]), 1)

                with model.taps(edit={point: moved}):
                    said = wide(model(rows)[:, -len(wanted) :]).log_softmax(-1)
                loss = loss - said.gather(-1, wanted.expand(len(rows), -1)[..., None]).sum() / len(rows) / len(groups)
            (change.grad,) = torch.autograd.grad(loss, change)
            optimiser.step()
            with torch.no_grad():
                change *= (FARTHEST * start.norm() / change.norm().clamp(min=1e-12)).clamp(max=1.0)
    return wide(start + change.detach())


def _own_texts(model: Decoder, rows: int, length: int, seed: int) -> Int[Tensor, "rows time"]:
    """What the model writes behind random tokens."""
    generator = torch.Generator().manual_seed(seed)
    length = min(length, model.spec.context)
    session = Session(model, capacity=length)
    for token in torch.randint(model.spec.vocab_size, (rows,), generator=generator).tolist():
        session.add([token])
    with session.evaluating():
        written: Tensor | None = None
        while len(session.rows[0].ids) < length:
            logits = session.read(None if written is None else written.tolist())[:, -1]
            written = torch.multinomial(wide(logits).softmax(-1).cpu(), 1, generator=generator)
            if len(session.rows[0].ids) == length - 1:
                break
    last = torch.zeros(rows, 1, dtype=torch.long) if written is None else written
    return torch.cat((torch.tensor([row.ids for row in session.rows]), last), 1)[:, :length].to(model.device)


def _neuron(model: Decoder, layer: int, neuron: int) -> tuple[int, int, FeedForward]:
    """The numbers of a neuron from 0, and its layer. Raises UsageError where there is no such one."""
    (layer,) = numbers([layer], model.spec.n_layers, "layer", "the model")
    ffn = model.layers[layer].ffn
    if not isinstance(ffn, FeedForward):
        raise UsageError(f"blocks.{layer} has no feed-forward layer with neurons of its own", "choose another layer")
    (neuron,) = numbers([neuron], ffn.down.in_features, "neuron", f"blocks.{layer}")
    return layer, neuron, ffn


def _memory(model: Decoder, layer: int) -> tuple[int, nn.Linear]:
    """The matrix of values of a layer. Raises UsageError where what the layer adds is something else."""
    layer, _, ffn = _neuron(model, layer, 0)
    around = model.layers[layer].ffn_norms
    plain = around is not None and isinstance(around.post, nn.Identity) and isinstance(around.gain, nn.Identity)
    if not plain or around is None or around.branch_factor != 1.0:
        raise UsageError(
            f"blocks.{layer} changes what its feed-forward layer says", "ROME needs a plain pre-norm layer"
        )
    if type(ffn.down) is not nn.Linear:
        raise UsageError(f"blocks.{layer}.ffn.down is no plain matrix", "load the model without quantised=True")
    return layer, ffn.down


def _ids(model: Decoder, words: Words) -> Int[Tensor, " n"]:
    """Ids of an answer, without what begins a text. Raises UsageError where there are none."""
    if isinstance(words, str):
        if model.tokenizer is None:
            raise UsageError("this model has no tokenizer, so it cannot read a text", "give token ids instead")
        ids = model.tokenizer.encode(words)
    else:
        ids = list(words)
    if not ids:
        raise UsageError("the answer is empty", "give a token at least")
    return rows_of(model, ids, "the answer")[0]
