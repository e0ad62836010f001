"""Listening changes nothing; an edit changes exactly what comes after it; what is heard is what the formulas say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EXAMPLE, VOCAB, build, close, encoder_specs, ids, masks, padded, specs, steady
from torch import Tensor

from pellucid.batch import Tokens
from pellucid.errors import TapError
from pellucid.nn.models import Decoder, Encoder
from pellucid.spec import (
    NO_NORM,
    PRE_NORM,
    AttentionSpec,
    BlockSpec,
    Causal,
    DecoderSpec,
    DeltaRule,
    EncoderSpec,
    FFNSpec,
    GatedDecayRule,
    GatedFFNSpec,
    LinearAttentionSpec,
    MoESpec,
    RecurrentSpec,
)
from pellucid.taps import Activations, Tapped, point_axes

few = settings(max_examples=examples(15))
any_mask = encoder_specs(masks).map(build)
attentive = encoder_specs(masks, only_attention=True).map(build)
TEXT = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


def in_mixer(mixer: Any) -> list[str]:
    """The points of what mixes tokens, in the order in which a forward passes them."""
    if isinstance(mixer, AttentionSpec):
        return ["attn_in", "attn.q", "attn.k", "attn.v", "attn.scores", "attn.pattern", "attn.z", "attn_out"]
    if isinstance(mixer, LinearAttentionSpec):
        decay, beta = isinstance(mixer.rule, GatedDecayRule), isinstance(mixer.rule, DeltaRule)
        optional = [(decay, "decay"), (beta, "beta"), (True, "z"), (mixer.out_gate, "gate")]
        inner = [f"attn.{point}" for point in ("q", "k", "v", *(p for there, p in optional if there))]
        return ["attn_in", *inner, "attn_out"]
    return ["rnn_in", "rnn.h", "rnn_out"]


def in_block(block: BlockSpec) -> list[str]:
    points = ["resid_pre", *in_mixer(block.mixer)]
    if block.ffn is not None:
        routed = ["router_logits", "expert_ids", "expert_weights", "expert_out"]
        plain = ["ffn_pre", *(["gate", "up"] if isinstance(block.ffn, GatedFFNSpec) else []), "ffn_act"]
        points += [] if block.parallel else ["resid_mid"]
        points += ["ffn_in", *(routed if isinstance(block.ffn, MoESpec) else plain), "ffn_out"]
    return [*points, "resid_post"]


def in_order(spec: DecoderSpec | EncoderSpec) -> list[str]:
    """All points, in the order in which a forward passes them."""
    inner = [f"blocks.{i}.{point}" for i, block in enumerate(spec.stack.blocks) for point in in_block(block)]
    return ["embed", *inner, "final_norm", "logits"]


def silent(point: str, spec: DecoderSpec) -> bool:
    """Whether an edit may change nothing: the logits of a router whose one choice weighs 1 whatever they are."""
    if not point.endswith("router_logits"):
        return False
    ffn = spec.stack.blocks[int(point.split(".")[1])].ffn
    return isinstance(ffn, MoESpec) and ffn.top_k == 1 and ffn.renormalise


def listened(model: Decoder, text: Tensor, **kwargs: Any) -> tuple[Tensor, Activations]:
    with torch.no_grad(), model.taps(**kwargs) as acts:
        return model(text), acts


def noise(x: Tensor) -> Tensor:
    if not x.is_floating_point():  # experts: one that was not chosen, or only one of two that were
        return (x.amin(-1, keepdim=True) == 0).to(x.dtype).expand_as(x)
    return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(7), dtype=x.dtype)


# --- reading ---------------------------------------------------------------------------------------------------------


@given(any_mask, ids())
@few
def test_reading_everything_changes_nothing(model: Decoder, text: Tensor) -> None:
    with torch.no_grad():
        alone = model(text)
    logits, acts = listened(model, text, read="*")
    close(logits, alone)
    assert set(acts) == set(in_order(model.spec)) and list(acts) == model.point_names()
    fused, _ = listened(model, text, read=[name for name in acts if not name.endswith(("scores", "pattern"))])
    assert torch.equal(fused, alone)  # the same kernels: not a bit apart


@given(any_mask, ids())
@few
def test_shapes(model: Decoder, text: Tensor) -> None:
    (batch, time), d = text.shape, model.spec.d_model
    _, acts = listened(model, text, read="*")
    for name, x in acts.items():
        if name in ("embed", "final_norm", "logits"):
            assert x.shape == (batch, time, VOCAB if name == "logits" else d)
            continue
        _, i, point = name.split(".", 2)
        block = model.spec.stack.blocks[int(i)]
        inner = inner_shapes(block, time) | {"rnn.h": (time, x.shape[-1])}
        assert x.shape == (batch, *inner.get(point, (time, d))), name
        if isinstance(block.mixer, RecurrentSpec) and point == "rnn.h":
            assert x.shape[-1] == block.mixer.d_out


def inner_shapes(block: BlockSpec, time: int) -> dict[str, tuple[int, ...]]:
    """Of the points that are no residual stream, without the batch."""
    shapes: dict[str, tuple[int, ...]] = {}
    mixer, ffn = block.mixer, block.ffn
    if isinstance(mixer, AttentionSpec | LinearAttentionSpec):
        heads = (mixer.n_heads, time, mixer.head_dim)
        shapes |= {f"attn.{point}": heads for point in ("q", "k", "v", "z", "gate", "decay")} | {"attn.beta": heads[:2]}
    if isinstance(mixer, AttentionSpec):
        shapes |= dict.fromkeys(("attn.k", "attn.v"), (mixer.n_kv_heads, time, mixer.head_dim))
        shapes |= dict.fromkeys(("attn.scores", "attn.pattern"), (mixer.n_heads, time, time))
    if isinstance(ffn, MoESpec):
        shapes |= dict.fromkeys(("expert_ids", "expert_weights"), (time, ffn.top_k))
        shapes |= {"router_logits": (time, ffn.n_experts), "expert_out": (time, ffn.top_k, 8)}
    elif ffn is not None:
        assert isinstance(ffn, FFNSpec | GatedFFNSpec)
        shapes |= dict.fromkeys(("ffn_pre", "gate", "up", "ffn_act"), (time, ffn.d_ff))
    return shapes


@given(any_mask, ids())
@few
def test_axes_of_points_are_those_of_their_tensors(model: Decoder, text: Tensor) -> None:
    known = {"batch": text.shape[0], **dict.fromkeys(("time", "query", "key", "places"), text.shape[1])}
    _, acts = listened(model, text, read="*")
    for name, axes in point_axes(model).items():
        assert len(axes.split()) == acts[name].dim(), name
        for axis, size in zip(axes.split(), acts[name].shape, strict=True):
            assert size == known.get(axis, size), (name, axis)


@given(any_mask, ids())
@few
def test_inputs_of_branches_are_the_normed_stream(model: Decoder, text: Tensor) -> None:
    """What a branch reads is the norm of the stream before it; of a gated layer ``ffn_act`` is ``gate`` · ``up``."""
    _, acts = listened(model, text, read="*")
    for i, built in enumerate(model.blocks):
        at = {name.split(".", 2)[2]: x for name, x in acts.items() if name.startswith(f"blocks.{i}.")}
        assert torch.equal(at[f"{built.kind}_in"], built.mixer_norms.pre(at["resid_pre"]))  # type: ignore[operator]
        if "ffn_in" in at:
            before = at["resid_pre"] if built.parallel else at["resid_mid"]
            assert torch.equal(at["ffn_in"], built.ffn_norms.pre(before))  # type: ignore[operator]
        if "up" in at:
            assert torch.equal(at["ffn_act"], at["gate"] * at["up"])
            assert torch.equal(at["gate"], built.ffn.activation(at["ffn_pre"]))  # type: ignore[operator]


@given(attentive, padded())
@few
def test_pattern_times_v_is_z(model: Encoder, drawn: tuple[list[Tensor], Tensor, Tensor]) -> None:
    _, text, valid = drawn
    with torch.no_grad(), model.taps(read="blocks.*.attn.*") as acts:
        model(text, Tokens.padded(valid))
    for i, block in enumerate(model.spec.stack.blocks):
        assert isinstance(block.mixer, AttentionSpec)
        pattern, v, z = (acts[f"blocks.{i}.attn.{name}"] for name in ("pattern", "v", "z"))
        shared = v.repeat_interleave(block.mixer.n_heads // block.mixer.n_kv_heads, dim=1)
        close(pattern @ shared, z)
        total = pattern.sum(-1)
        torch.testing.assert_close(total, (total > 0).to(total.dtype))  # ones, or zeros where nothing is seen
        assert not pattern.transpose(-1, -2)[~valid[:, None].expand(-1, pattern.shape[1], -1)].any()


@given(any_mask, ids())
@few
def test_the_residual_stream_is_the_sum_of_its_parts(model: Decoder, text: Tensor) -> None:
    logits, acts = listened(model, text, read="*")
    for i, block in enumerate(model.spec.stack.blocks):
        at = {name.split(".", 2)[2]: x for name, x in acts.items() if name.startswith(f"blocks.{i}.")}
        skip, built = block.residual.skip, model.blocks[i]
        mixed = at["rnn_out"] if "rnn_out" in at else at["attn_out"]
        if block.parallel:
            torch.testing.assert_close(skip * at["resid_pre"] + mixed + at["ffn_out"], at["resid_post"])
            continue
        after = built.mixer_norms.out(skip * at["resid_pre"] + mixed)  # type: ignore[operator]
        if block.ffn is not None:
            torch.testing.assert_close(after, at["resid_mid"])
            after = built.ffn_norms.out(skip * after + at["ffn_out"])  # type: ignore[operator]
        torch.testing.assert_close(after, at["resid_post"])
    assert torch.equal(acts["embed"], acts["blocks.0.resid_pre"])
    last = acts[f"blocks.{model.spec.n_layers - 1}.resid_post"]
    torch.testing.assert_close(model.unembed(last), logits)
    assert torch.equal(acts["logits"], logits)


@given(specs(only_attention=True).map(build), ids(max_time=8))
@few
def test_a_pattern_over_a_cache_is_the_whole_pattern_s_last_row(model: Decoder, text: Tensor) -> None:
    cache = model.new_cache(*text.shape, ring=False)
    _, whole = listened(model, text, read="*.pattern")
    with torch.no_grad():
        for t in range(text.shape[1]):
            with model.taps(read="*.pattern") as acts:
                model(text[:, t : t + 1], cache=cache)
            for name, pattern in acts.items():
                close(pattern[:, :, 0], whole[name][:, :, t, : t + 1])


def test_read_activations_have_gradients() -> None:
    model = build(EXAMPLE)
    with model.taps(read=["blocks.0.resid_mid", "*.pattern"]) as acts:
        loss = model(TEXT).sum()
    assert all(g.any() and g.isfinite().all() for g in torch.autograd.grad(loss, list(acts.values())))


# --- editing ---------------------------------------------------------------------------------------------------------


@given(any_mask, ids(), st.data())
@few
def test_editing_by_the_identity_changes_nothing(model: Decoder, text: Tensor, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(model.point_names()), min_size=1, unique=True))
    with torch.no_grad():
        alone = model(text)
    for same in (lambda x: x, torch.clone):
        edited, acts = listened(model, text, edit=dict.fromkeys(names, same))
        close(edited, alone)
        assert not acts
    close(listened(model, text, edit={"*": torch.clone})[0], alone)


@st.composite
def seeing(draw: st.DrawFn) -> DecoderSpec:
    """Specs in which every point matters to every later one: plain causal masks, activations that are never flat."""
    spec = draw(specs(st.just(Causal())))

    def smooth(block: BlockSpec) -> BlockSpec:
        ffn, placement = block.ffn, PRE_NORM if block.placement == NO_NORM else block.placement
        if isinstance(ffn, MoESpec):
            ffn = replace(ffn, expert=replace(ffn.expert, activation="gelu"))
        elif ffn is not None:
            ffn = replace(ffn, activation="gelu")
        return replace(block, ffn=ffn, placement=placement)

    with steady():
        return replace(spec, stack=replace(spec.stack, blocks=tuple(map(smooth, spec.stack.blocks))))


@given(st.data())
@settings(max_examples=examples(30))
def test_an_edit_takes_effect_and_only_downstream(data: st.DataObject) -> None:
    model = build(data.draw(seeing()))
    order = in_order(model.spec)
    point = data.draw(st.sampled_from(order))
    before, plain = listened(model, TEXT, read="*")
    after, acts = listened(model, TEXT, read="*", edit={point: noise})
    assert torch.equal(acts[point], noise(plain[point]))  # what is read is what the rest of the model saw
    for earlier in order[: order.index(point)]:
        assert torch.equal(acts[earlier], plain[earlier]), earlier
    if not silent(point, model.spec):
        assert (after - before).abs().max() > 1e-6


@given(specs().map(build), st.data())
@few
def test_an_edit_at_one_token_touches_no_earlier_token(model: Decoder, data: st.DataObject) -> None:
    t = data.draw(st.integers(1, TEXT.shape[1] - 1))
    streams = [name for name in model.point_names() if not name.endswith(("scores", "pattern"))]
    point = data.draw(st.sampled_from(streams))

    def edit(x: Tensor) -> Tensor:
        y = x.clone()
        y.movedim(time_axis(point), 0)[t] = noise(x.movedim(time_axis(point), 0)[t])
        return y

    _, plain = listened(model, TEXT, read=streams)
    _, acts = listened(model, TEXT, read=streams, edit={point: edit})
    for name in streams:
        close(*(x[name].movedim(time_axis(name), 0)[:t] for x in (acts, plain)))


def time_axis(name: str) -> int:
    """Before the last, with heads or without; but β has no last, and what experts say has one more."""
    return {"beta": -1, "expert_out": -3}.get(name.split(".")[-1], -2)


def test_knocking_out_a_head_is_a_head_of_zeros() -> None:
    """Three ways to say it: z, pattern, or the rows of the output projection."""
    model = build(EXAMPLE)

    def without_head_1(x: Tensor) -> Tensor:
        return x * torch.tensor([1, 0, 1, 1], dtype=x.dtype)[:, None, None]

    by_z, _ = listened(model, TEXT, edit={"blocks.0.attn.z": without_head_1})
    by_pattern, _ = listened(model, TEXT, edit={"blocks.0.attn.pattern": without_head_1})
    with torch.no_grad():
        model.blocks[0].attn.o.weight[:, 4:8] = 0  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]
        by_weight = model(TEXT)
    close(by_z, by_weight)
    close(by_pattern, by_weight)


def test_patching_everything_in_gives_the_other_run() -> None:
    model = build(EXAMPLE)
    other = TEXT.flip(1)
    target, acts = listened(model, other, read="blocks.1.resid_pre")
    patched, _ = listened(model, TEXT, edit={"blocks.1.resid_pre": lambda _: acts["blocks.1.resid_pre"]})
    assert torch.equal(patched, target)


# --- what is refused -------------------------------------------------------------------------------------------------


def listening(model: Decoder) -> bool:
    return any(m.ears.listener is not None for m in model.modules() if isinstance(m, Tapped))


@given(any_mask, st.data())
@few
def test_an_edit_that_changes_a_shape_is_refused_by_name(model: Decoder, data: st.DataObject) -> None:
    point = data.draw(st.sampled_from(model.point_names()))
    edits: list[Callable[[Tensor], Tensor]] = [lambda x: x[..., :-1], lambda x: x[None], lambda x: x.sum()]
    with pytest.raises(TapError, match=rf"the edit of {point} "):
        listened(model, TEXT, edit={point: data.draw(st.sampled_from(edits))})
    assert not listening(model)


def test_an_edit_that_returns_nothing_is_refused() -> None:
    with pytest.raises(TapError, match=r"edit of blocks\.0\.attn\.z returned None"):
        listened(build(EXAMPLE), TEXT, edit={"blocks.0.attn.z": lambda _: None})


@pytest.mark.parametrize("where", ["read", "edit"])
def test_a_name_that_matches_nothing_is_refused_with_a_suggestion(where: str) -> None:
    model = build(EXAMPLE)
    for wrong, right in [
        ("blocks.0.attn.patern", "blocks.0.attn.pattern"),
        ("blocks.1.ffn.ffn_act", "blocks.1.ffn_act"),
        ("final_nrm", "final_norm"),
    ]:
        with pytest.raises(TapError, match=rf"{wrong}.*did you mean '{right}'"):
            model.taps(**{where: {wrong: torch.clone}}).__enter__()  # pyright: ignore[reportArgumentType]
    with pytest.raises(TapError, match=r"blocks\.7"):
        model.taps(read=["embed", "blocks.7.*"]).__enter__()
    assert not listening(model)


def test_activation_that_was_not_read_is_refused_by_name() -> None:
    model = build(EXAMPLE)
    with torch.no_grad(), model.taps(read=["embed", "blocks.0.attn.z"], edit={"logits": torch.clone}) as acts:
        with pytest.raises(TapError, match="embed was not read; nothing has run yet"):
            acts["embed"]
        assert not acts and "embed" not in acts
        model(TEXT)
    assert repr(acts) == "Activations(embed (2, 6, 8), blocks.0.attn.z (2, 4, 6, 4))"
    for wrong, hint in [
        ("blocks.0.attn.s", "did you mean 'blocks.0.attn.z'"),
        ("logits", "known: blocks.0.attn.z, embed"),
    ]:
        with pytest.raises(TapError, match=f"{wrong} was not read; {hint}"):
            acts[wrong]


def test_each_forward_is_read_anew() -> None:
    model = build(EXAMPLE)
    with torch.no_grad(), model.taps(read="embed") as acts:
        model(TEXT)
        first = acts["embed"]
        model(TEXT[:1])
    assert first.shape[0] == 2 and acts["embed"].shape[0] == 1


def test_a_parallel_block_has_no_middle() -> None:
    parallel = tuple(replace(b, parallel=True) for b in EXAMPLE.stack.blocks)
    model = build(replace(EXAMPLE, stack=replace(EXAMPLE.stack, blocks=parallel)))
    with pytest.raises(TapError, match="resid_mid"):
        model.taps(read="blocks.0.resid_mid").__enter__()


def test_taps_within_taps_hear_what_the_outer_ones_leave() -> None:
    model = build(EXAMPLE)
    with torch.no_grad(), model.taps(read="embed", edit={"embed": lambda x: 2 * x}) as outer:
        with model.taps(read=["embed", "logits"], edit={"embed": lambda x: x + 1}) as inner:
            model(TEXT)
        assert torch.equal(inner["embed"], outer["embed"] + 1)
        assert list(inner) == ["embed", "logits"] and list(outer) == ["embed"]
        model(TEXT[:1])  # the outer ones listen on
    assert outer["embed"].shape[0] == 1 and inner["embed"].shape[0] == 2 and not listening(model)


def test_taps_go_whatever_happens() -> None:
    model, before = build(EXAMPLE), build(EXAMPLE)(TEXT)

    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("in an edit")

    with pytest.raises(RuntimeError, match="in an edit"):
        listened(model, TEXT, edit={"blocks.1.attn.scores": fails})
    with pytest.raises(KeyboardInterrupt), model.taps(read="*"):
        raise KeyboardInterrupt
    assert not listening(model)
    assert torch.equal(model(TEXT), before)


def test_two_models_do_not_hear_each_other() -> None:
    one, two = build(EXAMPLE), build(EXAMPLE, seed=1)
    with torch.no_grad(), one.taps(read="logits") as a, two.taps(read="logits") as b:
        first, second = one(TEXT), two(TEXT)
    assert torch.equal(a["logits"], first) and torch.equal(b["logits"], second)


# --- controls --------------------------------------------------------------------------------------------------------


def test_control_a_pattern_of_the_wrong_head_is_seen() -> None:
    model = build(EXAMPLE)
    _, acts = listened(model, TEXT, read="blocks.0.attn.*")
    pattern, v, z = (acts[f"blocks.0.attn.{name}"] for name in ("pattern", "v", "z"))
    wrong = pattern @ v.repeat(1, 2, 1, 1)  # heads 0 1 0 1 over the groups 0 0 1 1
    assert (wrong - z).abs().max() > 1e-2


def test_control_a_tap_that_forgets_its_edit_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(EXAMPLE)
    before, _ = listened(model, TEXT, read="embed")
    after, _ = listened(model, TEXT, edit={"blocks.0.resid_mid": noise})
    assert (after - before).abs().max() > 1e-3
    monkeypatch.setattr("pellucid.taps.listener.Listener.__call__", lambda self, name, x: x)
    ignored, _ = listened(model, TEXT, edit={"blocks.0.resid_mid": noise})
    assert torch.equal(ignored, before)
