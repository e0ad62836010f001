"""Recurrent mixers keep the promises of all mixers: caches, padding, documents, batches and taps change nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import chunks, close, padded, steady
from torch import Tensor, nn

from pellucid.batch import Tokens
from pellucid.errors import DataError, SpecError, UsageError
from pellucid.nn import recurrent, stairs
from pellucid.nn.alignment import Alignment, Scores
from pellucid.nn.documents import Documents, OpenDocuments, find_documents
from pellucid.nn.init import initialise
from pellucid.nn.masks import lower
from pellucid.nn.models import Decoder, EncoderDecoder
from pellucid.nn.recurrent import AttentiveRecurrent, Recurrent
from pellucid.nn.stores import MemoryCache, StateCache
from pellucid.nn.view import View
from pellucid.spec import (
    AlignmentSpec,
    AttentiveRecurrentSpec,
    BlockSpec,
    Causal,
    DecoderSpec,
    EmbedSpec,
    EncoderDecoderSpec,
    EncoderSpec,
    FFNSpec,
    Full,
    LayerNormSpec,
    RecurrentSpec,
    StackSpec,
)
from pellucid.taps import name_points, tapped

WIDTH = 6
ALIGNMENTS = [AlignmentSpec("dot"), AlignmentSpec("general"), AlignmentSpec("additive", 5)]
CELLS: Any = ("lstm", "gru")
RECURRENT = [RecurrentSpec(cell, WIDTH, project=project) for cell in CELLS for project in (True, False)]
ATTENTIVE = [AttentiveRecurrentSpec(cell, WIDTH, one) for cell in CELLS for one in ALIGNMENTS]
BOTH = [RecurrentSpec(cell, 4, both_directions=True) for cell in CELLS]


@dataclass
class Kept:
    """What a model's cache would hold for one mixer."""

    state: StateCache
    memory: MemoryCache

    @staticmethod
    def empty(mixer: Any, batch: int) -> Kept:
        like = torch.zeros(1, dtype=torch.float64)
        return Kept(StateCache(OpenDocuments(batch), mixer.empty_state(batch, like)), MemoryCache())


@dataclass(frozen=True)
class Read:
    """An encoder's states, and where its tokens stand."""

    states: Tensor
    tokens: Tokens

    def rows(self, *rows: int) -> Read:
        seg = self.tokens.seg
        return Read(self.states[list(rows)], Tokens(self.tokens.pos[list(rows)], None if seg is None else seg[rows, :]))


def build(spec: Any, seed: int = 0) -> Any:
    """The mixer in float64, with weights wide enough that all of them matter."""
    generator = torch.Generator().manual_seed(seed)
    with steady():
        mixer = (AttentiveRecurrent if isinstance(spec, AttentiveRecurrentSpec) else Recurrent)(spec, WIDTH)  # pyright: ignore
    with torch.no_grad():
        for weight in mixer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.7)
    name_points(mixer)
    return mixer.double()


MIXERS = {spec: build(spec) for spec in [*RECURRENT, *ATTENTIVE, *BOTH]}
all_specs = st.sampled_from([*RECURRENT, *ATTENTIVE, *BOTH])
causal_specs = st.sampled_from([*RECURRENT, *ATTENTIVE])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def memory(batch: int, seed: int = 1) -> Read:
    """Four states a row, of which every second row has one less."""
    valid = torch.ones(batch, 4, dtype=torch.bool)
    valid[1::2, 0] = False
    return Read(randn(batch, 4, WIDTH, seed=seed), Tokens.padded(valid))


def run(mixer: Any, x: Tensor, tokens: Tokens, read: Read, kept: Kept | None = None) -> Tensor:
    """One forward, as a stack makes it."""
    progress = None if kept is None else kept.state.slots
    if progress is not None:
        progress.take(tokens)
    view = find_documents(tokens, None if progress is None else progress.before)
    if isinstance(mixer, AttentiveRecurrent):
        cross = View(tokens, lower(Full(), tokens, read.tokens), None, None, read.states)
        out = mixer(x, view, *((None, cross) if kept is None else (kept.state, cross, kept.memory)))
    else:
        out = mixer(x, view, None if kept is None else kept.state)
    if progress is not None:
        progress.commit(tokens)
    return out


