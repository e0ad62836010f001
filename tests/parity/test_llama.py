"""Llama: ours is Hugging Face's, on random weights; and deliberately wrong models are not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from against_hf import (
    VISIBLE,
    VOCAB,
    agrees,
    agrees_inside,
    comes_back,
    config_json,
    edited,
    every_block,
    forced,
    logits_gap,
    ours,
    random_theirs,
    swapped,
)
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pellucid.errors import CheckpointError
from pellucid.families import llama
from pellucid.families.rotary import rotary_attributes
from pellucid.families.weights import load_weights
from pellucid.nn.models import Decoder
from pellucid.nn.rope import frequencies
from pellucid.spec import (
    REORDERED_NORM,
    AttentionSpec,
    ByPartsScaling,
    GatedFFNSpec,
    LinearScaling,
    RMSNormSpec,
    RotarySpec,
    YaRNScaling,
)

TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,  # far from the usual, so that one who forgets it is seen
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
HEAD_DIM = 8
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
MSCALED = (0.2 * math.log(4.0) + 1.0) / (0.05 * math.log(4.0) + 1.0)
BY_PARTS = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "low_freq_factor": 0.5,
    "high_freq_factor": 2.0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "one key/value head": {"num_key_value_heads": 1},
    "as many key/value heads as heads": {"num_key_value_heads": None},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 12},
    "linear": {"rope_parameters": LINEAR},
    "by parts": {"rope_parameters": BY_PARTS},
    "yarn": {"rope_parameters": YARN},
    "yarn, other turns": {"rope_parameters": {**YARN, "beta_fast": 4, "beta_slow": 0.5}},
    "gelu": {"hidden_act": "gelu_pytorch_tanh"},
}


def theirs(**changes: Any) -> Any:
    return random_theirs("llama", TINY, changes)


@pytest.fixture(scope="module")
def hf() -> Any:
    return theirs()


@pytest.fixture
def model(hf: Any) -> Decoder:
    return ours(llama, hf)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_model_equals_transformers_both_ways(changes: dict[str, Any], tmp_path: Path) -> None:
    agrees(llama, theirs(**changes), tmp_path)


def test_padded_rows_text_and_activations_agree(hf: Any) -> None:
    agrees_inside(llama, hf)


# --- controls: each is a mistake that somebody has made ---------------------------------------------------------------


def rotary(**changes: Any) -> Callable[[Decoder], Decoder]:
    right = RotarySpec(base=500.0)
    return lambda model: forced(every_block(model.spec, mixer={"rotary": replace(right, **changes)}), model)


def no_rotation(model: Decoder) -> Decoder:
    return forced(every_block(model.spec, mixer={"rotary": None}), model)


def default_eps(model: Decoder) -> Decoder:
    return forced(every_block(model.spec, norm=RMSNormSpec()), model)


def gain_plus_one(model: Decoder) -> Decoder:
    return forced(every_block(model.spec, norm=RMSNormSpec(eps=1e-3, offset=1.0)), model)


def norm_after_branch(model: Decoder) -> Decoder:
    return forced(every_block(model.spec, placement=REORDERED_NORM), model)


def gate_with_gelu(model: Decoder) -> Decoder:
    return forced(every_block(model.spec, ffn=GatedFFNSpec(48, "gelu")), model)


def scale_of_the_model_width(model: Decoder) -> Decoder:
    return forced(every_block(model.spec, mixer={"scale": 32**-0.5}), model)


def rows_of_heads(weight: torch.Tensor) -> torch.Tensor:
    return weight.unflatten(0, (-1, HEAD_DIM))


def interleave(block: Any) -> None:
    """The order of the other rotary layout, which turns dimensions (0, 1), (2, 3), ... together."""
    order = torch.arange(HEAD_DIM).view(2, -1).T.flatten()
    for layer in (block.attn.q, block.attn.k):
        layer.weight.copy_(rows_of_heads(layer.weight)[:, order].flatten(0, 1))


def group_by_remainder(block: Any) -> None:
    """Query head h with key/value head h mod n instead of h div (heads / n)."""
    order = torch.tensor([0, 2, 1, 3])
    block.attn.q.weight.copy_(rows_of_heads(block.attn.q.weight)[order].flatten(0, 1))
    block.attn.o.weight.copy_(rows_of_heads(block.attn.o.weight.T)[order].flatten(0, 1).T)


CONTROLS: dict[str, Callable[[Decoder], Decoder]] = {
    "another rotary base": rotary(base=10_000.0),
    "a rotary scaling too many": rotary(scaling=LinearScaling(2.0)),
    "half of each head rotated": rotary(fraction=0.5),
    "no rotation": no_rotation,
    "default eps": default_eps,
    "gain 1 + weight": gain_plus_one,
    "norm after the branch": norm_after_branch,
    "GELU for SiLU": gate_with_gelu,
    "scaled by the wrong width": scale_of_the_model_width,
    "interleaved rotary layout": edited(interleave),
    "key/value heads dealt in turn": edited(group_by_remainder),
    "k and v swapped": swapped("attn.k.weight", "attn.v.weight"),
    "gate and up swapped": swapped("ffn.gate.weight", "ffn.up.weight"),
    "the two norms swapped": swapped("attn_norms.pre.weight", "ffn_norms.pre.weight"),
}


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS.keys())
def test_a_wrong_model_is_seen(model: Decoder, hf: Any, control: Callable[[Decoder], Decoder]) -> None:
    assert logits_gap(control(model), hf) > VISIBLE


def test_q_and_k_swapped_is_seen() -> None:
    reference = theirs(num_key_value_heads=4)  # only equal shapes can be confused
    weights = dict(reference.state_dict())
    for i in range(3):
        q, k = (f"model.layers.{i}.self_attn.{x}_proj.weight" for x in "qk")
        weights[q], weights[k] = weights[k], weights[q]
    wrong = ours(llama, reference)
    load_weights(wrong, weights, llama.TABLE)
    assert logits_gap(wrong, reference) > VISIBLE


@pytest.mark.parametrize("name", ["linear", "by parts", "yarn"])
def test_a_forgotten_scaling_is_seen(name: str) -> None:
    reference = theirs(**VARIANTS[name])
    assert logits_gap(rotary()(ours(llama, reference)), reference) > VISIBLE


def test_yarn_without_its_sharper_attention_is_seen() -> None:
    reference = theirs(**VARIANTS["yarn"])
    right = ours(llama, reference)
    scale = (0.1 * torch.tensor(4.0).log() + 1.0).item()  # on q and on k, so squared in the scores
    wrong = forced(every_block(right.spec, mixer={"scale": HEAD_DIM**-0.5 / scale**2}), right)
    assert logits_gap(wrong, reference) > VISIBLE


@pytest.mark.parametrize("part", ["attention_bias", "mlp_bias"])
def test_forgotten_biases_are_refused_and_would_show(part: str) -> None:
    reference = theirs(**{part: True})
    spec = llama.to_spec({**config_json(reference), part: False})
    weights = reference.state_dict()
    with pytest.raises(CheckpointError, match=r"no place for model\.layers\.0\.\w+\.\w+_proj\.bias"):
        load_weights(Decoder(spec), weights, llama.TABLE)
    wrong = Decoder(spec)
    load_weights(wrong, {name: w for name, w in weights.items() if not name.endswith("bias")}, llama.TABLE)
    assert logits_gap(wrong.eval(), reference) > VISIBLE


# --- the table is strict ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}])
def test_weights_come_back_exactly(changes: dict[str, Any]) -> None:
    comes_back(llama, theirs(**changes))


def test_a_head_forgiven_as_tied_is_refused_and_would_show(model: Decoder, hf: Any) -> None:
    weights = dict(hf.state_dict())
    weights["output.weight"] = weights.pop("lm_head.weight")
    with pytest.raises(CheckpointError, match=r"lacks lm_head\.weight; and this model has no place for output\.weight"):
        load_weights(model, weights, llama.TABLE)
    with torch.no_grad():
        assert model.head.weight is not None and model.embed.tokens.weight is not None
        model.head.weight.copy_(model.embed.tokens.weight)  # what "it must be tied, then" amounts to
    assert logits_gap(model, hf) > VISIBLE


def test_an_old_buffer_is_ignored_by_name(model: Decoder, hf: Any) -> None:
    weights = dict(hf.state_dict())
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    load_weights(model, weights, llama.TABLE)
    weights["model.layers.0.self_attn.rotary_emb.cos_cached"] = torch.ones(4)
    with pytest.raises(CheckpointError, match=r"no place for .*cos_cached"):
        load_weights(model, weights, llama.TABLE)


# --- the config is understood, or refused by name ---------------------------------------------------------------------


def rotary_of(config: dict[str, Any]) -> RotarySpec | None:
    mixer = llama.to_spec(config).stack.blocks[0].mixer
    assert isinstance(mixer, AttentionSpec)
    return mixer.rotary


def test_rotary_settings_are_read_as_old_and_new_files_have_them(hf: Any) -> None:
    new = config_json(hf)
    old = {name: value for name, value in new.items() if name != "rope_parameters"}
    assert rotary_of(old) == RotarySpec(base=10_000.0)
    assert rotary_of({**old, "rope_theta": 500, "rope_scaling": None}) == rotary_of(new) == RotarySpec(base=500.0)
    scaled = {**old, "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4}}
    assert (
        rotary_of(scaled) == rotary_of({**old, "rope_parameters": LINEAR}) == RotarySpec(500.0, 1.0, LinearScaling(4.0))
    )
    assert rotary_of({**old, "rope_parameters": BY_PARTS}) == RotarySpec(500.0, 1.0, ByPartsScaling(4.0, 16, 0.5, 2.0))
    assert rotary_of({**old, "rope_parameters": YARN}) == RotarySpec(500.0, 1.0, YaRNScaling(4.0, 16, 32.0, 1.0))
    unsaid = {key: value for key, value in YARN.items() if key != "original_max_position_embeddings"}
    assert rotary_of({**old, "rope_parameters": unsaid}) == RotarySpec(500.0, 1.0, YaRNScaling(4.0, 64, 32.0, 1.0))


@pytest.mark.parametrize(
    ("extra", "fields"),
    [
        ({"attention_factor": 1.0}, {"attention_factor": 1.0}),
        ({"attention_factor": 0.1 * math.log(4.0) + 1.0}, {}),
        ({"attn_factor": 0.878, "finetuned": True}, {}),
        ({"mscale": 0.7}, {}),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, {"attention_factor": 1.0}),
        ({"mscale": 2.0, "mscale_all_dim": 0.5, "truncate": False}, {"attention_factor": MSCALED, "truncate": False}),
        ({"factor": None, "beta_fast": None}, {}),
    ],
)
def test_factors_of_yarn_are_those_of_the_library(hf: Any, extra: dict[str, Any], fields: dict[str, Any]) -> None:
    config = {**config_json(hf), "rope_parameters": {**YARN, **extra}}
    spec = rotary_of(config)
    assert spec == RotarySpec(500.0, 1.0, YaRNScaling(4.0, 16, **fields))
    library = LlamaConfig.from_dict({**config, "rope_parameters": {**YARN, **extra}})
    rate, factor = ROPE_INIT_FUNCTIONS["yarn"](library, None)
    ours, own = frequencies(spec, library.head_dim)  # pyright: ignore[reportArgumentType]
    assert (ours - rate).abs().max() < 1e-6 and own == pytest.approx(factor, rel=1e-6)
    assert rotary_of({**config, "rope_parameters": None, **rotary_attributes(spec)}) == spec  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 'rope_type = "dynamic"'),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, 'rope_type = "longrope"'),
        ({"rope_parameters": {**YARN, "mscale": "x"}}, 'rope_parameters: mscale = "x" is not float'),
        ({"rope_parameters": {**YARN, "attention_factor": 0}}, r"attention_factor = 0(\.0)? must be above 0"),
        ({"rope_parameters": {**YARN, "truncate": 0}}, "truncate = 0 is not bool"),
        ({"rope_parameters": {**LINEAR, "factor": 0.5}}, "factor = 0.5"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor = null is not float"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"rope_parameters": {**LINEAR, "mrope_section": [1, 3]}}, r"mrope_section = \[1, 3\]"),
        (
            {"rope_parameters": LINEAR, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_scaling = .* contradicts",
        ),
        ({"sliding_window": 8}, "sliding_window = 8"),
        ({"hidden_act": "xielu"}, 'hidden_act = "xielu"'),
        ({"mlp_bias": 1}, "mlp_bias = 1 is not bool"),
        ({"model_type": "mixtral"}, 'model_type = "mixtral"'),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(hf: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        llama.to_spec({**config_json(hf), **changes})
