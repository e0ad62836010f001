"""Qwen 2 and 3: ours is Hugging Face's, on random weights; and deliberately wrong models are not."""

from __future__ import annotations

from collections.abc import Callable
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
    without,
)
from transformers import Qwen2Config, Qwen3Config

from pellucid import designs
from pellucid.errors import CheckpointError
from pellucid.families import qwen
from pellucid.families.registry import config_of
from pellucid.spec import Causal, RMSNormSpec, RotarySpec, Window

TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,  # far from the usual, so that one who forgets it is seen
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
SETTINGS = {2: ("qwen2", TINY), 3: ("qwen3", {**TINY, "head_dim": 12})}
LAST: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
LOCAL, GLOBAL = "sliding_attention", "full_attention"
MIXED: dict[str, Any] = {**LAST, "layer_types": [LOCAL, GLOBAL, LOCAL]}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "2": (2, {}),
    "2, tied": (2, {"tie_word_embeddings": True}),
    "2, yarn": (2, {"rope_parameters": YARN}),
    "2, last layers with a window": (2, LAST),
    "2, a window not used": (2, {**LAST, "use_sliding_window": False}),
    "3": (3, {}),
    "3, tied, biases": (3, {"tie_word_embeddings": True, "attention_bias": True}),
    "3, mixed windows": (3, MIXED),
    "3, last layers with a window": (3, LAST),
}


def theirs(version: int, **changes: Any) -> Any:
    model_type, settings = SETTINGS[version]
    return random_theirs(model_type, settings, changes)


@pytest.fixture(scope="module", params=[2, 3])
def hf(request: pytest.FixtureRequest) -> Any:
    return theirs(request.param, **MIXED)


@pytest.mark.parametrize(("version", "changes"), VARIANTS.values(), ids=VARIANTS.keys())
def test_model_equals_transformers_both_ways(version: int, changes: dict[str, Any], tmp_path: Path) -> None:
    agrees(qwen, theirs(version, **changes), tmp_path)


def test_padded_rows_text_and_activations_agree(hf: Any) -> None:
    agrees_inside(qwen, hf)


def test_weights_come_back_exactly(hf: Any) -> None:
    comes_back(qwen, hf)


# --- controls: each is a mistake that somebody has made ---------------------------------------------------------------

WRONG: dict[str, Callable[[Any], Any]] = {  # measured, 2 and 3:
    "no window": lambda s: every_block(s, mixer={"mask": Causal()}),  # 3.3, 2.9
    "a window everywhere": lambda s: every_block(s, mixer={"mask": Causal() & Window(5)}),  # 2.5, 1.7
    "another rotary base": lambda s: every_block(s, mixer={"rotary": RotarySpec()}),  # 0.77, 0.75
    "default eps": lambda s: every_block(s, norm=RMSNormSpec()),  # 0.033, 0.018
    "scaled by the width over heads": lambda s: every_block(s, mixer={"scale": 2**-0.5}),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_model_is_seen(hf: Any, change: Callable[[Any], Any]) -> None:
    model = ours(qwen, hf)
    assert logits_gap(forced(change(model.spec), model), hf) > VISIBLE


@pytest.mark.parametrize(
    ("version", "mixer"), [(2, {"bias": False}), (3, {"qk_norm": None}), (3, {"qk_norm": RMSNormSpec(1e-3, 1.0)})]
)
def test_biases_or_norms_of_q_and_k_left_out_or_wrong_are_seen(version: int, mixer: dict[str, Any]) -> None:
    reference = theirs(version)
    model = ours(qwen, reference)
    spec = every_block(model.spec, mixer=mixer)
    wrong = forced(spec, model) if mixer.get("qk_norm") else without(spec, model)
    assert logits_gap(wrong, reference) > VISIBLE


# --- the config is understood, or refused by name ---------------------------------------------------------------------


@pytest.mark.parametrize("config", [Qwen2Config(), Qwen3Config()])
def test_absent_keys_take_the_published_defaults(config: Any) -> None:
    sizes = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    assert qwen.to_spec({name: getattr(config, name) for name in sizes}) == qwen.to_spec(config.to_dict())


def test_a_published_config_is_understood() -> None:
    published = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "hidden_size": 896,
        "initializer_range": 0.02,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 21,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    }
    spec = qwen.to_spec(published)
    mixer: Any = spec.stack.blocks[23].mixer
    assert (mixer.head_dim, mixer.mask, mixer.bias, mixer.out_bias) == (64, Causal(), True, False)
    assert spec.head.tied


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2_moe"}, 'model_type = "qwen2_moe"'),
        ({"layer_types": [LOCAL, GLOBAL]}, "layer_types = .* is not 3 times"),
        ({"layer_types": [[], GLOBAL, GLOBAL]}, "layer_types = .* is not 3 times"),
        ({"layer_types": [LOCAL] * 3}, "sliding_window = .* is no number of tokens, but layer_types has"),
        ({"use_sliding_window": True, "sliding_window": -4}, "sliding_window = -4 is negative"),
        ({"use_mrope": True}, "use_mrope = true"),
        ({"num_experts": 8}, "not understood: num_experts = 8"),
    ],
)
@pytest.mark.parametrize("version", [2, 3])
def test_a_config_that_is_not_understood_is_refused(version: int, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        qwen.to_spec({**config_json(theirs(version)), **changes})


# --- our own designs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "model_type"), [("modern", "qwen3"), ("window", "qwen3"), ("classic", "gpt2")])
def test_designs_that_a_family_can_express(name: str, model_type: str) -> None:
    assert config_of(designs.design(name)(VOCAB, 64, 3, 64, 16))[0]["model_type"] == model_type
