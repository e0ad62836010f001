"""Recurrent mixers against torch's modules, and attention before 2017 against its formulas, written out as loops.

Controls are wrong on purpose: the comparison must see them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pellucid.batch import Tokens
from pellucid.nn.alignment import Alignment
from pellucid.nn.documents import Documents, OpenDocuments, find_documents
from pellucid.nn.masks import lower
from pellucid.nn.models import Decoder, Encoder
from pellucid.nn.recurrent import AttentiveRecurrent, Recurrent
from pellucid.nn.stores import StateCache
from pellucid.nn.view import View
from pellucid.spec import (
    NO_NORM,
    AlignmentSpec,
    AttentiveRecurrentSpec,
    BlockSpec,
    DecoderSpec,
    EmbedSpec,
    EncoderSpec,
    Full,
    LayerNormSpec,
    RecurrentSpec,
    ResidualSpec,
    StackSpec,
)

WIDTH, VOCAB = 8, 13
TORCH: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU}
CELLS = pytest.mark.parametrize("cell", ["lstm", "gru"])
BOTH = pytest.mark.parametrize("both", [False, True], ids=["forward", "both directions"])


def difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def drawn(module: Any, seed: int = 0) -> Any:
    """The module in float64 with weights wide enough that all of them matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
    return module.double()


