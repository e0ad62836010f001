"""One update: its gradient, clipping, rates and optimiser state; and what its quality is measured in."""

from __future__ import annotations

import copy
import inspect
import math
import textwrap
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from strategies import EXAMPLE, VOCAB, build, encoder_decoder_specs, models, specs
from torch import Tensor
from torch.nn import functional as F

from pellucid.batch import IGNORE, Batch, Source, Tokens
from pellucid.checkpoints.tensors import load_tensors, save_tensors
from pellucid.data.corpus import Document
from pellucid.data.feed import PackedText
from pellucid.data.packing import evaluation
from pellucid.data.store import build_store
from pellucid.designs import modern
from pellucid.errors import CheckpointError
from pellucid.nn.init import initialise
from pellucid.nn.models import AnyModel, Decoder
from pellucid.nn.moe import MixtureOfExperts, load_balance, router_z
from pellucid.spec import (
    BlockSpec,
    DecoderSpec,
    DeltaRule,
    EncoderDecoderSpec,
    FFNSpec,
    GatedDecayRule,
    LinearAttentionSpec,
    MoESpec,
    RecurrentSpec,
    ResidualSpec,
)
from pellucid.text.tokenizer import Tokenizer
from pellucid.train.objectives import NegativeLogLikelihood, Objective, Routed, nll, objective_for
from pellucid.train.optim import (
    MATRICES_TO_TABLES,
    build_optimizers,
    load_state_tensors,
    parameter_groups,
    set_rate,
    state_tensors,
)
from pellucid.train.parts import ObjectiveSpec, OptimizerName
from pellucid.train.schedule import factor
from pellucid.train.step import accumulate, step
from pellucid.train.validate import held_out_sums

few = settings(max_examples=examples(15))
EXPERTS, NORM = MoESpec(FFNSpec(12), 3, 2), EXAMPLE.stack.blocks[0].norm
HYBRID = replace(  # one layer of each kind of mixer, with experts, a learned gain and no feed-forward among them
    EXAMPLE,
    stack=replace(
        EXAMPLE.stack,
        blocks=(
            replace(EXAMPLE.stack.blocks[0], ffn=EXPERTS),
            BlockSpec(LinearAttentionSpec(2, 4, DeltaRule()), EXPERTS, NORM),
            BlockSpec(LinearAttentionSpec(2, 4, GatedDecayRule(2)), None, NORM),
            BlockSpec(RecurrentSpec("lstm", 5), None, NORM, residual=ResidualSpec(layer_scale=0.3)),
        ),
    ),
)
RATES: dict[str, Any] = {"learning_rate": 0.01, "matrix_learning_rate": 0.02, "weight_decay": 0.1}


def rows_of(batch: Batch, rows: slice) -> Batch:
    """Some rows, with the documents that are packed in them."""
    tokens = batch.tokens
    seg = None if tokens.seg is None else tokens.seg[rows]
    return Batch(batch.ids[rows], Tokens(tokens.pos[rows], seg, tokens.start), batch.labels[rows])


def gradients(model: Decoder) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def accumulated(model: Decoder, parts: list[Batch], objective: Objective = nll) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    loss, _ = accumulate(model, objective, parts)
    return loss, gradients(model)


@st.composite
def packed(draw: st.DrawFn) -> Batch:
    """Rows of several documents, some positions not scored, some rows hardly at all."""
    rows, time = draw(st.integers(2, 6)), draw(st.integers(2, 8))
    whole = draw(st.lists(st.integers(0, VOCAB - 1), min_size=rows * time, max_size=rows * time))
    begins = draw(st.lists(st.booleans(), min_size=rows * time, max_size=rows * time))
    scored = draw(st.lists(st.sampled_from([True, True, False]), min_size=rows * time, max_size=rows * time))
    seg = torch.tensor(begins).view(rows, time).cumsum(1)
    ids = torch.tensor(whole).view(rows, time)
    labels = ids.roll(-1, 1).masked_fill(~torch.tensor(scored).view(rows, time), IGNORE)
    return Batch(ids, Tokens.packed(seg) if draw(st.booleans()) else Tokens.plain(rows, time), labels)


