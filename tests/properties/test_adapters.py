"""Adapters in a model: they compute what their formula says, can be switched, merged and taken out, to the bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import MODELS, quantised_file
from torch import Tensor, nn

import pellucid
from pellucid.batch import IGNORE, Batch, Tokens
from pellucid.designs import design
from pellucid.errors import UsageError
from pellucid.nn.quantised import open_weights, stored_of
from pellucid.nn.stored import Quantised
from pellucid.surgery.adapted import Adapted
from pellucid.surgery.holding import active, names, parameters_of, remove, switch, train_only
from pellucid.surgery.lora import LoRA, Ranked, adapt, adaptable
from pellucid.surgery.merging import merge
from pellucid.surgery.ties import untie
from pellucid.verify.run import verify

NEAR, VISIBLE = 1e-5, 1e-3
IDS = torch.arange(2 * 9).view(2, 9) * 7 % 61
DESIGNS = ("modern", "moe", "encoder", "lstm")
EVERYTHING = LoRA(targets=("*",), exclude=(), rank=3, alpha=5.0)


def fresh(name: str = "modern", **changes: Any) -> Any:
    return pellucid.build(design(name)(61, 32, 2, 32, 8, **changes), init="xavier").eval()


def stirred(model: Any, seed: int = 1) -> Any:
    """All that the active adapter has, moved away from where it began."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters_of(model, active(model) or "").values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(IDS)


def gap(a: Tensor, b: Tensor) -> float:
    """The largest difference, by the largest number where that is above 1."""
    return float((a - b).abs().max() / b.abs().max().clamp(min=1.0))


def by_hand(model: Any, base: Any) -> Any:
    """A plain model with W + s · B A written into every weight, by the formula of the paper."""
    plain = copy.deepcopy(base)
    for path, module in model.named_modules():
        change = module.adapters.acting() if isinstance(module, Adapted) else None
        if change is None:
            continue
        target = plain.get_submodule(path)
        a, b = change.factors
        total = target.weight.detach() + change.scaling * torch.matmul(b, a)
        if change.magnitude is not None and isinstance(target, nn.Embedding):
            total = total / total.pow(2).sum(0).sqrt() * change.magnitude
        elif change.magnitude is not None:
            total = total / total.pow(2).sum(1).sqrt()[:, None] * change.magnitude[:, None]
        target.weight = nn.Parameter(total.detach())
    return plain


# --- what it computes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DESIGNS)
def test_new_adapter_changes_no_bit(name: str) -> None:
    model = fresh(name)
    before = logits(model)
    adapt(model, EVERYTHING)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", DESIGNS)
def test_adapted_model_equals_model_with_summed_weights(name: str) -> None:
    base = fresh(name)
    model = stirred(adapt(copy.deepcopy(base), EVERYTHING))
    assert gap(logits(model), logits(by_hand(model, base))) < NEAR
    assert gap(logits(model), logits(base)) > VISIBLE


@pytest.mark.parametrize("targets", [("*blocks.*",), ("embed.tokens",), ("blocks.0.attn.q", "blocks.1.ffn.down")])
def test_dora_equals_its_formula(targets: tuple[str, ...]) -> None:
    base = fresh()
    model = adapt(copy.deepcopy(base), LoRA(targets=targets, rank=3, dora=True))
    assert gap(logits(model), logits(base)) < NEAR, "a new one changes nothing"
    stirred(model)
    assert gap(logits(model), logits(by_hand(model, base))) < NEAR
    assert gap(logits(model), logits(base)) > VISIBLE


def test_wrong_strength_differs() -> None:
    base = fresh()
    model = stirred(adapt(copy.deepcopy(base), EVERYTHING))
    for module in model.modules():
        if isinstance(module, Adapted):
            module.changes()[0].scaling *= 1.1
            break
    wrong = logits(model)
    module.changes()[0].scaling /= 1.1  # type: ignore[union-attr]
    assert gap(wrong, logits(by_hand(model, base))) > VISIBLE / 10


