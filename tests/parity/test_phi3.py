"""Phi 3: ours is Hugging Face's, on random weights; fused matrices divided otherwise are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from against_hf import (
    VISIBLE,
    VOCAB,
    agrees,
    agrees_inside,
    comes_back,
    config_json,
    every_block,
    forced,
    logits_gap,
    ours,
    random_theirs,
    swapped,
)

from pellucid.errors import CheckpointError
from pellucid.families import phi3
from pellucid.spec import Causal, RotarySpec

TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 64,
    "sliding_window": 5,
    "rms_norm_eps": 1e-3,  # far from the usual, so that one who forgets it is seen
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "half turned, a window": {},
    "as many key/value heads as heads, no window": {"num_key_value_heads": 4, "sliding_window": None},
    "tied, whole heads": {
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
}


def theirs(**changes: Any) -> Any:
    return random_theirs("phi3", TINY, changes)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_model_equals_transformers_both_ways(changes: dict[str, Any], tmp_path: Path) -> None:
    agrees(phi3, theirs(**changes), tmp_path)


def test_padded_rows_text_and_activations_agree() -> None:
    agrees_inside(phi3, theirs())


def test_weights_come_back_exactly() -> None:
    comes_back(phi3, theirs())


@pytest.mark.parametrize("mixer", [{"mask": Causal()}, {"rotary": RotarySpec(500.0)}])
def test_a_wrong_model_is_seen(mixer: dict[str, Any]) -> None:
    reference = theirs()
    model = ours(phi3, reference)
    assert logits_gap(forced(every_block(model.spec, mixer=mixer), model), reference) > VISIBLE


@pytest.mark.parametrize(
    "parts", [("ffn.gate.weight", "ffn.up.weight"), ("attn.k.weight", "attn.v.weight")], ids=lambda parts: parts[0]
)
def test_halves_in_another_order_are_seen(parts: tuple[str, str]) -> None:
    reference = theirs()
    assert logits_gap(swapped(*parts)(ours(phi3, reference)), reference) > VISIBLE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, 'rope_type = "longrope"'),
        ({"rope_parameters": None, "rope_scaling": {"type": "su", "factor": 2.0}}, 'rope_scaling: type = "su"'),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling = .* only null"),
        ({"attention_bias": True}, "attention_bias = true"),
        ({"embedding_multiplier": 2.0}, "not understood: embedding_multiplier"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        phi3.to_spec({**config_json(theirs()), **changes})
