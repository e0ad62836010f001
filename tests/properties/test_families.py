"""Configs of every family of decoders: read, written, and read again they say one thing, to us and to their library."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from pellucid import designs
from pellucid.errors import CheckpointError
from pellucid.families import config as reading
from pellucid.families.registry import FAMILIES, config_of, differences, family, plain, spec_of
from pellucid.families.weights import to_theirs
from pellucid.nn.models import build_model
from pellucid.spec import AttentionSpec

LOCAL, GLOBAL = "sliding_attention", "full_attention"
EPS, BASES = st.sampled_from([1e-6, 1e-5, 1e-3]), st.sampled_from([100.0, 10_000.0, 1e6])
ACTIVATIONS = st.sampled_from(["silu", "gelu", "gelu_pytorch_tanh", "relu"])
FLAGS = st.booleans()
TOKENS = {"bos_token_id": st.none(), "eos_token_id": st.none(), "pad_token_id": st.none()}  # theirs: beyond a small one
SCALINGS = st.sampled_from(
    [
        None,
        {"rope_type": "linear", "factor": 2.0},
        {"type": "linear", "factor": 8},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 16.0},
    ]
)


@st.composite
def sizes(draw: st.DrawFn, **others: st.SearchStrategy[Any]) -> dict[str, Any]:
    """What a config of a modern decoder says, with some of it left out."""
    n_kv = draw(st.sampled_from([1, 2]))
    n_heads = n_kv * draw(st.sampled_from([1, 2]))
    config = {
        "vocab_size": draw(st.integers(2, 40)),
        "hidden_size": n_heads * draw(st.sampled_from([2, 8])),
        "intermediate_size": draw(st.integers(1, 20)),
        "num_hidden_layers": draw(st.integers(1, 4)),
        "num_attention_heads": n_heads,
        "max_position_embeddings": draw(st.integers(32, 64)),
        **draw(st.fixed_dictionaries(TOKENS)),
    }
    shared = {"num_key_value_heads": st.just(n_kv), "head_dim": st.sampled_from([4, 6])}
    return {**config, **draw(st.fixed_dictionaries(shared)), **draw(st.fixed_dictionaries({}, optional=others))}


def modern(**others: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    turns = {"rope_theta": BASES, "rope_scaling": SCALINGS}
    return sizes(rms_norm_eps=EPS, hidden_act=ACTIVATIONS, tie_word_embeddings=FLAGS, **turns, **others)


WINDOWS, CAPS = st.sampled_from([None, 1, 5]), st.sampled_from([None, 3.0])
GEMMA: dict[str, st.SearchStrategy[Any]] = {
    "rms_norm_eps": EPS,
    "hidden_activation": ACTIVATIONS,
    "tie_word_embeddings": FLAGS,
    "attention_bias": FLAGS,
    "query_pre_attn_scalar": st.sampled_from([4, 6, 20, 224]),
    "final_logit_softcapping": CAPS,
    "sliding_window": st.sampled_from([1, 5]),
}


def with_own_heads(config: dict[str, Any]) -> dict[str, Any]:
    """Without grouped heads or a width of their own; of heads of 2, all is turned."""
    wide = config["hidden_size"] // config["num_attention_heads"] >= 8
    told = {} if wide and "rotary_pct" not in config else {"rotary_pct": 0.5 if wide else 1.0}
    return {name: value for name, value in (config | told).items() if name not in ("num_key_value_heads", "head_dim")}


DRAWN: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "gpt2": st.builds(
        lambda n_head, width, **others: {**others, "n_head": n_head, "n_embd": n_head * width},
        st.integers(1, 3),
        st.sampled_from([1, 2, 5]),
        **{name: st.integers(1, 40) for name in ("vocab_size", "n_positions", "n_layer")},
        n_inner=st.none() | st.integers(1, 20),
        activation_function=st.sampled_from(["gelu_new", "gelu", "relu"]),
        scale_attn_weights=FLAGS,
        scale_attn_by_inverse_layer_idx=FLAGS,
        layer_norm_epsilon=EPS,
        tie_word_embeddings=FLAGS,
    ).filter(lambda config: min(config["vocab_size"], config["n_positions"]) >= 2),
    "llama": modern(attention_bias=FLAGS, mlp_bias=FLAGS),
    "mistral": modern(sliding_window=WINDOWS),
    "mixtral": modern(sliding_window=WINDOWS, num_local_experts=st.integers(2, 4), num_experts_per_tok=st.just(2)),
    "qwen2": modern(use_sliding_window=FLAGS, sliding_window=WINDOWS, max_window_layers=st.integers(0, 5)),
    "qwen3": modern(
        use_sliding_window=FLAGS, sliding_window=WINDOWS, max_window_layers=st.integers(0, 5), attention_bias=FLAGS
    ),
    "qwen3_moe": modern(
        num_experts=st.integers(2, 4),
        num_experts_per_tok=st.integers(1, 2),
        moe_intermediate_size=st.integers(1, 9),
        norm_topk_prob=FLAGS,
        use_sliding_window=FLAGS,
        sliding_window=WINDOWS,
        attention_bias=FLAGS,
    ).map(lambda config: {"num_experts": 4, "num_experts_per_tok": 2, **config}),
    "phi3": modern(sliding_window=WINDOWS, partial_rotary_factor=st.sampled_from([1.0, 0.5])).map(
        lambda config: {**config, "rope_scaling": None, "head_dim": 8}
    ),
    "gemma": modern(attention_bias=FLAGS),
    "gemma2": sizes(**GEMMA, attn_logit_softcapping=CAPS, rope_theta=BASES, rope_scaling=SCALINGS),
    "gemma3_text": sizes(
        **GEMMA,
        rope_theta=BASES,
        rope_local_base_freq=BASES,
        rope_scaling=SCALINGS.filter(lambda rule: rule is None or "type" not in rule),  # which theirs overlooks here
        sliding_window_pattern=st.integers(1, 4),
    ),
    "gpt_neox": sizes(  # whose heads are as wide as the model is
        layer_norm_eps=EPS,
        hidden_act=ACTIVATIONS,
        attention_bias=FLAGS,
        use_parallel_residual=FLAGS,
        tie_word_embeddings=FLAGS,
        rotary_pct=st.just(1.0),
        rotary_emb_base=BASES,
    ).map(with_own_heads),
}
EACH = pytest.mark.parametrize("model_type", DRAWN)


def dumped(config: dict[str, Any]) -> dict[str, Any]:
    """The config as their library completes and writes it."""
    return json.loads(AutoConfig.for_model(**json.loads(json.dumps(config))).to_json_string(use_diff=False))


def same(a: Any, b: Any) -> bool:
    return plain(a) == plain(b)


def draw(model_type: str, data: st.DataObject) -> dict[str, Any]:
    return {"model_type": model_type, **data.draw(DRAWN[model_type])}


@EACH
@given(data=st.data())
def test_written_configs_equal_those_read(model_type: str, data: st.DataObject) -> None:
    config = draw(model_type, data)
    spec, _ = spec_of(config)
    written, _ = config_of(spec, model_type)
    assert same(spec_of(json.loads(json.dumps(written)))[0], spec)
    assert same(spec_of(config_of(spec)[0])[0], spec)


@EACH
@settings(max_examples=examples(12))
@given(data=st.data())
def test_their_library_reads_the_same_out_of_both(model_type: str, data: st.DataObject) -> None:
    """What a sparse config leaves unsaid, and what null means; and what we write."""
    config = draw(model_type, data)
    spec, _ = spec_of(config)
    assert same(spec_of(dumped(config))[0], spec)
    assert same(spec_of(dumped(config_of(spec, model_type)[0]))[0], spec)


@EACH
@settings(max_examples=examples(5))
@given(data=st.data())
def test_weights_have_their_names_and_shapes(model_type: str, data: st.DataObject) -> None:
    spec, table = spec_of(draw(model_type, data))
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config_of(spec, model_type)[0]))
        ours = build_model(spec)
    wanted = {name: tensor.shape for name, tensor in theirs.named_parameters()}  # what is tied, once
    each = [to_theirs(ours.state_dict(), version) for version in (table, *table.versions)]
    assert wanted in [{name: tensor.shape for name, tensor in given.items()} for given in each]


# --- strictness -------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
EXAMPLES: dict[str, dict[str, Any]] = {
    **{name: {"model_type": name, **SMALL} for name in DRAWN},
    "gpt2": {"model_type": "gpt2", "vocab_size": 40, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32},
}
for name in ("mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text"):
    EXAMPLES[name] |= {"num_key_value_heads": 2, "head_dim": 8}
EXAMPLES["gemma3_text"]["num_hidden_layers"] = 6  # the last of which sees everything
for name in ("qwen2", "qwen3", "qwen3_moe"):
    EXAMPLES[name] |= {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
WRONG = ["spam", [], {"a": 1}, True, -3, 2**40, math.nan, 1.5]


def outcome(config: dict[str, Any]) -> Any:
    """The spec, or the error's text; any other error is a defect."""
    try:
        return spec_of(config)[0]
    except CheckpointError as error:
        return str(error)