def test_strength_is_alpha_by_rank_and_with_rslora_by_its_root() -> None:
    asked = LoRA(rank=4, alpha=8.0, ranked=(Ranked(pattern="*.q", rank=16), Ranked(pattern="*", alpha=4.0)))
    assert asked.strength("blocks.0.attn.q") == (16, 0.5), "the first pattern that matches decides"
    assert asked.strength("blocks.0.attn.k") == (4, 1.0)
    assert LoRA(rank=4, alpha=8.0, rslora=True).strength("any") == (4, 4.0)


def test_names_of_the_base_stay() -> None:
    model = fresh()
    before = dict(model.named_parameters())
    adapt(model, LoRA(targets=("blocks.*.q",)))
    after = dict(model.named_parameters())
    assert before.keys() <= after.keys() and all(after[name] is before[name] for name in before)
    assert set(after) - set(before) == {f"blocks.{i}.attn.q.adapters.adapter.{leaf}" for i in (0, 1) for leaf in "ab"}


# --- switched, removed, merged ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DESIGNS)
def test_switching_restores_each_state_to_the_bit(name: str) -> None:
    model = fresh(name)
    plain, classes = logits(model), [type(module) for module in model.modules()]
    whole = next(path for path, _ in model.named_parameters() if path.endswith("norms.pre.weight"))
    first = logits(stirred(adapt(model, LoRA(also=(whole,)), name="first"), 1))
    second = logits(stirred(adapt(model, EVERYTHING, name="second"), 2))
    for which, wanted in (("first", first), (None, plain), ("second", second), ("first", first)):
        switch(model, which)
        assert active(model) == which
        assert torch.equal(logits(model), wanted)
    assert min(gap(first, plain), gap(second, plain), gap(first, second)) > VISIBLE
    for each in names(model):
        remove(model, each)
    assert torch.equal(logits(model), plain)
    assert [type(module) for module in model.modules()] == classes


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", ["modern", "encoder", "classic"])
def test_merged_equals_unmerged_and_comes_back_to_the_bit(name: str, dora: bool) -> None:
    model = fresh(name)
    whole = next(path for path, _ in model.named_parameters() if path.endswith("norms.pre.weight"))
    asked = LoRA(targets=("*.attn.*", "*.ffn.*", "embed.tokens"), rank=3, dora=dora, also=(whole,))
    stirred(adapt(model, asked))
    before, kept = logits(model), {name: each.clone() for name, each in model.state_dict().items()}
    merged = merge(model)
    assert gap(logits(model), before) < NEAR
    assert not any(isinstance(module, Adapted) for module in model.modules())
    assert model.state_dict().keys() == fresh(name).state_dict().keys()
    merged.undo()
    assert all(torch.equal(each, kept[name]) for name, each in model.state_dict().items())
    assert torch.equal(logits(model), before)
    with pytest.raises(UsageError, match="undone already"):
        merged.undo()


def test_merge_into_bfloat16_comes_back_to_the_bit() -> None:
    model = stirred(adapt(fresh().to(torch.bfloat16), EVERYTHING))
    kept = {name: each.clone() for name, each in model.state_dict().items()}
    merged = merge(model)
    assert model.head.weight.dtype == torch.bfloat16
    changed = [name for name, each in model.state_dict().items() if not torch.equal(each, kept[name])]
    assert "blocks.0.attn.q.weight" in changed
    merged.undo()
    assert all(torch.equal(each, kept[name]) for name, each in model.state_dict().items())


# --- quantised bases -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = quantised_file(MODELS["mixtral"], "Q8_0", tmp_path_factory.mktemp("quantised"))
    return pellucid.load(path, tokenizer=False, quantised=True)