@given(st.just(EXAMPLE) | specs(), packed(), st.data())
def test_accumulation_split_any_way_is_the_same_gradient(spec: DecoderSpec, batch: Batch, data: st.DataObject) -> None:
    model, rows = build(spec), len(batch.ids)
    cuts = sorted(data.draw(st.sets(st.integers(1, rows - 1)), label="cuts"))
    parts = [rows_of(batch, slice(a, b)) for a, b in zip([0, *cuts], [*cuts, rows], strict=True)]
    loss, expected = accumulated(model, [batch])
    split_loss, got = accumulated(model, parts)
    torch.testing.assert_close(split_loss, loss)
    size = math.sqrt(sum(float(g.square().sum()) for g in expected))
    difference = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(got, expected, strict=True)))
    assert difference <= 1e-6 * size


def test_control_averaged_means_are_another_gradient() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 0, 1]])
    labels = ids.roll(-1, 1)
    labels[1, 1:] = IGNORE
    batch, model = Batch(ids, Tokens.plain(2, 6), labels), build(EXAMPLE)
    parts = [rows_of(batch, slice(0, 1)), rows_of(batch, slice(1, 2))]
    _, right = accumulated(model, parts)
    means = [accumulated(model, [part])[1] for part in parts]
    wrong = [(a + b) / 2 for a, b in zip(*means, strict=True)]
    cosine = F.cosine_similarity(*(torch.cat([g.flatten() for g in gs]) for gs in (right, wrong)), dim=0)
    assert cosine < 0.99


@given(packed(), st.sampled_from([None, 1e-3, 0.5, 1.0, 1e6]))
@few
def test_clipping_is_torch_s(batch: Batch, clip: float | None) -> None:
    """Plain gradient descent shows the gradient that was used as the difference of the weights."""
    ours = build(EXAMPLE)
    theirs = copy.deepcopy(ours)
    result = step(ours, [torch.optim.SGD(ours.parameters(), lr=1.0)], nll, [batch], clip=clip)
    (theirs.nll_sum(batch) / max(nll.count(batch), 1)).backward()
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), math.inf if clip is None else clip)
    torch.optim.SGD(theirs.parameters(), lr=1.0).step()
    assert result.grad_norm == pytest.approx(float(norm), rel=1e-6)
    for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-7, rtol=1e-7)


class NaNLoss(NegativeLogLikelihood):
    def __call__(self, model: Any, batch: Batch) -> Float[Tensor, ""]:
        return model.nll_sum(batch) * math.nan


class InfiniteGradient(NegativeLogLikelihood):
    """The loss is 0, its gradient is not finite."""

    def __call__(self, model: Any, batch: Batch) -> Float[Tensor, ""]:
        return (model.embed.tokens.weight.sum() * 0).sqrt()


BATCH = Batch(torch.arange(10).view(2, 5), Tokens.plain(2, 5), torch.arange(1, 11).view(2, 5))


@pytest.mark.parametrize("objective", [NaNLoss(), InfiniteGradient()])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_step_that_is_not_finite_updates_nothing(name: OptimizerName, objective: NegativeLogLikelihood) -> None:
    model = build(EXAMPLE).float()
    optimizers = build_optimizers(model, name, **RATES)
    assert step(model, optimizers, nll, [BATCH]).finite
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(state_tensors(model, optimizers))
    assert not step(model, optimizers, objective, [BATCH]).finite
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(value, state[key]) for key, value in state_tensors(model, optimizers).items())
    assert step(model, optimizers, nll, [BATCH]).finite  # and what it left behind does no harm
    assert not all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_nothing_scored_is_no_update_and_no_division_by_zero() -> None:
    model = build(EXAMPLE)
    before = copy.deepcopy(model.state_dict())
    result = step(
        model,
        [torch.optim.SGD(model.parameters(), lr=1.0)],
        nll,
        [replace(BATCH, labels=torch.full_like(BATCH.labels, IGNORE))],
    )
    assert (result.loss, result.grad_norm, result.count, result.finite) == (0.0, 0.0, 0, True)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# --- schedules --------------------------------------------------------------------------------------------------------


