"""Mixtral: ours is Hugging Face's, on random weights, as files and as memory hold them; wrong routing is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from against_hf import (
    TOLERANCE,
    VISIBLE,
    VOCAB,
    agrees,
    agrees_inside,
    comes_back,
    config_json,
    edited,
    every_block,
    forced,
    gap,
    logits_gap,
    ours,
    random_ids,
    random_theirs,
    swapped,
)
from safetensors.torch import load_file
from torch import Tensor
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from pellucid.errors import CheckpointError
from pellucid.families import mixtral
from pellucid.families.weights import export_weights, load_weights
from pellucid.nn.models import Decoder
from pellucid.nn.moe import load_balance
from pellucid.spec import AttentionSpec, GatedFFNSpec, MoESpec, RotarySpec

TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,  # far from the usual, so that one who forgets it is seen
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "two of four": {},
    "one of four": {"num_experts_per_tok": 1},
    "all of four": {"num_experts_per_tok": 4},
    "three of seven": {"num_local_experts": 7, "num_experts_per_tok": 3},
    "a single expert": {"num_local_experts": 1, "num_experts_per_tok": 1},
    "narrow experts": {"intermediate_size": 11},  # rows that torch's grouped kernel does not take
    "tied": {"tie_word_embeddings": True},
    "window": {"sliding_window": 5},
    "gelu": {"hidden_act": "gelu_pytorch_tanh"},
}


def theirs(**changes: Any) -> Any:
    reference = random_theirs("mixtral", TINY, changes)
    reference.set_experts_implementation("eager")  # their loop over experts, not the kernel that we use too
    return reference


@pytest.fixture(scope="module")
def hf() -> Any:
    return theirs()


@pytest.fixture
def model(hf: Any) -> Decoder:
    return ours(mixtral, hf)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_model_equals_transformers_both_ways(changes: dict[str, Any], tmp_path: Path) -> None:
    reference = theirs(**changes)
    routed = reference.config.num_experts_per_tok > 1  # else a weight is p / p, and the router's gradient rounding
    agrees(mixtral, reference, tmp_path, gradients=routed)


def test_padded_rows_text_and_activations_agree(hf: Any) -> None:
    agrees_inside(mixtral, hf)


def test_router_logits_are_where_they_say(model: Decoder, hf: Any) -> None:
    ids = random_ids()
    with torch.no_grad(), model.taps(read="blocks.*.router_logits") as acts:
        model(ids)
        routers = hf(ids, output_router_logits=True).router_logits
    assert len(routers) == 3
    for i, logits in enumerate(routers):
        assert gap(acts[f"blocks.{i}.router_logits"].flatten(0, 1), logits) <= TOLERANCE


def test_a_softmax_over_the_chosen_logits_is_the_same(model: Decoder, hf: Any) -> None:
    """Jiang et al. 2024 write it so: softmax(TopK(x W)), by which others load the same weights."""
    kept: dict[int, Tensor] = {}

    def keep(i: int) -> Callable[[Tensor], Tensor]:
        return lambda logits: kept.setdefault(i, logits)

    edits = {f"blocks.{i}.router_logits": keep(i) for i in range(3)}
    edits |= {f"blocks.{i}.expert_weights": lambda w, i=i: kept[i].topk(2).values.softmax(-1) for i in range(3)}
    with model.taps(edit=edits):
        assert logits_gap(model, hf) <= TOLERANCE


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_balance_loss_agrees(top_k: int) -> None:
    """Theirs is not divided by top_k."""
    logits = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(top_k))
    valid = torch.arange(14).view(2, 7) % 4 > 0
    theirs: Any = load_balancing_loss_func
    everywhere = theirs((logits.flatten(0, 1),), 5, top_k)
    masked = theirs((logits.flatten(0, 1),), 5, top_k, attention_mask=valid.long())
    assert gap(load_balance(logits, top_k) * top_k, everywhere) <= TOLERANCE
    assert gap(load_balance(logits, top_k, valid) * top_k, masked) <= TOLERANCE
    assert gap(everywhere, masked) > VISIBLE


# --- controls: each is a mistake that somebody has made ---------------------------------------------------------------


def with_experts(**changes: Any) -> Callable[[Decoder], Decoder]:
    right = MoESpec(GatedFFNSpec(48), 4, 2)
    return lambda model: forced(every_block(model.spec, ffn=replace(right, **changes)), model)


def next_expert(block: Any) -> None:
    block.ffn.router.weight.copy_(block.ffn.router.weight.roll(1, 0))


def another_expert_s_down(block: Any) -> None:
    block.ffn.down.weight.copy_(block.ffn.down.weight.flip(0))


def another_base(model: Decoder) -> Decoder:
    return forced(every_block(model.spec, mixer={"rotary": RotarySpec(1_000_000.0)}), model)


CONTROLS: dict[str, Callable[[Decoder], Decoder]] = {
    "weights not renormalised": with_experts(renormalise=False),
    "one expert too few": with_experts(top_k=1),
    "one expert too many": with_experts(top_k=3),
    "GELU for SiLU": with_experts(expert=GatedFFNSpec(48, "gelu")),
    "the next expert's tokens": edited(next_expert),
    "another expert's down": edited(another_expert_s_down),
    "gate and up swapped": swapped("ffn.gate.weight", "ffn.up.weight"),
    "another rotary base": another_base,
}


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS.keys())
def test_a_wrong_model_is_seen(model: Decoder, hf: Any, control: Callable[[Decoder], Decoder]) -> None:
    assert logits_gap(control(model), hf) > VISIBLE


EDITS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "softmax over tokens": ("router_logits", lambda logits: logits.log_softmax(1)),
    "chosen weights over tokens": ("expert_weights", lambda w: w / w.sum(1, keepdim=True)),
    "weights in the other order": ("expert_weights", lambda w: w.flip(-1)),
    "even weights": ("expert_weights", lambda w: torch.full_like(w, 0.5)),
    "the worst experts": ("router_logits", lambda logits: -logits),
    "the best expert twice": ("expert_ids", lambda ids: ids[..., :1].expand_as(ids)),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_wrong_routing_is_seen(model: Decoder, hf: Any, edit: tuple[str, Callable[[Tensor], Tensor]]) -> None:
    point, change = edit
    with model.taps(edit={f"blocks.*.{point}": change}):
        assert logits_gap(model, hf) > VISIBLE
    assert logits_gap(model, hf) <= TOLERANCE


# --- the tables are strict --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"num_local_experts": 1, "num_experts_per_tok": 1}])
def test_files_are_read_and_written_as_they_are_published(changes: dict[str, Any], tmp_path: Path) -> None:
    """A tensor for each matrix of each expert: their own files load, and what we write is those files, bit for bit."""
    reference = theirs(**changes)
    reference.save_pretrained(tmp_path)
    files = load_file(tmp_path / "model.safetensors")
    assert "model.layers.2.block_sparse_moe.experts.0.w1.weight" in files
    model = Decoder(mixtral.to_spec(config_json(reference)))
    load_weights(model, files, mixtral.TABLE)
    assert logits_gap(model.eval(), reference) <= TOLERANCE
    exported = export_weights(model, mixtral.TABLE)
    assert exported.keys() == files.keys()
    assert all(torch.equal(exported[name], files[name]) for name in files)


def test_weights_in_memory_come_back_exactly(hf: Any) -> None:
    comes_back(mixtral, hf)


def test_a_bare_model_loads(model: Decoder, hf: Any) -> None:
    """Without ``model.`` before its names and without a head, in either version; the tied head needs none."""
    reference = theirs(tie_word_embeddings=True)
    expected = ours(mixtral, reference)
    for table in (mixtral.TABLE, mixtral.STACKED_TABLE):
        weights = export_weights(expected, table)
        bare = Decoder(expected.spec)
        load_weights(bare, {name.removeprefix("model."): w for name, w in weights.items()}, mixtral.TABLE)
        assert logits_gap(bare.eval(), reference) <= TOLERANCE


def test_a_missing_or_foreign_expert_is_refused(model: Decoder) -> None:
    weights = export_weights(model, mixtral.TABLE)
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.1\.block_sparse_moe\.experts\.3\.w2\.weight"):
        load_weights(model, {n: w for n, w in weights.items() if n != name}, mixtral.TABLE)
    extra = {**weights, name.replace("3.w2", "4.w2"): weights[name]}
    with pytest.raises(CheckpointError, match=r"no place for .*experts\.4\.w2"):
        load_weights(model, extra, mixtral.TABLE)
    with pytest.raises(CheckpointError, match=r"experts\.3\.w2\.weight has the shape \(48, 32\).* makes it \(32, 48\)"):
        load_weights(model, {**weights, name: weights[name].T}, mixtral.TABLE)


def test_versions_are_not_mixed(model: Decoder) -> None:
    weights = export_weights(model, mixtral.TABLE)
    stacked = export_weights(model, mixtral.STACKED_TABLE)
    router = "model.layers.0.mlp.gate.weight"
    weights[router] = stacked[router]
    with pytest.raises(CheckpointError, match=r"no place for model\.layers\.0\.mlp\.gate\.weight"):
        load_weights(model, weights, mixtral.TABLE)


def test_w1_and_w3_swapped_is_seen(model: Decoder, hf: Any) -> None:
    """The published names do not say which is the gate."""
    weights = export_weights(model, mixtral.TABLE)
    swap = {"w1": "w3", "w3": "w1"}
    crossed = {".".join(swap.get(part, part) for part in name.split(".")): w for name, w in weights.items()}
    wrong = Decoder(model.spec)
    load_weights(wrong, crossed, mixtral.TABLE)
    assert logits_gap(wrong.eval(), hf) > VISIBLE


# --- the config is understood, or refused by name ---------------------------------------------------------------------


def test_a_config_of_defaults_means_what_theirs_does() -> None:
    """The published 8x7B: nothing said, everything as ``MixtralConfig()`` has it."""
    full = mixtral.to_spec(MixtralConfig().to_dict())
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    said = {name: getattr(MixtralConfig(), name) for name in sizes}
    assert mixtral.to_spec({"model_type": "mixtral", **said}) == full
    ffn, mixer = full.stack.blocks[0].ffn, full.stack.blocks[0].mixer
    assert ffn == MoESpec(GatedFFNSpec(14336), 8, 2)
    assert isinstance(mixer, AttentionSpec) and mixer.rotary == RotarySpec(1_000_000.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, 'model_type = "mistral"'),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok = 5 is not from 1 to num_local_experts = 4"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok = 0"),
        ({"sliding_window": -1}, "sliding_window = -1 is negative"),
        ({"n_shared_experts": 1}, "not understood: n_shared_experts = 1"),
        ({"attention_bias": True}, "not understood: attention_bias = true"),
    ],
)
def test_options_that_mixtral_lacks_are_refused_by_name(hf: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        mixtral.to_spec({**config_json(hf), **changes})
    assert message in str(refused.value)