@pytest.mark.parametrize("dora", [False, True])
def test_adapter_on_a_quantised_base_equals_that_on_the_opened_one(quantised: Any, dora: bool) -> None:
    base = copy.deepcopy(quantised)
    exclude = ("*.ffn.*",) if dora else ()  # which is not defined for experts
    model = stirred(adapt(base, LoRA(targets=("*",), exclude=exclude, rank=3, dora=dora)))
    blocks = [each for each in stored_of(model).values() if isinstance(each, Quantised)]
    assert blocks, "the base stays quantised"
    before = logits(model)
    opened = copy.deepcopy(model)
    open_weights(opened, torch.float32)
    assert gap(logits(opened), before) < NEAR
    assert names(opened) == ["adapter"]
    merged = merge(model)
    assert gap(logits(model), before) < NEAR
    assert dora or not any(isinstance(each, Quantised) for each in stored_of(model).values())
    merged.undo()
    assert torch.equal(logits(model), before)
    switch(model, None)
    assert torch.equal(logits(model), logits(quantised))


# --- ties ------------------------------------------------------------------------------------------------------------


def tied(name: str = "modern") -> Any:
    model = fresh("classic")
    assert model.head.weight is None
    return model


@pytest.mark.parametrize("target", ["head", "embed.tokens", "*e*"])
def test_adapter_of_a_pair_that_stays_tied_acts_in_both_once(target: str) -> None:
    model = stirred(adapt(tied(), LoRA(targets=(target,), exclude=("*blocks.*",), rank=3)))
    before, change = logits(model), model.embed.tokens.adapters.acting()
    plain = tied()
    with torch.no_grad():
        plain.embed.tokens.weight.add_(change.scaling * change.b @ change.a)
    assert gap(logits(plain), before) < NEAR
    merge(model)
    assert model.head.weight is None and model.spec == plain.spec
    assert gap(logits(model), before) < NEAR


@pytest.mark.parametrize("target", ["head", "embed.tokens"])
def test_adapter_of_one_side_of_a_tie_is_merged_only_into_an_untied_model(target: str) -> None:
    model = stirred(adapt(tied(), LoRA(targets=(target,), rank=3, ties="cut")))
    before = logits(model)
    both = stirred(adapt(tied(), LoRA(targets=(target,), rank=3)))
    assert gap(before, logits(both)) > VISIBLE
    with pytest.raises(UsageError, match="one matrix"):
        merge(model)
    untie(model)
    assert gap(logits(model), before) < NEAR and not model.spec.head.tied
    merge(model)
    assert gap(logits(model), before) < NEAR
    assert gap(model.head.weight.detach(), model.embed.tokens.weight.detach()) > VISIBLE


def test_head_that_is_trained_as_a_whole_is_untied_and_leaves_the_table_alone() -> None:
    model = tied()
    before, table = logits(model), model.embed.tokens.weight.clone()
    adapt(model, LoRA(targets=(), also=("head.weight",), ties="cut"))
    assert torch.equal(logits(model), before)
    stirred(model)
    assert gap(logits(model), before) > VISIBLE
    assert torch.equal(model.embed.tokens.weight, table)
    switch(model, None)
    assert torch.equal(logits(model), before)