@given(st.sampled_from(["wsd", "cosine"]), st.integers(1, 60), st.integers(0, 70), st.sampled_from([0.0, 0.1]))
@settings(max_examples=examples(150))
def test_schedules(name: str, steps: int, warmup: int, floor: float) -> None:
    rates = [factor(name, s, steps, warmup, floor) for s in range(steps)]  # pyright: ignore[reportArgumentType]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warmup] == [(s + 1) / warmup for s in range(min(warmup, steps))]
    rest = rates[warmup:]
    assert all(a >= b for a, b in pairwise(rest)), "it falls after the warm-up"
    if rest:
        assert rest[0] == 1.0, "it begins to fall where the warm-up has led"
        decay = len(rest) if name == "cosine" else min(len(rest), max(round(steps * 0.5), 1))
        steepest = (math.pi / 2 if name == "cosine" else 1.0) / decay
        jumps = [a - b for a, b in pairwise(rest)]
        assert all(jump <= steepest * (1 + 1e-9) for jump in jumps), "it does not jump"
        if steps > 3 and len(rest) > 1:
            assert rest[-1] - floor <= 1.001 * steepest, "it ends where it would reach the floor with one more step"


def test_wsd_is_stable_in_between() -> None:
    rates = [factor("wsd", s, 100, 10) for s in range(100)]
    assert rates[9:51] == [1.0] * 42
    assert rates[51] < 1 and rates[-1] == pytest.approx(1 / 50)


# --- parameter groups, and a step -------------------------------------------------------------------------------------


@given(models, st.sampled_from(["muon", "adamw"]))
@few
def test_every_parameter_is_in_one_group(model: Decoder, name: OptimizerName) -> None:
    optimizers = build_optimizers(model, name, **RATES)
    names = {id(p): n for n, p in model.named_parameters()}
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    owned = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(owned) == sorted(names.values())
    by_role = parameter_groups(model)
    assert sorted(n for role in by_role.values() for n in role) == sorted(owned)
    for group in groups:
        for parameter in group["params"]:
            if parameter.ndim < 2:
                assert group["weight_decay"] == 0
    if name == "muon":
        (muon,) = [o for o in optimizers if isinstance(o, torch.optim.Muon)]
        in_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
        in_blocks = {n: p for n, p in model.named_parameters() if n.startswith("blocks.")}
        assert in_muon == {n for n, p in in_blocks.items() if p.ndim == 2 and not n.endswith(".bias")}
        stacked = {n for n, p in in_blocks.items() if p.ndim == 3}
        assert set(by_role["experts"]) == stacked and all(".ffn." in n and n.endswith("weight") for n in stacked)
    set_rate(optimizers, 0.25)
    assert {group["lr"] for group in groups} <= {0.25 * 0.01, 0.25 * 0.02, 0.25 * (0.01 * MATRICES_TO_TABLES)}


@given(models, packed(), st.sampled_from(["muon", "adamw"]))
@few
def test_a_step_goes_down(model: Decoder, batch: Batch, name: OptimizerName) -> None:
    """Every kind of layer takes part: one small step, and the loss is less; every weight has its gradient."""
    model, objective = (
        model.double(),
        objective_for(model, ObjectiveSpec(name="causal", smoothing=0.0, load_balance=0.0, router_z=0.0)),
    )
    first = step(model, [torch.optim.SGD(model.parameters(), lr=0.0)], objective, [batch], clip=None)
    if first.grad_norm < 1e-6:  # nothing scored, or nothing to learn
        return
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    rate = 1e-9 * max(first.loss, 1e-3) / first.grad_norm**2
    step(model, [torch.optim.SGD(model.parameters(), lr=rate)], objective, [batch], clip=None)
    assert float(accumulate(model, objective, [batch])[0].detach()) <= first.loss
    single = model.float()
    for _ in range(2):
        assert step(single, build_optimizers(single, name, **RATES), objective, [batch]).finite
    assert all(p.isfinite().all() for p in single.parameters())


# --- experts ---------------------------------------------------------------------------------------------------------