def cut(tokens: Tokens, part: slice) -> Tokens:
    start = None if tokens.start is None else tokens.start + part.start
    return Tokens(tokens.pos[:, part], None if tokens.seg is None else tokens.seg[:, part], start)


def in_chunks(mixer: Any, x: Tensor, tokens: Tokens, read: Read, lengths: list[int]) -> tuple[Tensor, Kept]:
    out, start, kept = [], 0, Kept.empty(mixer, len(x))
    for n in lengths:
        part = slice(start, start + n)
        out.append(run(mixer, x[:, part], cut(tokens, part), read, kept))
        start += n
    return torch.cat(out, 1), kept


# --- a cache ----------------------------------------------------------------------------------------------------------


@given(causal_specs, st.integers(1, 3), st.integers(1, 9), st.data())
def test_any_chunking_is_one_forward(spec: Any, batch: int, time: int, data: st.DataObject) -> None:
    mixer = MIXERS[spec]
    x, tokens, read = randn(batch, time, WIDTH), Tokens.plain(batch, time), memory(batch)
    got, kept = in_chunks(mixer, x, tokens, read, data.draw(chunks(time)))
    whole, at_once = in_chunks(mixer, x, tokens, read, [time])
    close(got, whole)
    close(got, run(mixer, x, tokens, read))
    for a, b in zip(kept.state.tensors, at_once.state.tensors, strict=True):
        close(a, b)
        assert a.shape == (batch, WIDTH), "what is kept does not grow"


@given(causal_specs, padded(), st.data())
def test_padding_in_any_chunk(spec: Any, drawn: tuple[list[Tensor], Tensor, Tensor], data: st.DataObject) -> None:
    mixer = MIXERS[spec]
    rows, text, valid = drawn
    x, tokens, read = randn(*text.shape, WIDTH), Tokens.padded(valid), memory(len(rows))
    got, kept = in_chunks(mixer, x, tokens, read, data.draw(chunks(text.shape[1])))
    for i, row in enumerate(valid):
        alone, last = in_chunks(mixer, x[i, row][None], Tokens.plain(1, int(row.sum())), read.rows(i), [int(row.sum())])
        close(got[i, row], alone[0])
        for a, b in zip(kept.state.tensors, last.state.tensors, strict=True):
            close(a[i], b[0])


@st.composite
def documents(draw: st.DrawFn) -> tuple[Tensor, list[int]]:
    """Segments (2, time) of rows whose documents begin at different places, one with padding anywhere; and chunks."""
    time = draw(st.integers(2, 9))
    seg = torch.cat([torch.full((n,), i) for i, n in enumerate(draw(chunks(time)))])
    other = draw(st.lists(st.integers(0, 2), min_size=time, max_size=time).map(sorted).map(torch.tensor))
    holes = draw(st.lists(st.booleans(), min_size=time, max_size=time).map(torch.tensor))
    return torch.stack((seg, other.masked_fill(holes, -1))), draw(chunks(time))


@pytest.mark.parametrize("specs", [RECURRENT, ATTENTIVE, BOTH], ids=["recurrent", "attentive", "both directions"])
@given(documents(), st.data())
def test_documents_are_rows_of_their_own(
    specs: list[Any], drawn: tuple[Tensor, list[int]], data: st.DataObject
) -> None:
    mixer = MIXERS[data.draw(st.sampled_from(specs))]
    seg, lengths = drawn
    tokens, x = Tokens.packed(seg), randn(*seg.shape, WIDTH)
    theirs = torch.tensor([0, 0, 1, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8]).repeat(2, 1)
    read = Read(randn(*theirs.shape, WIDTH, seed=5), Tokens.packed(theirs))
    outputs = [run(mixer, x, tokens, read)]
    if getattr(mixer, "back", None) is None:
        outputs.append(in_chunks(mixer, x, tokens, read, lengths)[0])
    for got in outputs:
        for row in range(2):
            assert got[row, seg[row] < 0].abs().sum() == 0
            for one in set(seg[row].tolist()) - {-1}:
                its = seg[row] == one
                states = read.states[row, theirs[row] == one][None]
                alone = Read(states, Tokens.plain(1, states.shape[1]))
                close(got[row, its], run(mixer, x[row, its][None], Tokens.plain(1, int(its.sum())), alone)[0])


