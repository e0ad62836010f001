"""Mistral: ours is Hugging Face's, on random weights; a window off by one is not."""

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
    exported,
    forced,
    logits_gap,
    ours,
    random_theirs,
)
from transformers import MistralConfig

from pellucid.errors import CheckpointError
from pellucid.families import mistral
from pellucid.spec import Causal, RotarySpec, Window

TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "sliding_window": 5,
    "rms_norm_eps": 1e-3,  # far from the usual, so that one who forgets it is seen
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "window": {},
    "window of two": {"sliding_window": 2},
    "no window": {"sliding_window": None},
    "tied, wide heads": {"tie_word_embeddings": True, "head_dim": 12},
    "gelu": {"hidden_act": "gelu"},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 500.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
}


def theirs(**changes: Any) -> Any:
    return random_theirs("mistral", TINY, changes)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_model_equals_transformers_both_ways(changes: dict[str, Any], tmp_path: Path) -> None:
    agrees(mistral, theirs(**changes), tmp_path)


@pytest.mark.parametrize("changes", [{}, {"sliding_window": None}])
def test_padded_rows_text_and_activations_agree(changes: dict[str, Any]) -> None:
    agrees_inside(mistral, theirs(**changes))


def test_weights_come_back_exactly() -> None:
    comes_back(mistral, theirs())


@pytest.mark.parametrize("size", [2, 4, 23, 24])
def test_a_window_counts_the_token_itself(size: int) -> None:
    reference = theirs(sliding_window=size)
    model = ours(mistral, reference)
    for wrong in {max(size - 1, 1), size + 1} - {size, 25}:
        off_by_one = forced(every_block(model.spec, mixer={"mask": Causal() & Window(wrong)}), model)
        assert logits_gap(off_by_one, reference) > VISIBLE


@pytest.mark.parametrize("mixer", [{"mask": Causal()}, {"rotary": RotarySpec()}, {"scale": 1.0}])
def test_a_wrong_model_is_seen(mixer: dict[str, Any]) -> None:
    reference = theirs()
    model = ours(mistral, reference)
    assert logits_gap(forced(every_block(model.spec, mixer=mixer), model), reference) > VISIBLE


def test_without_a_window_it_is_a_llama(tmp_path: Path) -> None:
    """Of families that can all express a model, the best known is written; another on demand."""
    model = ours(mistral, theirs(sliding_window=None))
    assert exported(model, tmp_path).config.model_type == "llama"
    assert exported(model, tmp_path, "mistral").config.model_type == "mistral"
    windowed = ours(mistral, theirs())
    assert exported(windowed, tmp_path).config.model_type == "mistral"
    with pytest.raises(
        CheckpointError, match=r"llama cannot express this model: stack\.blocks\[0\]\.mixer\.mask = And"
    ):
        exported(windowed, tmp_path, "llama")


def test_absent_keys_take_the_published_defaults() -> None:
    """The first published 7B: heads and window unsaid are not none."""
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    said = {name: getattr(MistralConfig(), name) for name in sizes}
    assert mistral.to_spec({"model_type": "mistral", **said}) == mistral.to_spec(MistralConfig().to_dict())
    everything = mistral.to_spec({"model_type": "mistral", **said, "sliding_window": None})
    assert everything.stack.blocks[0].mixer.mask == Causal()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window": -1}, "sliding_window = -1 is negative"),
        ({"attention_bias": True}, "not understood: attention_bias = true"),
        ({"layer_types": ["full_attention"] * 3}, "not understood: layer_types"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000 is not from 1 to 4096"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = NaN is not float"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0 is not from 1"),
        ({"architectures": ["MistralForSequenceClassification"]}, "no head of ours is that of"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        mistral.to_spec({**config_json(theirs()), **changes})
