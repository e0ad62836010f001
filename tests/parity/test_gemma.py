"""Gemma 2 and 3: ours is Hugging Face's, on random weights; and deliberately wrong models are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from against_hf import (
    TOLERANCE,
    VISIBLE,
    VOCAB,
    cached_gap,
    config_json,
    every_block,
    forced,
    gradient_gap,
    greedy_tokens,
    inner_gaps,
    logits_gap,
    noisy,
    ours,
    padded_gap,
    random_ids,
    without,
)
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from pellucid.errors import CheckpointError
from pellucid.families import gemma
from pellucid.families.table import export_weights, load_weights
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
    "query_pre_attn_scalar": 20,  # neither a head's width nor the model's over its heads
    "sliding_window": 5,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,  # far from the usual, so that one who forgets it is seen
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,  # else theirs keeps that token's gradient from its row of the embedding
}
ROTARY = {
    "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
SCALED = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}
VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "2": (2, {}),
    "2, other caps": (2, {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 100.0}),
    "2, no caps": (2, {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "3": (3, {}),
    "3, untied, biases": (3, {"tie_word_embeddings": False, "attention_bias": True}),
    "3, capped": (3, {"final_logit_softcapping": 3.0}),
    "3, global positions scaled": (3, {"rope_parameters": {**ROTARY, "full_attention": SCALED}}),
    "3, one layer in three global": (
        3,
        {"layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 2 + ["sliding_attention"]},
    ),
}


def theirs(version: int, **changes: Any) -> Any:
    torch.manual_seed(0)
    if version == 2:
        capped: dict[str, Any] = {**TINY, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0, **changes}
        return noisy(Gemma2ForCausalLM(Gemma2Config(**capped)))
    config: dict[str, Any] = {**TINY, "rope_parameters": ROTARY, **changes}
    config["rope_parameters"] = {kind: dict(values) for kind, values in config["rope_parameters"].items()}
    return noisy(Gemma3ForCausalLM(Gemma3TextConfig(**config)))


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
def test_logits_gradients_and_caches_agree(version: int, changes: dict[str, Any]) -> None:
    reference = theirs(version, **changes)
    model = ours(gemma, reference)
    assert logits_gap(model, reference) <= TOLERANCE
    assert cached_gap(model, reference) <= TOLERANCE
    assert gradient_gap(gemma, model, reference) <= TOLERANCE


def test_windows_are_kept_in_rings(model: Decoder) -> None:
    cache = model.new_cache(1, 40)
    kept = [layer.slots.name for layer in cache.layers]
    local = [block.mixer.mask != Causal() for block in model.spec.stack.blocks]  # type: ignore[union-attr]
    assert kept == ["ring of 5" if is_local else "contiguous" for is_local in local]
    assert {"ring of 5", "contiguous"} == set(kept)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_agree(model: Decoder, hf: Any, side: str) -> None:
    assert padded_gap(model, hf, side) <= TOLERANCE


def test_greedy_text_agrees(model: Decoder, hf: Any) -> None:
    prompt = random_ids(2, 6)
    wanted = hf.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=12, pad_token_id=0
    )
    assert torch.equal(greedy_tokens(model, prompt, 12), wanted)


def test_activation_points_are_where_they_say(model: Decoder, hf: Any) -> None:
    gaps = inner_gaps(model, hf)
    assert len(gaps) == 1 + 2 * 7
    assert max(gaps.values()) <= TOLERANCE, gaps


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


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False, "attention_bias": True}])
def test_weights_come_back_exactly(version: int, changes: dict[str, Any]) -> None:
    reference = theirs(version, **changes)
    exported, weights = export_weights(ours(gemma, reference), gemma.TABLE), reference.state_dict()
    assert weights.keys() - exported.keys() == (set() if changes else {"lm_head.weight"})
    assert all(torch.equal(exported[name], weights[name]) for name in exported)


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
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ({"layer_types": ["full_attention"] * 6}, "layer_types = .* is not 7 times"),
        ({"layer_types": ["full_attention"] * 6 + ["chunked_attention"]}, "layer_types = .* is not 7 times"),
        ({"layer_types": None, "sliding_window_pattern": 0}, "sliding_window_pattern = 0"),
        ({"sliding_window": None}, "sliding_window = None"),
        ({"hidden_act": "silu"}, "hidden_act = 'silu'"),
        ({"hidden_activation": "quick_gelu"}, "hidden_activation = 'quick_gelu'"),
        ({"vision_config": {}}, "vision_config = {}"),
        ({"model_type": "gemma"}, "model_type = 'gemma'"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(hf: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        gemma.to_spec({**config_json(hf), **changes})


def test_a_cap_that_theirs_would_not_apply_is_refused(hf3: Any) -> None:
    capped = theirs(3, attn_logit_softcapping=0.5)
    with torch.no_grad():
        assert torch.equal(capped(random_ids()).logits, hf3(random_ids()).logits)
    with pytest.raises(CheckpointError, match=r"attn_logit_softcapping = 0\.5 is not supported; only None is"):
        gemma.to_spec(config_json(capped))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunked_attention": {"rope_theta": 1.0}}, "rope_parameters: not understood: chunked_attention"),
        ({"sliding_attention": {"rope_type": "dynamic"}}, "sliding_attention, rope_parameters: rope_type = 'dynamic'"),
    ],
)
def test_rotary_settings_that_are_not_understood_are_refused(hf3: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        gemma.to_spec({**config_json(hf3), "rope_parameters": {**ROTARY, **changes}})


PUBLISHED = {  # the rest is as the library's defaults have it
    2: """{"architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "cache_implementation": "hybrid",
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304,
        "intermediate_size": 9216, "model_type": "gemma2", "num_hidden_layers": 26, "num_attention_heads": 8,
        "rope_theta": 10000.0, "vocab_size": 256000}""",
    3: """{"architectures": ["Gemma3ForCausalLM"], "attn_logit_softcapping": null, "hidden_size": 2304,
        "intermediate_size": 9216, "max_position_embeddings": 131072, "model_type": "gemma3_text",
        "num_attention_heads": 8, "num_hidden_layers": 26, "rope_local_base_freq": 10000.0, "rope_scaling": null,
        "rope_theta": 1000000.0, "sliding_window_pattern": 6, "vocab_size": 262208}""",
}


@pytest.mark.parametrize("version", [2, 3])
def test_a_published_config_is_understood(version: int) -> None:
    spec = gemma.to_spec(json.loads(PUBLISHED[version]))
    assert spec == gemma.to_spec((Gemma2Config() if version == 2 else Gemma3TextConfig()).to_dict())
    assert [i for i, block in enumerate(spec.stack.blocks) if is_global(block)][:2] == (
        [1, 3] if version == 2 else [5, 11]
    )