@EACH
def test_every_attribute_matters_or_is_refused_where_it_is_wrong(model_type: str) -> None:
    """An attribute that we write, with any other value: another model, or an error that names it."""
    written, _ = config_of(spec_of(EXAMPLES[model_type])[0], model_type)
    spec = spec_of(written)[0]
    idle = {"max_window_layers", "original_max_position_embeddings"}  # layer_types and rope_scaling say it
    for name in written.keys() - reading.IGNORED - idle:
        refused = 0
        for value in WRONG:
            found = outcome({**written, name: value})
            if isinstance(found, str):
                assert name in found or "no family of ours" in found
                refused += 1
            else:
                assert found != spec or value == written[name], f"{name} = {value!r} changes nothing"
        assert refused >= 4, name


@EACH
@pytest.mark.parametrize("unknown", ["logit_scale", "qk_layernorm", "alibi", "vision_config"])
def test_an_attribute_that_nobody_knows_is_refused(model_type: str, unknown: str) -> None:
    with pytest.raises(CheckpointError, match=f"not understood: {unknown} = 2"):
        spec_of({**EXAMPLES[model_type], unknown: 2})


@EACH
def test_an_attribute_that_must_be_there_is_named_where_it_is_not(model_type: str) -> None:
    required = ("vocab_size", "n_embd") if model_type == "gpt2" else ("vocab_size", "hidden_size", "num_hidden_layers")
    for name in required:
        with pytest.raises(CheckpointError, match=f"{name} = null is not int"):
            spec_of({key: value for key, value in EXAMPLES[model_type].items() if key != name})