def test_control_a_state_that_is_not_reset_is_seen() -> None:
    x, doc = randn(1, 6, WIDTH), torch.tensor([[0, 0, 1, 1, 1, 2]])
    for spec in MIXERS:
        mixer = MIXERS[spec]
        more = (None, cross(Tokens.plain(1, 6), memory(1))) if isinstance(mixer, AttentiveRecurrent) else ()
        apart, together = mixer(x, Documents(None, doc), *more), mixer(x, Documents(None, None), *more)
        assert ((apart - together).abs().amax(-1)[0, 2:] > 1e-3).all()


def test_control_a_forgotten_state_is_seen() -> None:
    x, tokens, read = randn(2, 6, WIDTH), Tokens.plain(2, 6), memory(2)
    for spec in [*RECURRENT, *ATTENTIVE]:
        mixer = MIXERS[spec]
        forgetful = torch.cat([run(mixer, part, Tokens.plain(2, 3), read) for part in x.split(3, 1)], 1)
        assert (forgetful - run(mixer, x, tokens, read)).abs().max() > 1e-2


def test_both_directions_have_no_state_to_go_on_from() -> None:
    mixer = MIXERS[BOTH[0]]
    with pytest.raises(UsageError, match=r"both ways.*\n.*both_directions=False"):
        mixer(randn(1, 2, WIDTH), Documents(None, None), Kept.empty(mixer, 1).state)


def test_memory_is_projected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, x, read = MIXERS[ATTENTIVE[1]], randn(1, 4, WIDTH), memory(1)
    calls: list[int] = []
    with monkeypatch.context() as patch:
        forward = nn.Linear.forward
        patch.setattr(mixer.score.k, "forward", lambda m: calls.append(1) or forward(mixer.score.k, m))
        in_chunks(mixer, x, Tokens.plain(1, 4), read, [1, 1, 1, 1])
    assert calls == [1]


# --- padding, batches, time -------------------------------------------------------------------------------------------