@st.composite
def pairs(draw: st.DrawFn) -> Batch:
    """The rows of ``packed`` that are not packed, and as many to read, with padding behind some."""
    batch = draw(packed().filter(lambda batch: batch.tokens.seg is None))
    rows, time = len(batch.ids), draw(st.integers(1, 6))
    lengths = torch.tensor([[draw(st.integers(1, time))] for _ in range(rows)])
    valid = torch.arange(time) < lengths
    text = torch.randint(VOCAB, (rows, time), generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return replace(batch, source=Source(text, Tokens.padded(valid)))


def by_hand(model: AnyModel, batch: Batch, balance: float, z: float) -> Tensor:
    """The router's losses of every layer, from logits that are caught on their way."""
    caught: list[tuple[str, int, Tensor]] = []

    def listen(name: str, experts: MixtureOfExperts) -> Any:
        def hook(module: Any, inputs: Any, out: Any) -> None:
            caught.append((name, experts.top_k, out))

        return experts.router.register_forward_hook(hook)

    found = {id(m.router): (name, m) for name, m in model.named_modules() if isinstance(m, MixtureOfExperts)}
    hooks = [listen(name, m) for name, m in found.values()]  # one hears every layer that shares a router
    loss = nll(model, batch)
    for hook in hooks:
        hook.remove()
    for name, top_k, logits in caught:
        tokens = batch.tokens if batch.source is None or name.startswith("decoder.") else batch.source.tokens
        seen = logits[tokens.pos >= 0][None]  # without padding at all
        loss = loss + nll.count(batch) * (balance * load_balance(seen, top_k) + z * router_z(seen))
    return loss


@given(st.tuples(specs(), packed()) | st.tuples(encoder_decoder_specs(), pairs()), st.floats(0, 1), st.floats(0, 1))
@few
def test_routed_is_the_loss_and_what_keeps_routers_in_order(
    drawn: tuple[DecoderSpec | EncoderDecoderSpec, Batch], balance: float, z: float
) -> None:
    spec, batch = drawn
    model = build(spec)
    objective = Routed(balance, z)
    assert objective.count(batch) == nll.count(batch)
    loss = objective(model, batch)
    torch.testing.assert_close(loss, by_hand(model, batch, balance, z))
    torch.testing.assert_close(Routed(0.0, 0.0)(model, batch), nll(model, batch))
    routers = [m for m in model.modules() if isinstance(m, MixtureOfExperts)]
    assert isinstance(objective_for(model, ObjectiveSpec(name="causal", smoothing=0.0)), Routed) == bool(routers)
    if routers and z > 0.1 and nll.count(batch):
        weights = [m.router.weight for m in routers]
        assert all(g.any() for g in torch.autograd.grad(loss, weights))


def test_control_a_router_s_losses_are_not_linear_in_the_split() -> None:
    """Why Routed says that it is the one loss that another split changes; the rest of it does not."""
    model = build(HYBRID)
    parts = [rows_of(BATCH, slice(0, 1)), rows_of(BATCH, slice(1, 2))]
    plain = [accumulated(model, split, Routed(0.0, 0.0))[0] for split in ([BATCH], parts)]
    balanced = [accumulated(model, split, Routed(1.0, 0.0))[0] for split in ([BATCH], parts)]
    torch.testing.assert_close(*plain)
    assert abs(float(balanced[0] - balanced[1])) > 1e-6


# --- optimiser state -------------------------------------------------------------------------------------------------


def trained(name: OptimizerName, steps: int, spec: DecoderSpec = EXAMPLE) -> tuple[Decoder, list[Any]]:
    model = build(spec).float()
    optimizers = build_optimizers(model, name, **RATES)
    for _ in range(steps):
        step(model, optimizers, nll, [BATCH])
    return model, optimizers


@pytest.mark.parametrize("spec", [EXAMPLE, HYBRID], ids=["plain", "hybrid"])
@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_optimiser_state_round_trip(name: OptimizerName, spec: DecoderSpec, tmp_path: Path) -> None:
    """Through a file: the next steps are the same, bit for bit; without the state they are not."""
    model, optimizers = trained(name, 3, spec)
    save_tensors(tmp_path / "state.safetensors", state_tensors(model, optimizers))
    again, forgetful = copy.deepcopy(model), copy.deepcopy(model)
    restored, fresh = build_optimizers(again, name, **RATES), build_optimizers(forgetful, name, **RATES)
    load_state_tensors(again, restored, load_tensors(tmp_path / "state.safetensors")[0])
    for _ in range(2):
        for one, its_optimizers in ((model, optimizers), (again, restored), (forgetful, fresh)):
            step(one, its_optimizers, nll, [BATCH])
    for mine, same, other in zip(model.parameters(), again.parameters(), forgetful.parameters(), strict=True):
        assert torch.equal(mine, same)
        assert not torch.equal(mine, other)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_state_of_nothing_is_nothing(name: OptimizerName) -> None:
    model, optimizers = trained(name, 0)
    assert state_tensors(model, optimizers) == {}
    load_state_tensors(model, optimizers, {})
    assert step(model, optimizers, nll, [BATCH]).finite


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_missing_odd_and_unknown_state_is_refused(name: OptimizerName) -> None:
    model, optimizers = trained(name, 1)
    state = state_tensors(model, optimizers)
    norm, matrix = "final_norm.weight", "blocks.0.attn.q.weight"
    assert any(key.startswith(f"{norm}/") for key in state) and any(key.startswith(f"{matrix}/") for key in state)
    moment = "momentum_buffer" if name == "muon" else "exp_avg_sq"
    for parameter in (norm, matrix):
        without = {key: value for key, value in state.items() if not key.startswith(f"{parameter}/")}
        with pytest.raises(CheckpointError, match=rf"state of {parameter} is missing"):
            load_state_tensors(model, optimizers, without)
    odd = {**state, f"{matrix}/{moment}": state[f"{matrix}/{moment}"][:1]}
    with pytest.raises(CheckpointError, match=rf"state of {matrix} is .* of another shape"):
        load_state_tensors(model, optimizers, odd)
    incomplete = {key: value for key, value in state.items() if key != f"{norm}/exp_avg"}
    with pytest.raises(CheckpointError, match=r"is missing, incomplete"):
        load_state_tensors(model, optimizers, incomplete)
    with pytest.raises(CheckpointError, match=r"unknown parameter 'blocks\.9\.x/step'"):
        load_state_tensors(model, optimizers, {**state, "blocks.9.x/step": torch.tensor(1.0)})


# --- bits per byte ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("context", "stride"), [(64, None), (12, None), (12, 6), (12, 1)])
def test_bits_per_byte_is_the_naive_one(tmp_path: Path, context: int, stride: int | None) -> None:
    """Each token by itself, from nothing but the tokens of its own document that the window still holds."""
    source = inspect.getsource(textwrap)
    tokenizer = Tokenizer.train([source], 300)
    documents = [Document("a", "def a(b): é"), Document("b", "class"), Document("c", source[100:130])]
    store = build_store(documents, tokenizer, tmp_path / "store")
    model = initialise(Decoder(modern(tokenizer.vocab_size, context, 2, 8, 4)), "xavier").eval()
    n_bytes = sum(len(d.text.encode()) for d in documents)
    nats, scored, last = 0.0, set[int](), store.n_tokens - 1
    with torch.no_grad():
        for start in range(0, last, stride or context):
            for at in sorted(set(range(start, min(start + context, last))) - scored):
                scored.add(at)
                begin = max([start, *(int(o) for o in store.offsets if o <= at)])
                ids = torch.tensor([store.tokens[begin : at + 1].astype("int64").tolist()])
                nats -= float(model(ids)[0, -1].log_softmax(-1)[int(store.tokens[at + 1])])
    assert len(scored) == last
    training = build_store([Document("t", source)], tokenizer, tmp_path / "training")
    feed = PackedText(training, store, context=context, batch_size=3, seed=0)
    sums = held_out_sums(model, feed.evaluation(stride))
    assert feed.score(sums)["bits_per_byte"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)
    assert sums["count"] == last and sums["bytes"] == n_bytes
    assert feed.score(held_out_sums(model, [])) == {}


def test_measuring_leaves_the_mode_as_it_was(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["text"], 257)
    store = build_store([Document("a", "some text")], tokenizer, tmp_path / "store")
    for training in (True, False):
        model = initialise(Decoder(modern(tokenizer.vocab_size, 16, 2, 8, 4))).train(training)
        held_out_sums(model, evaluation(store, 16, 1))
        assert model.training is training and all(p.grad is None for p in model.parameters())
