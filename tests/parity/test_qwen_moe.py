"""Qwen 3 with experts: ours is Hugging Face's, on random weights, as files and as memory hold them."""

from __future__ import annotations

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
    config_json,
    every_block,
    forced,
    logits_gap,
    ours,
    random_theirs,
    swapped,
    without,
)
from safetensors.torch import load_file

from pellucid import designs
from pellucid.errors import CheckpointError
from pellucid.families import qwen_moe
from pellucid.families.registry import config_of
from pellucid.families.weights import export_weights, load_weights
from pellucid.nn.models import Decoder
from pellucid.spec import GatedFFNSpec, MoESpec

TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,  # far from the usual, so that one who forgets it is seen
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "weights as they are": {},
    "renormalised": {"norm_topk_prob": True},
    "tied, biases": {"tie_word_embeddings": True, "attention_bias": True},
    "window": {"use_sliding_window": True, "sliding_window": 5},
    "one of three": {"num_experts": 3, "num_experts_per_tok": 1},
}


def theirs(**changes: Any) -> Any:
    reference = random_theirs("qwen3_moe", TINY, changes)
    reference.set_experts_implementation("eager")  # their loop over experts, not the kernel that we use too
    return reference


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_model_equals_transformers_both_ways(changes: dict[str, Any], tmp_path: Path) -> None:
    agrees(qwen_moe, theirs(**changes), tmp_path)


def test_padded_rows_text_and_activations_agree() -> None:
    agrees_inside(qwen_moe, theirs())


def test_files_are_read_and_written_as_they_are_published(tmp_path: Path) -> None:
    reference = theirs()
    reference.save_pretrained(tmp_path)
    files = load_file(tmp_path / "model.safetensors")
    assert "model.layers.2.mlp.experts.3.down_proj.weight" in files
    model = Decoder(qwen_moe.to_spec(config_json(reference)))
    load_weights(model, files, qwen_moe.TABLE)
    assert logits_gap(model.eval(), reference) <= TOLERANCE
    given = export_weights(model, qwen_moe.TABLE)
    assert given.keys() == files.keys()
    assert all(torch.equal(given[name], files[name]) for name in files)


@pytest.mark.parametrize("change", [{"renormalise": True}, {"top_k": 1}, {"expert": GatedFFNSpec(24, "gelu")}])
def test_wrong_experts_are_seen(change: dict[str, Any]) -> None:
    reference = theirs()
    model = ours(qwen_moe, reference)
    experts = replace(MoESpec(GatedFFNSpec(24), 4, 2, renormalise=False), **change)
    assert logits_gap(forced(every_block(model.spec, ffn=experts), model), reference) > VISIBLE


def test_gate_and_up_swapped_or_norms_left_out_are_seen() -> None:
    reference = theirs()
    model = ours(qwen_moe, reference)
    assert logits_gap(swapped("ffn.gate.weight", "ffn.up.weight")(model), reference) > VISIBLE
    assert logits_gap(without(every_block(model.spec, mixer={"qk_norm": None}), model), reference) > VISIBLE


def test_our_design_with_experts_is_one() -> None:
    assert config_of(designs.design("moe")(VOCAB, 64, 3, 64, 16))[0]["model_type"] == "qwen3_moe"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_sparse_step": 2}, "decoder_sparse_step = 2"),
        ({"mlp_only_layers": [1]}, r"mlp_only_layers = \[1\]"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok = 5 is not from 1 to num_experts = 4"),
        ({"shared_expert_intermediate_size": 8}, "not understood: shared_expert_intermediate_size = 8"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        qwen_moe.to_spec({**config_json(theirs()), **changes})