VALUES = st.none() | FLAGS | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([LOCAL, "linear"])
KEYS = st.sampled_from(["rope_type", "type", "factor", "rope_theta", "partial_rotary_factor", LOCAL]) | st.text()
LISTS, OBJECTS = st.lists(VALUES, max_size=4), st.dictionaries(KEYS, VALUES, max_size=4)
JSON = VALUES | LISTS | OBJECTS | st.dictionaries(KEYS, LISTS | OBJECTS, max_size=2)


@EACH
@settings(max_examples=examples(50))
@given(data=st.data())
def test_any_config_gives_a_spec_or_an_error_of_ours(model_type: str, data: st.DataObject) -> None:
    written = config_of(spec_of(EXAMPLES[model_type])[0], model_type)[0]
    names = st.sampled_from([*sorted(written), "layer_types", "rope_parameters", "rope_scaling", "quantization_config"])
    changes = data.draw(st.dictionaries(names, JSON, max_size=3))
    found = outcome({**written, **changes})
    assert len(found) < 3000 if isinstance(found, str) else found.n_layers <= reading.DEEPEST


# --- the registry -----------------------------------------------------------------------------------------------------


def test_a_model_type_that_nobody_knows_is_refused_with_those_we_know() -> None:
    for config in ({}, {"model_type": None}, {"model_type": ["llama"]}):
        with pytest.raises(CheckpointError, match="names no model_type") as refused:
            spec_of(config)
        assert "gpt_neox" in str(refused.value)
    with pytest.raises(CheckpointError, match=r'no family of ours has model_type = "llama4"'):
        spec_of({"model_type": "llama4"})
    with pytest.raises(CheckpointError, match='"falcon"'):
        config_of(designs.modern(40, 32, 2, 64, 16), "falcon")


def test_every_family_has_both_ways() -> None:
    for model_type in FAMILIES:
        module = family(model_type)
        assert all(callable(getattr(module, name)) for name in ("to_spec", "to_config", "table"))


@pytest.mark.parametrize(
    ("design", "model_type", "message"),
    [
        ("nope", None, r"this model: stack\.blocks\[0\]\.mixer\.rotary = None \(there: RotarySpec\) in llama, mistral"),
        ("modern", "llama", r"llama cannot express this model: stack\.blocks\[0\]\.mixer\.qk_norm = RMSNormSpec"),
        ("modern", "gpt2", r"gpt2 cannot express this model: stack\.blocks\[0\]\.ffn = GatedFFNSpec \(there: FFNSpec"),
        ("parallel", None, r"qwen3 comes closest: stack\.blocks\[0\]\.parallel = True \(there: False\)"),
        ("lstm", None, r"stack\.blocks\[0\]\.mixer = RecurrentSpec \(there: AttentionSpec\)"),
        ("sparse", None, r"stack\.blocks\[0\]\.mixer\.mask"),
    ],
)
def test_inexpressible_field_is_named(design: str, model_type: str | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        config_of(designs.design(design)(40, 32, 3, 64, 16), model_type)


def test_a_scale_that_is_the_usual_one_is_no_difference() -> None:
    said, unsaid = (AttentionSpec(2, 2, 16, scale=scale) for scale in (0.25, None))
    assert said != unsaid
    assert same(said, unsaid)
    assert list(differences(AttentionSpec(2, 2, 16, scale=0.5), unsaid)) == ["scale = 0.5 (there: None)"]
