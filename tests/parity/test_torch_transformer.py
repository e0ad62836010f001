"""The 2017 model: ours is torch.nn.Transformer between the paper's embedding and head; wrong models are not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from against_hf import BATCH, TIME, TOLERANCE, VISIBLE, VOCAB, forced, gap, noisy, relative, without
from against_pairs import SOURCE_TIME, blocks_of, ragged, random_pair, sides
from torch import Tensor, nn

from pellucid.batch import IGNORE, Batch, Source, Tokens
from pellucid.families.table import STACKED, Row, Table
from pellucid.families.weights import export_weights, load_weights, to_theirs
from pellucid.nn.models import Decoder, Encoder, EncoderDecoder, build_model
from pellucid.nn.positions import Sinusoidal
from pellucid.nn.stores import Memory
from pellucid.spec import (
    POST_NORM,
    PRE_NORM,
    AttentionSpec,
    BlockSpec,
    Causal,
    DecoderSpec,
    EmbedSpec,
    EncoderDecoderSpec,
    EncoderSpec,
    FFNSpec,
    Full,
    LayerNormSpec,
    Prefix,
    SinusoidalSpec,
    StackSpec,
)

D, HEADS, D_FF, CONTEXT, EPS = 32, 4, 48, 40, 1e-2  # an eps far from the usual, so that one who forgets it is seen
N_READING, N_WRITING = 2, 3
pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # theirs, where its layers allow none
LAYER: dict[str, Any] = {"dim_feedforward": D_FF, "dropout": 0.0, "batch_first": True, "layer_norm_eps": EPS}


def sinusoids(pos: Tensor, side_by_side: bool = False) -> Tensor:
    """The paper's section 3.5, number by number. ``side_by_side``, a control: all sines, then all cosines."""
    rows: list[list[float]] = []
    for p in pos.flatten().tolist():
        angles = [p / 10_000 ** (2 * i / D) for i in range(D // 2)]
        if side_by_side:
            rows.append([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
        else:
            rows.append([f(a) for a in angles for f in (math.sin, math.cos)])
    return torch.tensor(rows).view(*pos.shape, D)


class Reference(nn.Module):
    """torch's Transformer, with what it leaves to its user: embedding, positions, masks, and a tied head."""

    def __init__(self, side_by_side: bool = False, **settings: Any):
        super().__init__()
        self.side_by_side = side_by_side
        self.embed = nn.Embedding(VOCAB, D)
        nn.init.normal_(self.embed.weight, std=D**-0.5)  # of the head, too
        self.model = nn.Transformer(D, HEADS, N_READING, N_WRITING, **LAYER, **settings)

    def enter(self, ids: Tensor, tokens: Tokens) -> Tensor:
        return self.embed(ids) * math.sqrt(D) + sinusoids(tokens.pos.clamp(min=0), self.side_by_side)

    def forward(self, source: Tensor, ids: Tensor, source_tokens: Tokens, tokens: Tokens) -> Tensor:
        hidden = self.model(
            self.enter(source, source_tokens),
            self.enter(ids, tokens),
            tgt_mask=torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1),
            src_key_padding_mask=source_tokens.pos < 0,
            tgt_key_padding_mask=tokens.pos < 0,
            memory_key_padding_mask=source_tokens.pos < 0,
        )
        return hidden @ self.embed.weight.T


def block(norm_first: bool, activation: Any, bias: bool = True, cross: bool = False) -> BlockSpec:
    mixer = AttentionSpec(HEADS, HEADS, D // HEADS, bias=bias, out_bias=bias)
    everyone = replace(mixer, mask=Full())
    return BlockSpec(
        mixer if cross else everyone,
        FFNSpec(D_FF, activation, bias),
        LayerNormSpec(EPS, bias),
        PRE_NORM if norm_first else POST_NORM,
        cross=everyone if cross else None,
    )


def to_spec(norm_first: bool = False, activation: Any = "relu", bias: bool = True) -> EncoderDecoderSpec:
    """As torch builds it: with a norm after either stack, wherever the norms of its layers stand."""
    embed, norm = EmbedSpec(SinusoidalSpec(), scale=D**0.5), LayerNormSpec(EPS, bias)
    reading = StackSpec(D, (block(norm_first, activation, bias),) * N_READING, norm)
    writing = StackSpec(D, (block(norm_first, activation, bias, cross=True),) * N_WRITING, norm)
    return EncoderDecoderSpec(
        EncoderSpec(VOCAB, CONTEXT, embed, reading), DecoderSpec(VOCAB, CONTEXT, embed, writing), start_id=0
    )


def rows(theirs: str, ours: str, place: str, branches: list[tuple[str, str]]) -> list[Row]:
    """Of the layers called ``theirs``: their nth norm belongs to their nth branch, and stands at our ``place``."""
    found: list[Row] = []
    for kind in ("weight", "bias"):
        for i, (a, b) in enumerate(branches):
            found.append(Row(f"{theirs}.norm{i + 1}.{kind}", f"{ours}.{b}_norms.{place}.{kind}"))
            if b != "ffn":
                split = tuple(f"{ours}.{b}.{x}.{kind}" for x in "qkv")
                found.append(Row(f"{theirs}.{a}.in_proj_{kind}", split, STACKED))
                found.append(Row(f"{theirs}.{a}.out_proj.{kind}", f"{ours}.{b}.o.{kind}"))
        found += [
            Row(f"{theirs}.linear1.{kind}", f"{ours}.ffn.up.{kind}"),
            Row(f"{theirs}.linear2.{kind}", f"{ours}.ffn.down.{kind}"),
        ]
    return found


READING = [("self_attn", "attn"), ("", "ffn")]
WRITING = [("self_attn", "attn"), ("multihead_attn", "cross"), ("", "ffn")]


def table(norm_first: bool) -> Table:
    place = "pre" if norm_first else "out"
    final = [
        Row(f"model.{side}.norm.{kind}", f"{side}.final_norm.{kind}")
        for side in ("encoder", "decoder")
        for kind in ("weight", "bias")
    ]
    return Table(
        rows=(
            Row("embed.weight", "encoder.embed.tokens.weight"),
            *rows("model.encoder.layers.#", "encoder.blocks.#", place, READING),
            *rows("model.decoder.layers.#", "decoder.blocks.#", place, WRITING),
            *final,
        )
    )


def pair(norm_first: bool = False, activation: Any = "relu", **settings: Any) -> tuple[EncoderDecoder, Reference]:
    torch.manual_seed(0)
    theirs = noisy(Reference(norm_first=norm_first, activation=activation, **settings)).train()  # the plain path
    ours: Any = build_model(to_spec(norm_first, activation, settings.get("bias", True)))
    load_weights(ours, theirs.state_dict(), table(norm_first))
    return ours.eval(), theirs


VARIANTS: dict[str, dict[str, Any]] = {
    "2017": {},
    "norm first": {"norm_first": True},
    "gelu": {"activation": "gelu"},
    "no biases": {"bias": False},
    "no biases, norm first": {"bias": False, "norm_first": True},
}
ALL = pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
FIRST = pytest.mark.parametrize("norm_first", [False, True])
PLAIN = Tokens.plain(BATCH, SOURCE_TIME), Tokens.plain(BATCH, TIME)


@torch.no_grad()
def logits_gap(ours: EncoderDecoder, theirs: Reference) -> float:
    source, ids = random_pair()
    return gap(ours(source, ids), theirs(source, ids, *PLAIN))


@torch.no_grad()
def padded_gap(ours: EncoderDecoder, theirs: Reference, side: str, told: Tokens | None = None) -> float:
    """Source and target padded on one side. ``told``: what ours hears of the source instead of the truth."""
    source, ids = random_pair()
    source_tokens, valid = Tokens.padded(ragged(side)), ragged(side, TIME)
    tokens = Tokens.padded(valid)
    got = ours(source, ids, source_tokens if told is None else told, tokens)
    return gap(got[valid], theirs(source, ids, source_tokens, tokens)[valid])


@ALL
def test_logits_agree(settings: dict[str, Any]) -> None:
    ours, theirs = pair(**settings)
    assert logits_gap(ours, theirs) <= TOLERANCE
    for side in ("left", "right"):
        assert padded_gap(ours, theirs, side) <= TOLERANCE


@ALL
def test_gradients_agree(settings: dict[str, Any]) -> None:
    ours, theirs = pair(**settings)
    source, ids = random_pair()
    source_tokens, valid = Tokens.padded(ragged("left")), ragged("left", TIME)
    tokens, labels = Tokens.padded(valid), ids.roll(-1, 1).masked_fill(~valid, IGNORE)
    logits = theirs(source, ids, source_tokens, tokens)
    nn.functional.cross_entropy(logits[valid], labels[valid]).backward()
    batch = Batch(ids, tokens, labels, source=Source(source, source_tokens))
    (ours.nll_sum(batch) / valid.sum()).backward()
    named = {name: weight.grad for name, weight in ours.named_parameters() if weight.grad is not None}
    grads = to_theirs(named, table(settings.get("norm_first", False)))
    expected = {name: weight.grad for name, weight in theirs.named_parameters() if weight.grad is not None}
    assert grads.keys() == expected.keys()
    assert max(relative(grads[name], want) for name, want in expected.items()) <= TOLERANCE


@FIRST
@torch.no_grad()
def test_cached_decoding_agrees(norm_first: bool) -> None:
    ours, theirs = pair(norm_first)
    source, ids = random_pair()
    tokens = Tokens.padded(ragged("left"))
    want = theirs(source, ids, tokens, PLAIN[1])
    cache = ours.new_cache(source, tokens, TIME)
    for start, end in pairwise([0, 9, *range(10, TIME + 1)]):
        assert gap(ours.decoder(ids[:, start:end], cache=cache), want[:, start:end]) <= TOLERANCE


@torch.no_grad()
def test_weights_come_back_exactly() -> None:
    ours, theirs = pair()
    exported, weights = export_weights(ours, table(norm_first=False)), theirs.state_dict()
    assert exported.keys() == weights.keys()
    assert all(torch.equal(exported[name], weights[name]) for name in weights)


@torch.no_grad()
def test_the_positions_are_the_formula() -> None:
    far = Tokens.plain(2, 50, 1000)
    assert gap(Sinusoidal(D)(Tokens.plain(2, 50)), sinusoids(torch.arange(50)[None])) <= TOLERANCE
    assert gap(Sinusoidal(D)(far), sinusoids(torch.arange(1000, 1050)[None])) <= 2e-4  # angles of 1000 in float32
    assert gap(Sinusoidal(D)(far), sinusoids(torch.arange(1001, 1051)[None])) > VISIBLE


# --- one stack, as torch's own layers make it -------------------------------------------------------------------------


def states(time: int, seed: int) -> Tensor:
    return torch.randn(BATCH, time, D, generator=torch.Generator().manual_seed(seed))


def fill(ours: Encoder | Decoder, theirs: nn.Module, norm_first: bool, branches: list[tuple[str, str]]) -> None:
    place = "pre" if norm_first else "out"
    own = Table(tuple(rows("layers.#", "blocks.#", place, branches)))
    load_weights(nn.ModuleDict({"blocks": ours.blocks}), theirs.state_dict(), own)


@FIRST
@pytest.mark.parametrize("fast", [False, True])
@torch.no_grad()
def test_an_encoder_of_their_layers_agrees(norm_first: bool, fast: bool) -> None:
    """``fast``: in eval mode theirs takes another path, one kernel a layer."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, HEADS, norm_first=norm_first, **LAYER)
    theirs = noisy(nn.TransformerEncoder(layer, N_READING, enable_nested_tensor=False)).train(not fast)
    stack = StackSpec(D, (block(norm_first, "relu"),) * N_READING, final_norm=None)
    ours = Encoder(EncoderSpec(VOCAB, CONTEXT, EmbedSpec(), stack))
    fill(ours, theirs, norm_first, READING)
    x, valid = states(SOURCE_TIME, 0), ragged("left")
    want = theirs(x, src_key_padding_mask=~valid)
    assert gap(ours.blocks_from(x, Tokens.padded(valid))[valid], want[valid]) <= TOLERANCE
    assert gap(ours.blocks_from(x, PLAIN[0])[valid], want[valid]) > VISIBLE


@FIRST
@torch.no_grad()
def test_a_decoder_of_their_layers_agrees(norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(D, HEADS, norm_first=norm_first, **LAYER)
    theirs = noisy(nn.TransformerDecoder(layer, N_WRITING)).train()
    stack = StackSpec(D, (block(norm_first, "relu", cross=True),) * N_WRITING, final_norm=None)
    ours = Decoder(DecoderSpec(VOCAB, CONTEXT, EmbedSpec(), stack))
    fill(ours, theirs, norm_first, WRITING)
    x, read, valid = states(TIME, 0), states(SOURCE_TIME, 1), ragged("left")
    future = torch.ones(TIME, TIME, dtype=torch.bool).triu(1)
    want = theirs(x, read, tgt_mask=future, memory_key_padding_mask=~valid)
    assert gap(ours.blocks_from(x, PLAIN[1], memory=Memory(read, Tokens.padded(valid))), want) <= TOLERANCE
    assert gap(ours.blocks_from(x, PLAIN[1], memory=Memory(read, PLAIN[0])), want) > VISIBLE


# --- controls: each is a mistake that somebody has made ---------------------------------------------------------------


def attentions(spec: Any, which: str = "encoder decoder", **changes: Any) -> Any:
    """The spec with every attention, cross-attention too, changed."""
    changed = blocks_of(spec, which, mixer=changes)
    cross: Any = changed.decoder.stack.blocks[0].cross
    return blocks_of(changed, "decoder", cross=replace(cross, **changes)) if "decoder" in which else changed


def embed(spec: Any, **changes: Any) -> Any:
    return sides(spec, lambda side: replace(side, embed=replace(side.embed, **changes)))


def final(spec: Any, which: str, norm: LayerNormSpec | None) -> Any:
    return sides(spec, lambda side: replace(side, stack=replace(side.stack, final_norm=norm)), which)


NEXT = Causal() | Prefix(1000)
WRONG: dict[str, Callable[[Any], Any]] = {  # measured, norm after and norm first:
    "norms in the other place": lambda s: blocks_of(
        s, placement=PRE_NORM if s.encoder.stack.blocks[0].placement == POST_NORM else POST_NORM
    ),  # 6.4, 6.4
    "GELU for ReLU": lambda s: blocks_of(s, ffn=FFNSpec(D_FF, "gelu")),  # 0.52, 0.89
    "default eps": lambda s: blocks_of(s, norm=LayerNormSpec()),  # 4.1e-3, 0.020
    "default eps at the ends": lambda s: final(s, "encoder decoder", LayerNormSpec()),  # 0.027, 2.5e-3
    "half as many heads": lambda s: attentions(s, n_heads=2, n_kv_heads=2, head_dim=16),  # 1.4, 3.1
    "scores not scaled": lambda s: attentions(s, scale=1.0),  # 2.9, 4.1
    "scaled by the model's width": lambda s: attentions(s, scale=D**-0.5),  # 0.86, 1.8
    "a decoder that sees the future": lambda s: blocks_of(s, "decoder", mixer={"mask": NEXT}),  # 0.94, 3.8
    "an encoder that does not": lambda s: blocks_of(s, "encoder", mixer={"mask": Causal()}),  # 1.4, 3.4
    "embedding not scaled": lambda s: embed(s, scale=1.0),  # 2.6, 5.6
    "no positions": lambda s: embed(s, positions=None),  # 2.9, 3.5
}
LEFT_OUT: dict[str, Callable[[Any], Any]] = {
    "memory without its norm": lambda s: final(s, "encoder", None),  # 1.6, 4.4
    "decoder without its last norm": lambda s: final(s, "decoder", None),  # 1.3, 29
    "no biases of q, k and v": lambda s: attentions(s, bias=False),  # 2.6, 2.3
    "no biases of o": lambda s: attentions(s, out_bias=False),  # 0.54, 0.78
}


@FIRST
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_model_is_seen(norm_first: bool, change: Callable[[Any], Any]) -> None:
    ours, theirs = pair(norm_first)
    assert logits_gap(forced(change(ours.spec), ours), theirs) > VISIBLE


@FIRST
@pytest.mark.parametrize("change", LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_control_left_out_part_is_seen(norm_first: bool, change: Callable[[Any], Any]) -> None:
    ours, theirs = pair(norm_first)
    assert logits_gap(without(change(ours.spec), ours), theirs) > VISIBLE


@FIRST
def test_positions_off_by_one_or_laid_out_otherwise_are_seen(norm_first: bool) -> None:
    ours, theirs = pair(norm_first)
    source, ids = random_pair()
    late = Tokens.plain(BATCH, SOURCE_TIME, 1), Tokens.plain(BATCH, TIME, 1)
    with torch.no_grad():
        assert gap(ours(source, ids, *late), theirs(source, ids, *late)) <= TOLERANCE
        assert gap(ours(source, ids, *late), theirs(source, ids, *PLAIN)) > VISIBLE
    other = Reference(side_by_side=True, norm_first=norm_first)
    other.load_state_dict(theirs.state_dict())
    assert logits_gap(ours, other.train()) > VISIBLE


@FIRST
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_that_is_not_masked_is_seen(norm_first: bool, side: str) -> None:
    assert padded_gap(*pair(norm_first), side, told=PLAIN[0]) > VISIBLE


def test_q_k_and_v_split_in_another_order_are_seen() -> None:
    ours, theirs = pair()
    wrong = forced(ours.spec, ours)
    with torch.no_grad():
        attention: Any = wrong.decoder.blocks[1].cross
        for part in ("weight", "bias"):
            q, k = getattr(attention.q, part), getattr(attention.k, part)
            first = q.clone()
            q.copy_(k)
            k.copy_(first)
    assert logits_gap(wrong, theirs) > VISIBLE