@given(all_specs, padded(), st.booleans())
def test_padding_changes_nothing(spec: Any, drawn: tuple[list[Tensor], Tensor, Tensor], empty_row: bool) -> None:
    mixer = MIXERS[spec]
    valid = drawn[2]
    if empty_row:
        valid = torch.cat((torch.zeros_like(valid[:1]), valid))
    batch, time = valid.shape
    x, read = randn(batch, time, WIDTH).requires_grad_(), memory(batch)
    got = run(mixer, x, Tokens.padded(valid), read)
    assert got[~valid].abs().sum() == 0
    for i, row in enumerate(valid):
        if row.any():
            close(got[i, row], run(mixer, x[i, row][None], Tokens.plain(1, int(row.sum())), read.rows(i))[0])
    weights = list(mixer.parameters())
    gradients = torch.autograd.grad(got.square().sum(), [x, *weights], allow_unused=True)
    assert gradients[0] is not None and gradients[0][~valid].abs().sum() == 0, "padding is not read"
    assert all(g is not None and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("spec", list(MIXERS), ids=str)
@pytest.mark.parametrize("time", [1, 3])
def test_nothing_but_padding(spec: Any, time: int) -> None:
    mixer, x = MIXERS[spec], randn(2, time, WIDTH)
    nothing = Tokens.padded(torch.zeros(2, time, dtype=torch.bool))
    assert run(mixer, x, nothing, memory(2)).abs().sum() == 0
    if getattr(mixer, "back", None) is None:
        kept = Kept.empty(mixer, 2)
        run(mixer, x, Tokens.plain(2, time), memory(2), kept)
        before = kept.state.tensors
        assert run(mixer, x, nothing, memory(2), kept).abs().sum() == 0
        for a, b in zip(before, kept.state.tensors, strict=True):
            assert torch.equal(a, b)


@given(all_specs, st.integers(2, 4), st.integers(1, 6))
def test_a_batch_is_its_rows(spec: Any, batch: int, time: int) -> None:
    mixer = MIXERS[spec]
    x, read = randn(batch, time, WIDTH), memory(batch)
    got = run(mixer, x, Tokens.plain(batch, time), read)
    for i in range(batch):
        close(got[i], run(mixer, x[i : i + 1], Tokens.plain(1, time), read.rows(i))[0])


@pytest.mark.parametrize("spec", list(MIXERS), ids=str)
@pytest.mark.parametrize("kind", ["plain", "padded"])
def test_the_future_is_not_seen(spec: Any, kind: str) -> None:
    """By gradient: what token 3 says depends on tokens 0 to 3, all of them, and on no other. Control: both ways do."""
    mixer, x = MIXERS[spec], randn(1, 6, WIDTH).requires_grad_()
    tokens = Tokens.plain(1, 6) if kind == "plain" else Tokens.padded(torch.ones(1, 6, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(run(mixer, x, tokens, memory(1))[0, 3].sum(), x)
    depends = gradient[0].abs().amax(-1) > 0
    assert depends.tolist() == [True] * 4 + [getattr(mixer, "back", None) is not None] * 2


@given(st.sampled_from(BOTH), documents())
def test_a_reversed_text_swaps_the_directions(spec: Any, drawn: tuple[Tensor, list[int]]) -> None:
    mixer = MIXERS[spec]
    seg, x = drawn[0], randn(*drawn[0].shape, WIDTH)
    with tapped(mixer, "h") as acts:
        run(mixer, x, Tokens.packed(seg), memory(2))
        h = acts["h"]
        mixer.cell, mixer.back = mixer.back, mixer.cell
        run(mixer, x.flip(1), Tokens.packed(seg.flip(1)), memory(2))
        mixer.cell, mixer.back = mixer.back, mixer.cell
        reversed_ = acts["h"].flip(1)
    close(h, torch.cat(reversed_.chunk(2, -1)[::-1], -1))


# --- alignment --------------------------------------------------------------------------------------------------------

alignments = st.sampled_from(ALIGNMENTS)


def sublayer(spec: AlignmentSpec) -> Any:
    with steady():
        module = Alignment(spec, WIDTH).double()
    name_points(module)
    return module


def cross(tokens: Tokens, read: Read) -> View:
    return View(tokens, lower(Full(), tokens, read.tokens), None, None, read.states)


@given(alignments, st.integers(1, 3), st.integers(1, 5))
def test_patterns_are_distributions_over_what_is_seen(spec: AlignmentSpec, batch: int, time: int) -> None:
    module, tokens, read = sublayer(spec), Tokens.plain(batch, time), memory(batch)
    with tapped(module, "*") as acts:
        module(randn(batch, time, WIDTH), cross(tokens, read))
    pattern, seen = acts["pattern"], (read.tokens.pos >= 0)[:, None, None].expand(batch, 1, time, 4)
    close(pattern.sum(-1), torch.ones(batch, 1, time, dtype=torch.float64))
    assert (pattern[seen] > 0).all() and pattern[~seen].abs().sum() == 0
    close(acts["z"], pattern[:, 0] @ read.states)
    assert acts["scores"].shape == pattern.shape


@given(alignments, st.data())
def test_the_memory_may_be_anywhere(spec: AlignmentSpec, data: st.DataObject) -> None:
    """Padding in it, its order, and a cache change nothing; in chunks or at once."""
    module, x, tokens = sublayer(spec), randn(1, 5, WIDTH), Tokens.plain(1, 5)
    states = randn(1, 4, WIDTH, seed=2)
    whole = module(x, cross(tokens, Read(states, Tokens.plain(1, 4))))
    order = torch.tensor(data.draw(st.permutations([0, 1, 2, 3, 4, 5])))
    scattered = torch.full((1, 6, WIDTH), 9.0, dtype=torch.float64)
    valid = order < 4
    scattered[0, valid] = states[0, order[valid]]
    read, past = Read(scattered, Tokens.padded(valid[None])), MemoryCache()
    parts = x.split(data.draw(chunks(5)), 1)
    close(torch.cat([module(part, cross(Tokens.plain(1, part.shape[1]), read), past) for part in parts], 1), whole)


@pytest.mark.parametrize("spec", ALIGNMENTS, ids=str)
def test_a_memory_of_nothing_gives_zeros(spec: AlignmentSpec) -> None:
    x, read = randn(2, 3, WIDTH).requires_grad_(), Read(randn(2, 4, WIDTH), Tokens(torch.full((2, 4), -1)))
    module, mixer = sublayer(spec), build(AttentiveRecurrentSpec("gru", WIDTH, spec))
    for one in (module, mixer):
        with tapped(one, ["pattern", "z"]) as acts:
            view = cross(Tokens.plain(2, 3), read)
            out = one(x, view) if one is module else one(x, Documents(None, None), None, view)
        assert acts["pattern"].abs().sum() == acts["z"].abs().sum() == 0
        gradients = torch.autograd.grad(out.sum(), [x, *one.parameters()], allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in gradients) and out.isfinite().all()


def test_a_causal_proof_is_obeyed() -> None:
    """The memory may be the decoder's own past, where a mask is proved from its form and never made."""
    tokens, x = Tokens.plain(1, 4), randn(1, 4, WIDTH)
    view = View(tokens, lower(Causal(), tokens, tokens), None, None, x)
    assert view.visible.proof == "causal"
    for one, args in ((sublayer(ALIGNMENTS[1]), (view,)), (MIXERS[ATTENTIVE[1]], (Documents(None, None), None, view))):
        with tapped(one, "pattern") as acts:
            one(x, *args)
        assert torch.equal(acts["pattern"][0, 0] > 0, torch.ones(4, 4).tril().bool())


def test_bad_calls_are_refused() -> None:
    tokens, x = Tokens.plain(1, 2), randn(1, 2, WIDTH)
    view = View(tokens, lower(Full(), tokens, tokens), None, None)
    with pytest.raises(DataError, match="no memory"):
        sublayer(ALIGNMENTS[1])(x, view)
    with pytest.raises(DataError, match="no memory"):
        MIXERS[ATTENTIVE[0]](x, Documents(None, None), None, view)
    with pytest.raises(SpecError, match=r'width 4 with memory of width 6\n.*score="general"'):
        Scores(AlignmentSpec("dot"), 4, 6)


# --- taps -------------------------------------------------------------------------------------------------------------


@given(all_specs, st.booleans())
def test_identity_edits_are_no_edits(spec: Any, wide: bool) -> None:
    mixer = MIXERS[spec]
    x, tokens, read = (
        randn(2, 5, WIDTH),
        Tokens.padded(torch.tensor([[True] * 5, [False, True, False, True, True]])),
        memory(2),
    )
    plain = run(mixer, x, tokens, read)
    with tapped(mixer, "*", {"*": lambda y: y}) as acts:
        close(run(mixer, x, tokens, read), plain)
    assert set(acts) == set(mixer.points())
    assert acts["h"].shape == (2, 5, WIDTH if getattr(mixer, "back", None) is None else 8)
    if isinstance(mixer, AttentiveRecurrent):
        assert acts["pattern"].shape == (2, 1, 5, 4)
        close(acts["z"], acts["pattern"][:, 0] @ read.states)
        seen = (tokens.pos >= 0)[:, None, :, None] & (read.tokens.pos >= 0)[:, None, None]
        assert torch.equal(acts["pattern"] > 0, seen.expand(2, 1, 5, 4))


@pytest.mark.parametrize("spec", ATTENTIVE, ids=str)
def test_edits_reach_the_cell_and_what_comes_after(spec: Any) -> None:
    """A pattern set by hand is a context set by hand; one at token 2 changes the patterns of later tokens."""
    mixer, x, tokens, read = MIXERS[spec], randn(1, 5, WIDTH), Tokens.plain(1, 5), memory(1)

    def first_only(pattern: Tensor) -> Tensor:
        return torch.zeros_like(pattern).index_fill(-1, torch.tensor([0]), 1.0)

    with tapped(mixer, "pattern", {"pattern": first_only}) as acts:
        by_pattern = run(mixer, x, tokens, read)
    assert torch.equal(acts["pattern"], first_only(acts["pattern"]))
    with tapped(mixer, (), {"z": lambda z: read.states[:, :1].expand_as(z)}):
        by_context = run(mixer, x, tokens, read)
    assert (by_pattern - run(mixer, x, tokens, read)).abs().max() > 1e-2
    close(by_pattern, by_context)

    def at_two(pattern: Tensor) -> Tensor:
        edited = pattern.clone()
        edited[:, :, 2] = first_only(pattern)[:, :, 2]
        return edited

    with tapped(mixer, "pattern") as plain:
        run(mixer, x, tokens, read)
    with tapped(mixer, "pattern", {"pattern": at_two}) as acts:
        run(mixer, x, tokens, read)
    change = (acts["pattern"] - plain["pattern"]).abs().amax((0, 1, 3)) > 1e-6
    assert change.tolist() == [False, False, True, True, True]


# --- weights, precision, whole models ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", list(MIXERS), ids=str)
def test_autocast_keeps_the_state_wide(spec: Any) -> None:
    mixer = build(spec).float()
    x, read = randn(2, 6, WIDTH).float(), memory(2)
    read = Read(read.states.float(), read.tokens)
    tokens = Tokens.padded(torch.tensor([[True] * 6, [True, False] * 3]))
    both = getattr(mixer, "back", None) is not None
    kept = None if both else Kept(StateCache(OpenDocuments(2), mixer.empty_state(2, x)), MemoryCache())
    with tapped(mixer, "h") as acts:
        expected = run(mixer, x, tokens, read)
        h = acts["h"]
        with torch.autocast("cpu", torch.bfloat16):
            got = run(mixer, x, tokens, read, kept)
        assert torch.equal(acts["h"], h)
    torch.testing.assert_close(got.float(), expected, atol=0.05, rtol=0.05)
    assert kept is None or all(s.dtype is torch.float32 for s in kept.state.tensors)


@pytest.mark.parametrize("rule", ["normal", "fan_in", "xavier"])
def test_forget_gates_start_open(rule: Any) -> None:
    specs = [RecurrentSpec("lstm", 5), RecurrentSpec("gru", 5)]
    stack = StackSpec(WIDTH, tuple(BlockSpec(spec, None, LayerNormSpec()) for spec in specs), None)
    model: Any = initialise(Decoder(DecoderSpec(7, 8, EmbedSpec(), stack)), rule)
    lstm, gru = (block.rnn.cell for block in model.blocks)
    forget = torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat_interleave(5)
    assert torch.equal(lstm.bias_ih_l0, forget) and not lstm.bias_hh_l0.any()
    assert not gru.bias_ih_l0.any() and not gru.bias_hh_l0.any()
    assert lstm.weight_hh_l0.std() > 0.01
    cell: Any = AttentiveRecurrent(AttentiveRecurrentSpec("lstm", 5, ALIGNMENTS[1]), WIDTH).cell
    assert torch.equal(cell.bias_ih, forget) and not cell.bias_hh.any(), "as it is built, too"


def before_2017(cell: Any, luong: AlignmentSpec | None, width: int = WIDTH, layers: int = 2) -> EncoderDecoderSpec:
    """A recurrent encoder of both directions; a decoder that asks after each step (Luong), or before it (Bahdanau)."""
    norm, units = LayerNormSpec(), width - 1
    reader = BlockSpec(RecurrentSpec(cell, units, both_directions=True), None, norm)
    writer = (
        BlockSpec(RecurrentSpec(cell, units), None, norm, cross=luong)
        if luong
        else BlockSpec(AttentiveRecurrentSpec(cell, units, ALIGNMENTS[2]), FFNSpec(8), norm)
    )
    encoder, decoder = (StackSpec(width, (block,) * layers, norm) for block in (reader, writer))
    return EncoderDecoderSpec(EncoderSpec(11, 16, EmbedSpec(), encoder), DecoderSpec(11, 16, EmbedSpec(), decoder), 0)


MODELS = [before_2017(cell, luong) for cell in CELLS for luong in (None, *ALIGNMENTS)]


@pytest.mark.parametrize("spec", MODELS, ids=lambda s: repr(s.decoder.stack.blocks[0])[:60])
def test_recurrent_translators_go_on_from_a_cache(spec: EncoderDecoderSpec) -> None:
    model = initialise(EncoderDecoder(spec), "xavier").double().eval()
    source, ids = torch.arange(10).view(2, 5), torch.arange(12).view(2, 6) % 11
    places = Tokens.padded(torch.tensor([[True] * 5, [True, True, False, False, False]]))
    with torch.no_grad():
        whole = model(source, ids, places)
        cache = model.new_cache(source, places, 6)
        parts = [model.decoder(part, cache=cache) for part in ids.split([3, 1, 2], 1)]
        alone = model(source[1:, :2], ids[1:])
    close(torch.cat(parts, 1), whole)
    close(whole[1:], alone)
    assert (model(source.flip(1), ids) - model(source, ids)).abs().max() > 1e-4, "the source matters"


@pytest.mark.parametrize("luong", [None, ALIGNMENTS[2]], ids=["Bahdanau", "Luong"])
def test_recurrent_models_learn_to_copy(luong: AlignmentSpec | None) -> None:
    """To copy the source, which without looking at it would cost ln 9 a token. Wide enough that no seed is unlucky."""
    model = initialise(EncoderDecoder(before_2017("lstm", luong, width=16, layers=1)), "fan_in")
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    generator, loss = torch.Generator().manual_seed(0), torch.zeros(())
    for _ in range(150):
        source = torch.randint(2, 11, (32, 3), generator=generator)
        logits = model(source, torch.cat((torch.zeros_like(source[:, :1]), source[:, :-1]), 1))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), source.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.2, "ln 9 is 2.2"


# --- rectangles -------------------------------------------------------------------------------------------------------


@given(padded(), st.booleans())
def test_the_kernel_sees_each_token_once(drawn: tuple[list[Tensor], Tensor, Tensor], both: bool) -> None:
    """Neither padding nor a token twice, in at most as many calls as there are lengths."""
    _, text, valid = drawn
    mixer, calls = MIXERS[BOTH[0] if both else RECURRENT[0]], []
    original = recurrent.run_cell

    def counting(cell: Any, x: Tensor, state: Any) -> Any:
        calls.append(x.shape[0] * x.shape[1])
        return original(cell, x, state)

    with pytest.MonkeyPatch.context() as patch:
        for module in (recurrent, stairs):
            patch.setattr(module, "run_cell", counting)
        run(mixer, randn(*text.shape, WIDTH), Tokens.padded(valid), memory(len(text)))
    if text.shape[1] > 1:
        assert sum(calls) == int(valid.sum()) * (1 + both)
        assert len(calls) <= len(set(valid.sum(-1).tolist())) * (1 + both)
