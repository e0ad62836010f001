"""Configs of encoders and encoder–decoders, there and back: what a family can say, it says so that it is read again."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import classifiers, encoder_decoder_specs, encoder_specs, image_specs, masks, poolers, taggers

from pellucid.errors import CheckpointError
from pellucid.families.registry import config_of, spec_of
from pellucid.families.table import plan
from pellucid.families.weights import export_weights, load_weights
from pellucid.nn.models import build_model

few = settings(max_examples=examples(12))
eps = st.sampled_from([1e-12, 1e-5, 1e-3])
activations = st.sampled_from(["gelu", "gelu_new", "relu", "silu", "swish", "gelu_pytorch_tanh"])
some = st.integers(1, 3)
heads = st.sampled_from(["Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"])


def text(model_type: str, prefix: str, **more: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Configs of an encoder of texts."""
    sizes = {
        "model_type": st.just(model_type),
        "architectures": heads.map(lambda head: [prefix + head]),
        "hidden_size": st.sampled_from([8, 16]),
        "num_attention_heads": st.sampled_from([1, 2, 4]),
        "num_hidden_layers": some,
        "intermediate_size": st.just(12),
        "hidden_act": activations,
        "layer_norm_eps": eps,
        "vocab_size": st.just(11),
        "max_position_embeddings": st.just(24),
        "type_vocab_size": some,
        "id2label": st.integers(2, 4).map(lambda n: {str(i): f"class {i}" for i in range(n)}),
    }
    return st.fixed_dictionaries({**sizes, **more})


def pair(model_type: str, name: str, **more: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Configs of an encoder–decoder of the second kind."""
    sides = {f"{side}_{size}": some for side in ("encoder", "decoder") for size in ("layers", "ffn_dim")}
    counts = {f"{side}_attention_heads": st.sampled_from([1, 2, 4]) for side in ("encoder", "decoder")}
    sizes = {
        "model_type": st.just(model_type),
        "architectures": st.just([name]),
        "is_encoder_decoder": st.just(True),
        "d_model": st.just(8),
        "vocab_size": st.just(11),
        "max_position_embeddings": st.just(24),
        "activation_function": activations,
        "scale_embedding": st.booleans(),
        "decoder_start_token_id": st.integers(0, 10),
    }
    return st.fixed_dictionaries({**sizes, **sides, **counts, **more})


CONFIGS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "bert": text("bert", "Bert"),
    "roberta": text("roberta", "Roberta", pad_token_id=st.integers(0, 3)),
    "albert": text(
        "albert", "Albert", embedding_size=st.sampled_from([4, 8]), num_hidden_groups=st.just(1), inner_group_num=some
    ),
    "vit": st.fixed_dictionaries(
        {
            "model_type": st.just("vit"),
            "architectures": st.sampled_from([["ViTModel"], ["ViTForImageClassification"]]),
            "hidden_size": st.just(8),
            "num_attention_heads": st.sampled_from([1, 2]),
            "num_hidden_layers": some,
            "intermediate_size": st.just(12),
            "hidden_act": activations,
            "layer_norm_eps": eps,
            "image_size": st.sampled_from([4, [4, 6], 8]),
            "patch_size": st.sampled_from([1, 2]),
            "num_channels": some,
            "qkv_bias": st.booleans(),
        }
    ),
    "t5": st.fixed_dictionaries(
        {
            "model_type": st.just("t5"),
            "is_encoder_decoder": st.just(True),
            "d_model": st.just(8),
            "d_kv": st.sampled_from([3, 4]),
            "d_ff": st.just(12),
            "num_heads": some,
            "num_layers": some,
            "num_decoder_layers": some | st.none(),
            "vocab_size": st.just(11),
            "layer_norm_epsilon": eps,
            "feed_forward_proj": st.sampled_from(["relu", "gelu", "gelu_new", "gated-gelu", "gated-silu"]),
            "tie_word_embeddings": st.booleans(),
            "relative_attention_num_buckets": st.sampled_from([8, 32]),
            "decoder_start_token_id": st.integers(0, 10),
        }
    ),
    "bart": pair("bart", "BartForConditionalGeneration"),
    "marian": pair("marian", "MarianMTModel", share_encoder_decoder_embeddings=st.booleans()),
}


@pytest.mark.parametrize("name", CONFIGS)
@given(data=st.data())
@few
def test_a_config_is_read_as_it_was_written(name: str, data: st.DataObject) -> None:
    config = data.draw(CONFIGS[name])
    spec, table = spec_of(config)
    written, same_table = config_of(spec, name)
    assert json.loads(json.dumps(written)) == written and written["model_type"] == name
    assert spec_of(written)[0] == spec
    model = build_model(spec)
    ours = {name: weight.shape for name, weight in model.named_parameters()}
    theirs = export_weights(model, same_table)
    assert sum(weight.numel() for weight in theirs.values()) == model.n_parameters
    plan({name: weight.shape for name, weight in theirs.items()}, ours, table)  # every weight has its place
    load_weights(model, theirs, table)


any_head = st.one_of(poolers, classifiers, taggers, st.none())


@given(st.one_of(encoder_specs(masks, any_head), image_specs(any_head), encoder_decoder_specs()))
@few
def test_encoders_that_no_family_expresses_are_refused_by_name(spec: Any) -> None:
    try:
        config, _ = config_of(spec)
    except CheckpointError as error:
        refused = error
    else:
        assert spec_of(config)[0] == spec
        return
    named = r"no published family can express this model(; \w+ comes closest)?: .*(=|has|there)"
    assert re.match(named, refused.problem) and "pellucid's own format" in refused.remedy