# --- used as any model is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["modern", "moe"])
def test_only_the_adapter_learns(name: str) -> None:
    model = adapt(fresh(name), LoRA(also=("final_norm.weight",)))
    train_only(model, "adapter")
    ids = IDS.clone()
    labels = torch.cat((ids[:, 1:], torch.full((2, 1), IGNORE)), 1)
    model.nll_sum(Batch(ids, Tokens.plain(2, 9), labels)).backward()
    own = parameters_of(model, "adapter")
    with_gradient = {path for path, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == set(own)
    assert all(float(own[path].grad.abs().max()) > 0 for path in own if path.endswith((".b", "norm.weight")))  # type: ignore[union-attr]


@pytest.mark.parametrize("dora", [False, True])
def test_loss_by_chunks_equals_that_of_all_logits(dora: bool) -> None:
    model = stirred(adapt(fresh(), LoRA(targets=("head", "embed.tokens"), exclude=(), rank=3, dora=dora)))
    labels = IDS.roll(-1, 1)
    chunked = model.nll_sum(Batch(IDS, Tokens.plain(2, 9), labels))
    whole = nn.functional.cross_entropy(model(IDS).flatten(0, 1), labels.flatten(), reduction="sum")
    assert gap(chunked.detach(), whole.detach()) < NEAR


def test_saved_and_loaded_adapters_are_the_same_to_the_bit(tmp_path: Path) -> None:
    model = stirred(adapt(fresh(), LoRA(dora=True, also=("final_norm.weight",)), name="first"), 1)
    first = logits(model)
    second = logits(stirred(adapt(model, EVERYTHING, name="second"), 2))
    pellucid.save(model, tmp_path)
    loaded = pellucid.load(tmp_path)
    assert names(loaded) == ["first", "second"] and active(loaded) == "second"
    assert torch.equal(logits(loaded), second)
    switch(loaded, "first")
    assert torch.equal(logits(loaded), first)


@pytest.mark.parametrize("asked", [EVERYTHING, LoRA(dora=True, also=("final_norm.weight",))])
def test_adapted_model_keeps_every_promise(asked: LoRA) -> None:
    model = stirred(adapt(fresh(), asked))
    kept = "batch cache future padding-middle packing saved greedy seeded tied bf16 exported-graph"
    report = verify(model, kept.split())
    assert report.broken == []


def test_points_of_an_adapted_model_are_those_of_the_base() -> None:
    model = fresh()
    before = model.point_names()
    adapt(model, EVERYTHING)
    assert model.point_names() == before
    with model.taps(read="blocks.0.attn.q") as acts:
        model(IDS)
    assert acts["blocks.0.attn.q"].shape == (2, 4, 9, 8)


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (lambda: LoRA(rank=0), "rank = 0"),
        (lambda: LoRA(alpha=0.0), "alpha = 0"),
        (lambda: LoRA(alpha=float("nan")), "alpha = nan"),
        (lambda: LoRA(dropout=1.0), "dropout = 1"),
        (lambda: LoRA(targets=()), "changes nothing"),
        (lambda: LoRA(ranked=(Ranked(pattern="*", rank=-1),)), "rank = -1"),
        (lambda: adapt(fresh(), LoRA(targets=("blocks.*.query",))), "nothing that 'blocks.*.query' names"),
        (lambda: adapt(fresh(), LoRA(targets=("final_norm",))), "nothing that 'final_norm' names"),
        (lambda: adapt(fresh(), LoRA(also=("no.such",))), "nothing that 'no.such' names"),
        (lambda: adapt(fresh(), LoRA(targets=("*.q",), exclude=("*",))), "excluded"),
        (lambda: adapt(fresh("moe"), LoRA(dora=True)), "holds experts"),
        (lambda: adapt(tied(), LoRA(targets=("head",), dora=True, ties="cut")), "is tied"),
        (lambda: adapt(fresh(), name="a.b"), "no name for an adapter"),
        (lambda: adapt(fresh(), name="items"), "no name for an adapter"),
        (lambda: adapt(adapt(fresh())), "has an adapter 'adapter' already"),
        (lambda: merge(fresh()), "no adapter is active"),
        (lambda: switch(adapt(fresh()), "other"), "has no adapter 'other'"),
        (lambda: remove(fresh(), "other"), "has no adapter 'other'"),
        (lambda: untie(fresh("moe")), "not tied"),
        (lambda: untie(adapt(tied(), LoRA(targets=("head",)))), "one matrix"),
    ],
)
def test_impossible_adapter_is_refused_by_name(asked: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says.replace("*", r"\*").replace(".", r"\.")):
        asked()


def test_refused_adapter_leaves_the_model_alone() -> None:
    model = fresh("moe")
    with pytest.raises(UsageError):
        adapt(model, LoRA(dora=True))
    assert names(model) == [] and not any(isinstance(module, Adapted) for module in model.modules())


def test_adaptable_lists_what_an_adapter_can_act_on() -> None:
    assert {"blocks.0.attn.q", "blocks.1.ffn.down", "embed.tokens", "head"} <= set(adaptable(fresh()))