def randn(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def copy_layer(ours: Recurrent, theirs: Any, layer: int = 0) -> None:
    """Torch's weights of one layer."""
    ours.cell.load_state_dict({name: getattr(theirs, f"{name[:-1]}{layer}") for name in ours.cell.state_dict()})
    if ours.back is not None:
        reverse = {name: getattr(theirs, f"{name[:-1]}{layer}_reverse") for name in ours.back.state_dict()}
        ours.back.load_state_dict(reverse)


def one_layer(cell: Any, both: bool = False) -> tuple[Recurrent, Any]:
    """Ours and torch's with the same weights, no projection."""
    d_hidden = WIDTH // 2 if both else WIDTH
    theirs = drawn(TORCH[cell](WIDTH, d_hidden, batch_first=True, bidirectional=both))
    ours = Recurrent(RecurrentSpec(cell, d_hidden, both, project=False), WIDTH).double()
    copy_layer(ours, theirs)
    return ours, theirs


# --- torch's modules --------------------------------------------------------------------------------------------------


@CELLS
@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_stack_of_blocks_is_a_stacked_module(cell: Any, both: bool, dtype: torch.dtype) -> None:
    """Recurrence as it was before residual connections: a spec without skip and norm."""
    mixer = RecurrentSpec(cell, WIDTH // 2 if both else WIDTH, both, project=False)
    block = BlockSpec(mixer, None, LayerNormSpec(), NO_NORM, residual=ResidualSpec(skip=0.0))
    stack = StackSpec(WIDTH, (block,) * 3, None)
    sizes = VOCAB, 16, EmbedSpec(), stack
    model: Any = Encoder(EncoderSpec(*sizes)).to(dtype) if both else Decoder(DecoderSpec(*sizes)).to(dtype)
    theirs = drawn(TORCH[cell](WIDTH, mixer.d_hidden, 3, batch_first=True, bidirectional=both)).to(dtype)
    for layer, one in enumerate(model.blocks):
        copy_layer(one.rnn, theirs, layer)
    ids = torch.randint(VOCAB, (3, 11), generator=torch.Generator().manual_seed(1))
    got, expected = model.states(ids), theirs(model.embed.tokens(ids))[0]
    assert difference(got, expected) < (1e-5 if dtype is torch.float32 else 1e-12)
    got.square().sum().backward()
    gradients = [model.blocks[2].rnn.cell.weight_hh_l0.grad, model.blocks[0].rnn.cell.bias_ih_l0.grad]
    theirs(model.embed.tokens(ids))[0].square().sum().backward()
    for ours, other in zip(gradients, [theirs.weight_hh_l2.grad, theirs.bias_ih_l0.grad], strict=True):
        assert difference(ours, other) < 1e-5 * (1 + other.abs().max().item())


@CELLS
@BOTH
def test_ragged_rows_are_a_packed_sequence(cell: Any, both: bool) -> None:
    ours, theirs = one_layer(cell, both)
    lengths, x = torch.tensor([4, 7, 1, 7]), randn(4, 7, WIDTH)
    valid = torch.arange(7) < lengths[:, None]
    got = ours(x, find_documents(Tokens.padded(valid)))
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected = pad_packed_sequence(theirs(packed)[0], batch_first=True)[0]
    assert difference(got, expected) < 1e-12


@CELLS
@pytest.mark.parametrize("ragged", [False, True])
def test_the_state_that_is_kept(cell: Any, ragged: bool) -> None:
    ours, theirs = one_layer(cell)
    lengths, x = torch.tensor([2, 5, 1, 4, 2] if ragged else [5] * 5), randn(5, 5, WIDTH)
    start = tuple(randn(5, WIDTH, seed=i) for i, _ in enumerate(ours.empty_state(5, x)))
    past = StateCache(OpenDocuments(5), start)
    tokens = Tokens.padded(torch.arange(5) < lengths[:, None]) if ragged else Tokens.plain(5, 5)
    ours(x, find_documents(tokens), past)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    given = tuple(s[None] for s in start)
    _, last = theirs(packed, given if cell == "lstm" else given[0])
    for got, expected in zip(past.tensors, last if cell == "lstm" else (last,), strict=True):
        assert difference(got, expected[0]) < 1e-12
    assert difference(past.tensors[0], start[0]) > 1e-2


def test_as_many_documents_as_tokens() -> None:
    """The last document of one row is not the first of the next."""
    ours, theirs = one_layer("gru")
    x, doc = randn(2, 3, WIDTH), torch.tensor([[1, 2, 3], [0, 0, 0]])
    got = ours(x, Documents(None, doc))
    assert difference(got[0], theirs(x[0][:, None])[0][:, 0]) < 1e-12
    assert difference(got[1], theirs(x[1:])[0][0]) < 1e-12


def test_control_gates_in_another_order() -> None:
    ours, theirs = one_layer("lstm")
    x = randn(2, 6, WIDTH)
    plain = Documents(None, None)
    assert difference(ours(x, plain), theirs(x)[0]) < 1e-12
    with torch.no_grad():
        for weight in ours.cell.parameters():  # input, forget, cell, output -> input, cell, forget, output
            weight.copy_(weight.unflatten(0, (4, -1))[[0, 2, 1, 3]].flatten(0, 1))
    assert difference(ours(x, plain), theirs(x)[0]) > 1e-2


@CELLS
@pytest.mark.parametrize("bias", ["bias_ih_l0", "bias_hh_l0"])
def test_control_a_forgotten_bias(cell: Any, bias: str) -> None:
    ours, theirs = one_layer(cell)
    x = randn(2, 6, WIDTH)
    with torch.no_grad():
        getattr(ours.cell, bias).zero_()
    assert difference(ours(x, Documents(None, None)), theirs(x)[0]) > 1e-2


@CELLS
@BOTH
def test_control_documents_and_padding_that_are_read(cell: Any, both: bool) -> None:
    """What is compared sees a state that is not reset, and padding that is taken for a token."""
    ours, theirs = one_layer(cell, both)
    x = randn(1, 6, WIDTH)
    documents = Tokens.packed(torch.tensor([[0, 0, 0, 1, 1, 1]]))
    expected = torch.cat([theirs(part)[0] for part in x.split(3, 1)], 1)
    assert difference(ours(x, find_documents(documents)), expected) < 1e-12
    assert difference(ours(x, Documents(None, None)), expected) > 1e-2
    hole = torch.tensor([[True, True, False, True, True, True]])
    expected = theirs(x[hole][None])[0][0]
    assert difference(ours(x, find_documents(Tokens.padded(hole)))[hole], expected) < 1e-12
    assert difference(ours(x, Documents(None, None))[hole], expected) > 1e-2


# --- formulas ---------------------------------------------------------------------------------------------------------

SCORES = {"dot": AlignmentSpec("dot"), "general": AlignmentSpec("general"), "additive": AlignmentSpec("additive", 6)}
ALIGNED = pytest.mark.parametrize("score", list(SCORES))
SEEN = torch.tensor([[True] * 5, [False, True, True, False, True]])  # of the memory, by row


def context(w: dict[str, Tensor], score: str, h: Tensor, memory: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and average of one query over one row of memory, state by state."""
    exps: list[Tensor] = []
    for s in memory:
        if score == "dot":
            e = (h * s).sum()
        elif score == "general":
            e = (h * (w["score.k.weight"] @ s)).sum()
        else:
            e = w["score.v.weight"][0] @ torch.tanh(w["score.q.weight"] @ h + w["score.k.weight"] @ s)
        exps.append(e.exp())
    total = sum(e for e, see in zip(exps, seen, strict=True) if see)
    weights = [e / total if see else torch.zeros_like(e) for e, see in zip(exps, seen, strict=True)]
    c = sum((a * s for a, s in zip(weights, memory, strict=True)), torch.zeros_like(memory[0]))
    return torch.stack(weights), c


def views(tokens: Tokens, width: int = WIDTH) -> tuple[View, Tensor]:
    """A memory of five states, some of them padding in the second row."""
    memory = randn(2, 5, width, seed=7)
    return View(tokens, lower(Full(), tokens, Tokens.padded(SEEN)), None, None, memory), memory


@ALIGNED
def test_alignment_is_its_formula(score: str) -> None:
    module = drawn(Alignment(SCORES[score], WIDTH))
    x, w = randn(2, 4, WIDTH), dict(module.named_parameters())
    view, memory = views(Tokens.plain(2, 4))
    got = module(x, view)
    for row in range(2):
        for t in range(4):
            h = x[row, t]
            c = context(w, score, h, memory[row], SEEN[row])[1]
            expected = torch.tanh(w["o.weight"] @ torch.cat((c, h)))
            assert difference(got[row, t], expected) < 1e-12
            swapped = torch.tanh(w["o.weight"] @ torch.cat((h, c)))
            assert difference(got[row, t], swapped) > 1e-2, "control: [h; c]"
            everything = context(w, score, h, memory[row], torch.ones(5, dtype=torch.bool))[1]
            unmasked = torch.tanh(w["o.weight"] @ torch.cat((everything, h)))
            assert row == 0 or difference(got[row, t], unmasked) > 1e-4, "control: padding that is looked at"


def step(w: dict[str, Tensor], cell: str, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One step of a cell from its definition."""
    h = state[0]
    a, b = (
        (w[f"cell.weight_{k}"] @ v + w[f"cell.bias_{k}"]).chunk(4 if cell == "lstm" else 3)
        for k, v in (("ih", x), ("hh", h))
    )
    if cell == "lstm":
        i, f, g, o = (p + q for p, q in zip(a, b, strict=True))
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    r, z = (a[0] + b[0]).sigmoid(), (a[1] + b[1]).sigmoid()
    return ((1 - z) * (a[2] + r * b[2]).tanh() + z * h,)


def attentive(
    w: dict[str, Tensor], cell: str, score: str, x: Tensor, memory: Tensor, seen: Tensor, late: bool
) -> Tensor:
    """One row, token by token. ``late``, a control: the state after the token asks, and the context joins the next."""
    zero = torch.zeros(WIDTH, dtype=torch.float64)
    state, out, c = (zero, zero) if cell == "lstm" else (zero,), [], torch.zeros_like(memory[0])
    for token in x:
        if not late:
            c = context(w, score, state[0], memory, seen)[1]
        state = step(w, cell, torch.cat((token, c)), state)
        if late:
            c = context(w, score, state[0], memory, seen)[1]
        out.append(w["o.weight"] @ state[0])
    return torch.stack(out)


@CELLS
@ALIGNED
def test_attentive_recurrence_is_its_formula(cell: Any, score: str) -> None:
    module = drawn(AttentiveRecurrent(AttentiveRecurrentSpec(cell, WIDTH, SCORES[score]), WIDTH))
    tokens, w = Tokens.plain(2, 6), dict(module.named_parameters())
    x, (view, memory) = randn(2, 6, WIDTH), views(tokens)
    got = module(x, find_documents(tokens), None, view)
    for row in range(2):
        expected, late = (attentive(w, cell, score, x[row], memory[row], SEEN[row], late) for late in (False, True))
        assert difference(got[row], expected) < 1e-12
        assert difference(got[row], late) > 1e-2
