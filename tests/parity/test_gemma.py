"""Gemma 1 to 3: ours is Hugging Face's, on random weights; and deliberately wrong models are not."""

from __future__ import annotations

import json
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
    every_block,
    forced,
    logits_gap,
    noisy,
    ours,
    random_ids,
    random_theirs,
    without,
)
from safetensors.torch import load_file
from transformers import Gemma2Config, Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, GemmaConfig

from pellucid.errors import CheckpointError
from pellucid.families import gemma
from pellucid.families.registry import spec_of
from pellucid.families.weights import load_weights
from pellucid.nn.models import Decoder
from pellucid.spec import (
    PRE_NORM,
    REORDERED_NORM,
    Causal,
    GatedFFNSpec,
    LinearScaling,
    RMSNormSpec,
    RotarySpec,
    Window,
)

TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,  # 4 heads of 12 are more than 32
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,  # far from the usual, so that one who forgets it is seen
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,  # else theirs keeps that token's gradient from its row of the embedding
}
WINDOWED: dict[str, Any] = {
    **TINY,
    "query_pre_attn_scalar": 20,  # neither a head's width nor the model's over its heads
    "sliding_window": 5,
}
ROTARY = {
    "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
SETTINGS: dict[int, tuple[str, dict[str, Any]]] = {
    1: ("gemma", {**TINY, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    2: ("gemma2", {**WINDOWED, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0}),
    3: ("gemma3_text", {**WINDOWED, "rope_parameters": ROTARY}),
}
SCALED = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}
VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "1": (1, {}),
    "1, untied, biases": (1, {"tie_word_embeddings": False, "attention_bias": True}),
    "1, relu": (1, {"hidden_act": "relu"}),
    "2": (2, {}),
    "2, other caps": (2, {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 100.0}),
    "2, no caps": (2, {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "2, untied, biases": (2, {"tie_word_embeddings": False, "attention_bias": True}),
    "3": (3, {}),
    "3, untied, biases": (3, {"tie_word_embeddings": False, "attention_bias": True}),
    "3, capped": (3, {"final_logit_softcapping": 3.0}),
    "3, global positions scaled": (3, {"rope_parameters": {**ROTARY, "full_attention": SCALED}}),
    "3, local positions scaled": (3, {"rope_parameters": {**ROTARY, "sliding_attention": SCALED}}),
    "3, one layer in three global": (
        3,
        {"layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 2 + ["sliding_attention"]},
    ),
    "3, no window": (3, {"layer_types": ["full_attention"] * 7}),
}


def theirs(version: int, **changes: Any) -> Any:
    model_type, settings = SETTINGS[version]
    return random_theirs(model_type, settings, changes)


@pytest.fixture(scope="module", params=[1, 2, 3])
def every(request: pytest.FixtureRequest) -> Any:
    return theirs(request.param)


@pytest.fixture(scope="module")
def hf2() -> Any:
    return theirs(2)


@pytest.fixture(scope="module")
def hf3() -> Any:
    return theirs(3)


@pytest.fixture(params=[2, 3])
def hf(request: pytest.FixtureRequest, hf2: Any, hf3: Any) -> Any:
    return hf2 if request.param == 2 else hf3


@pytest.fixture
def model(hf: Any) -> Decoder:
    return ours(gemma, hf)


@pytest.mark.parametrize(("version", "changes"), VARIANTS.values(), ids=VARIANTS.keys())
def test_model_equals_transformers_both_ways(version: int, changes: dict[str, Any], tmp_path: Path) -> None:
    agrees(gemma, theirs(version, **changes), tmp_path)


def test_padded_rows_text_and_activations_agree(every: Any) -> None:
    agrees_inside(gemma, every)


def test_windows_are_kept_in_rings(model: Decoder) -> None:
    cache = model.new_cache(1, 40)
    kept = [layer.slots.name for layer in cache.layers]
    local = [block.mixer.mask != Causal() for block in model.spec.stack.blocks]  # type: ignore[union-attr]
    assert kept == ["ring of 5" if is_local else "contiguous" for is_local in local]
    assert {"ring of 5", "contiguous"} == set(kept)


# --- controls: each is a mistake that somebody has made ---------------------------------------------------------------


def is_global(block: Any) -> bool:
    return block.mixer.mask == Causal()


def is_local(block: Any) -> bool:
    return not is_global(block)


def mixers(spec: Any, change: Callable[[Any], Any], where: Callable[[Any], bool] = lambda block: True) -> Any:
    """The spec with the attention of some blocks changed."""
    blocks = tuple(replace(block, mixer=change(block.mixer)) if where(block) else block for block in spec.stack.blocks)
    return replace(spec, stack=replace(spec.stack, blocks=blocks))


def window(size: int) -> Callable[[Any], Any]:
    return lambda spec: mixers(spec, lambda a: replace(a, mask=Causal() & Window(size)), is_local)


def turned(rotary: RotarySpec, where: Callable[[Any], bool] = lambda block: True) -> Callable[[Any], Any]:
    return lambda spec: mixers(spec, lambda a: replace(a, rotary=rotary), where)


def global_first(spec: Any) -> Any:
    """The same period, begun at its other end."""
    blocks = spec.stack.blocks
    return replace(spec, stack=replace(spec.stack, blocks=(*blocks[1:], blocks[0])))


def head(spec: Any, **changes: Any) -> Any:
    return replace(spec, head=replace(spec.head, **changes))


CLOSE, USUAL = 5 * TOLERANCE, RMSNormSpec(offset=1.0)
WRONG: dict[str, tuple[Callable[[Any], Any], float]] = {  # each must differ by more than its floor; 2 and 3:
    "a window that does not count the token itself": (window(6), VISIBLE),  # 3.2 and 3.8
    "a window that counts it twice": (window(4), VISIBLE),  # 3.4, 5.4
    "no window": (lambda s: every_block(s, mixer={"mask": Causal()}), VISIBLE),  # 3.9, 5.8
    "a window everywhere": (lambda s: every_block(s, mixer={"mask": Causal() & Window(5)}), VISIBLE),  # 3.9, 1.8
    "layers begun with the other kind": (global_first, VISIBLE),  # 4.5, 2.7
    "another rotary base": (turned(RotarySpec(777.0)), VISIBLE),  # 3.0, 1.1
    "exact GELU for tanh GELU": (lambda s: every_block(s, ffn=GatedFFNSpec(48, "gelu")), CLOSE),  # 2.6e-3, 1.8e-3
    "SiLU for GELU": (lambda s: every_block(s, ffn=GatedFFNSpec(48, "silu")), VISIBLE),  # 1.5, 2.0
    "gain without 1": (lambda s: every_block(s, norm=RMSNormSpec(1e-3)), VISIBLE),  # 5.4, 6.4
    "gain without 1 at the end": (
        lambda s: replace(s, stack=replace(s.stack, final_norm=RMSNormSpec(1e-3))),
        VISIBLE,
    ),  # 4.2, 4.9
    "default eps": (lambda s: every_block(s, norm=USUAL), VISIBLE),  # 0.013, 0.015
    "embedding not scaled": (lambda s: replace(s, embed=replace(s.embed, scale=1.0)), VISIBLE),  # 5.2, 5.6
    "scores over a head's width": (lambda s: every_block(s, mixer={"scale": None}), VISIBLE),  # 1.5, 1.9
}


@pytest.mark.parametrize(("change", "floor"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_model_is_seen(model: Decoder, hf: Any, change: Callable[[Any], Any], floor: float) -> None:
    assert logits_gap(forced(change(model.spec), model), hf) > floor


@pytest.mark.parametrize("placement", [PRE_NORM, REORDERED_NORM])
def test_half_a_sandwich_is_seen(model: Decoder, hf: Any, placement: Any) -> None:
    assert logits_gap(without(every_block(model.spec, placement=placement), model), hf) > VISIBLE


@pytest.mark.parametrize(
    "change",
    [
        lambda s: every_block(s, mixer={"soft_cap": None}),
        lambda s: every_block(s, mixer={"soft_cap": 4.0}),
        lambda s: head(s, soft_cap=None),
        lambda s: head(s, soft_cap=6.0),
    ],
)
def test_soft_caps_left_out_or_wrong_are_seen(hf2: Any, change: Callable[[Any], Any]) -> None:
    right = ours(gemma, hf2)
    assert logits_gap(forced(change(right.spec), right), hf2) > VISIBLE


@pytest.mark.parametrize(
    "change",
    [
        turned(RotarySpec(5000.0), is_local),
        turned(RotarySpec(100.0), is_global),
        turned(RotarySpec(5000.0, 1.0, LinearScaling(2.0)), is_global),
        lambda s: every_block(s, mixer={"qk_norm": RMSNormSpec(1e-3)}),
    ],
)
def test_one_base_for_all_or_other_norms_of_q_and_k_are_seen(hf3: Any, change: Callable[[Any], Any]) -> None:
    right = ours(gemma, hf3)
    assert logits_gap(forced(change(right.spec), right), hf3) > VISIBLE


def test_q_and_k_without_norms_are_seen(hf3: Any) -> None:
    right = ours(gemma, hf3)
    assert logits_gap(without(every_block(right.spec, mixer={"qk_norm": None}), right), hf3) > VISIBLE


def test_the_norms_of_a_sandwich_swapped_are_seen(model: Decoder, hf: Any) -> None:
    weights = dict(hf.state_dict())
    first, second = (f"model.layers.1.{name}_layernorm.weight" for name in ("post_attention", "pre_feedforward"))
    weights[first], weights[second] = weights[second], weights[first]  # where a family without sandwiches has the first
    load_weights(model, weights, gemma.TABLE)
    assert logits_gap(model, hf) > VISIBLE


# --- the table is strict ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False, "attention_bias": True}])
def test_weights_come_back_exactly(version: int, changes: dict[str, Any]) -> None:
    comes_back(gemma, theirs(version, **changes))


def test_one_version_is_not_the_other(hf2: Any, hf3: Any) -> None:
    with pytest.raises(CheckpointError, match=r"no place for model\.layers\.0\.self_attn\.k_norm\.weight"):
        load_weights(ours(gemma, hf2), hf3.state_dict(), gemma.TABLE)
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.0\.self_attn\.k_norm\.weight"):
        load_weights(ours(gemma, hf3), hf2.state_dict(), gemma.TABLE)


# --- the config is understood, or refused by name ---------------------------------------------------------------------


def test_files_of_every_age_say_the_same(hf3: Any) -> None:
    new = config_json(hf3)
    changed = ("rope_parameters", "layer_types", "_sliding_window_pattern")
    old = {name: value for name, value in new.items() if name not in changed}
    old |= {"rope_theta": 5000.0, "rope_local_base_freq": 100.0, "sliding_window_pattern": 6, "rope_scaling": None}
    assert gemma.to_spec(old) == gemma.to_spec(new)
    old |= {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    assert gemma.to_spec(old) == gemma.to_spec({**new, "rope_parameters": {**ROTARY, "full_attention": SCALED}})


def test_silence_and_null_are_two_things(hf2: Any) -> None:
    config = config_json(hf2)
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    silent = gemma.to_spec({name: value for name, value in config.items() if name not in caps})
    null = gemma.to_spec({**config, **dict.fromkeys(caps)})
    assert [silent.stack.blocks[0].mixer.soft_cap, silent.head.soft_cap] == [50.0, 30.0]  # type: ignore[union-attr]
    assert [null.stack.blocks[0].mixer.soft_cap, null.head.soft_cap] == [None, None]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention = true"),
        ({"layer_types": ["full_attention"] * 6}, "layer_types = .* is not 7 times"),
        ({"layer_types": ["full_attention"] * 6 + ["chunked_attention"]}, "layer_types = .* is not 7 times"),
        ({"layer_types": None, "sliding_window_pattern": 0}, "sliding_window_pattern = 0"),
        ({"sliding_window": None}, "sliding_window = null"),
        ({"hidden_act": "silu"}, 'hidden_act = "silu"'),
        ({"hidden_activation": "quick_gelu"}, 'hidden_activation = "quick_gelu"'),
        ({"vision_config": {}}, "vision_config = {}"),
        ({"model_type": "gemma3n_text"}, 'model_type = "gemma3n_text"'),
    ],
)
def test_a_config_that_is_not_understood_is_refused(hf: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        gemma.to_spec({**config_json(hf), **changes})


def test_a_cap_that_theirs_would_not_apply_is_refused(hf3: Any) -> None:
    capped = theirs(3, attn_logit_softcapping=0.5)
    with torch.no_grad():
        assert torch.equal(capped(random_ids()).logits, hf3(random_ids()).logits)
    with pytest.raises(CheckpointError, match=r"attn_logit_softcapping = 0\.5 is not supported; only null is"):
        gemma.to_spec(config_json(capped))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunked_attention": {"rope_theta": 1.0}}, "rope_parameters: not understood: chunked_attention"),
        ({"sliding_attention": {"rope_type": "dynamic"}}, 'sliding_attention, rope_parameters: rope_type = "dynamic"'),
    ],
)
def test_rotary_settings_that_are_not_understood_are_refused(hf3: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        gemma.to_spec({**config_json(hf3), "rope_parameters": {**ROTARY, **changes}})


PUBLISHED = {  # the rest is as the library's defaults have it
    1: """{"architectures": ["GemmaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "head_dim": 256,
        "hidden_act": "gelu", "hidden_activation": null, "hidden_size": 3072, "intermediate_size": 24576,
        "max_position_embeddings": 8192, "model_type": "gemma", "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 16, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 10000.0,
        "vocab_size": 256000}""",
    2: """{"architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "cache_implementation": "hybrid",
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304,
        "intermediate_size": 9216, "model_type": "gemma2", "num_hidden_layers": 26, "num_attention_heads": 8,
        "rope_theta": 10000.0, "vocab_size": 256000}""",
    3: """{"architectures": ["Gemma3ForCausalLM"], "attn_logit_softcapping": null, "hidden_size": 2304,
        "intermediate_size": 9216, "max_position_embeddings": 131072, "model_type": "gemma3_text",
        "num_attention_heads": 8, "num_hidden_layers": 26, "rope_local_base_freq": 10000.0, "rope_scaling": null,
        "rope_theta": 1000000.0, "sliding_window_pattern": 6, "vocab_size": 262208}""",
}
DEFAULTS = {1: GemmaConfig, 2: Gemma2Config, 3: Gemma3TextConfig}


@pytest.mark.parametrize(("version", "first"), [(1, [0, 1]), (2, [1, 3]), (3, [5, 11])])
def test_a_published_config_is_understood(version: int, first: list[int]) -> None:
    spec = gemma.to_spec(json.loads(PUBLISHED[version]))
    assert spec == gemma.to_spec(DEFAULTS[version]().to_dict())
    assert [i for i, block in enumerate(spec.stack.blocks) if is_global(block)][:2] == first


@pytest.mark.parametrize("tied", [True, False])
def test_the_part_that_reads_text_of_one_that_sees(tied: bool, tmp_path: Path) -> None:
    """As files and as memory name its weights; what sees is ignored by name, and everything else is not."""
    text = {**SETTINGS[3][1], "tie_word_embeddings": tied, "model_type": "gemma3_text"}
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    seeing = {**small, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=seeing, mm_tokens_per_image=4, tie_word_embeddings=tied)
    reference = noisy(Gemma3ForConditionalGeneration(config))
    reference.save_pretrained(tmp_path)
    spec, table = spec_of(json.loads((tmp_path / "config.json").read_text()))
    files, memory = load_file(tmp_path / "model.safetensors"), reference.state_dict()
    assert any(name.startswith("language_model.model.") for name in files)
    for weights in (files, memory):
        model = Decoder(spec)  # type: ignore[arg-type]
        load_weights(model, weights, table)
        assert logits_gap(model.eval(), reference) <= TOLERANCE
    with pytest.raises(CheckpointError, match=r"no place for audio_tower\.norm\.weight"):
        load_weights(model, {**files, "audio_tower.norm.weight": torch.ones(4)}, table)
    with pytest.raises(CheckpointError, match=r"gemma3 config: not understood: audio_config"):
        spec_of({**config_json(reference), "audio_config": {}})


def test_the_first_has_no_windows_and_no_caps() -> None:
    for name in ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"):
        with pytest.raises(CheckpointError, match=f"{name} = 8"):
            gemma.to_spec({**json.loads(PUBLISHED[1]), name: 8})
