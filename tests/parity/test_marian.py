"""Marian: ours is Hugging Face's, on random weights; and deliberately wrong models are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from against_encoders import reopened
from against_hf import TOLERANCE, VISIBLE, VOCAB, config_json, forced, gap, noisy, ours, without
from against_pairs import (
    blocks_of,
    cached_pair_gap,
    greedy_pair,
    inner_pair_gaps,
    padded_pair_gap,
    pair_gap,
    pair_gradient_gap,
    ragged,
    random_pair,
    sides,
)
from transformers import MarianConfig, MarianMTModel

from pellucid.batch import Tokens
from pellucid.errors import CheckpointError
from pellucid.families import marian
from pellucid.families.weights import export_weights, load_weights
from pellucid.nn.models import EncoderDecoder
from pellucid.nn.positions import Sinusoidal
from pellucid.spec import PRE_NORM, FFNSpec, LearnedSpec, SinusoidalSpec

TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 30,
    "activation_function": "swish",
    "scale_embedding": True,
    "init_std": 0.1,
    "decoder_start_token_id": VOCAB - 1,
    "pad_token_id": None,  # else theirs keeps that token's gradient from its row of the embedding
    "eos_token_id": None,
    "forced_eos_token_id": None,
}
APART: dict[str, Any] = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": VOCAB}
VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "gelu, not scaled": {"activation_function": "gelu", "scale_embedding": False},
    "relu, another start": {"activation_function": "relu", "decoder_start_token_id": 5},
    "each side its own vectors": APART,
}
SINES = {f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")}


def theirs(**changes: Any) -> Any:
    torch.manual_seed(0)
    reference = MarianMTModel(MarianConfig(**{**TINY, **changes}))
    sines = reference.model.encoder.embed_positions.weight.detach().clone()
    reference = noisy(reference)
    for side in (reference.model.encoder, reference.model.decoder):
        del side.embed_positions.weight
        side.embed_positions.register_buffer("weight", sines)  # they are fixed, and nothing learns them
    return reference


@pytest.fixture(scope="module")
def hf() -> Any:
    return theirs()


@pytest.fixture
def model(hf: Any) -> EncoderDecoder:
    return ours(marian, hf)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_model_equals_transformers_both_ways(changes: dict[str, Any], tmp_path: Path) -> None:
    reference = theirs(**changes)
    model = ours(marian, reference)
    assert pair_gap(model, reference) <= TOLERANCE
    assert padded_pair_gap(model, reference, "right") <= TOLERANCE
    assert cached_pair_gap(model, reference) <= TOLERANCE
    assert pair_gap(model, reopened(model, tmp_path)) <= TOLERANCE


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_gradients_agree(changes: dict[str, Any]) -> None:
    reference = theirs(**changes)
    model = ours(marian, reference)
    assert pair_gradient_gap(marian, model, reference) <= TOLERANCE


def test_greedy_text_agrees() -> None:
    # their cache has as many layers as the encoder
    reference = theirs(decoder_layers=2, scale_embedding=False)
    for bias in (reference.final_logits_bias, reference.model.decoder.layers[-1].final_layer_norm.bias):
        bias.data.zero_()  # else one token is always the likeliest
    source, valid = random_pair()[0], ragged("right")
    wanted = reference.generate(
        source, attention_mask=valid.long(), do_sample=False, num_beams=1, max_new_tokens=12, pad_token_id=0
    )
    assert len(wanted.unique()) > 4  # it says something
    assert torch.equal(greedy_pair(ours(marian, reference), source, valid, 12), wanted)


def test_activation_points_are_where_they_say(model: EncoderDecoder, hf: Any) -> None:
    gaps = inner_pair_gaps(model, hf)
    assert len(gaps) == 2 * 2 + 3 * 3 + 2
    assert max(gaps.values()) <= TOLERANCE, gaps


def test_sides_with_other_vocabularies() -> None:
    """Theirs ends its logits with the encoder's vocabulary unless told, so its own states are compared."""
    reference = theirs(share_encoder_decoder_embeddings=False, decoder_vocab_size=VOCAB + 6)
    model = ours(marian, reference)
    assert (model.spec.encoder.vocab_size, model.spec.vocab_size) == (VOCAB, VOCAB + 6)
    assert pair_gap(model, reference) <= TOLERANCE


@pytest.mark.parametrize("place", [0, 1, 100, 511])
def test_sines_are_theirs_far_into_a_text(place: int) -> None:
    settings: dict[str, Any] = {**TINY, "max_position_embeddings": 512, "d_model": 64}
    config = MarianConfig(**settings)
    table: Any = MarianMTModel(config).model.encoder.embed_positions.create_weight()
    made = Sinusoidal(64, halves=True)(Tokens.plain(1, 1, place))[0, 0]
    assert gap(made.float(), table[place]) <= 1e-6
    assert gap(Sinusoidal(64)(Tokens.plain(1, 1, place))[0, 0].float(), table[place]) > VISIBLE


# --- controls: each is a mistake that somebody has made ---------------------------------------------------------------


def embed(spec: Any, which: str = "encoder decoder", **changes: Any) -> Any:
    return sides(spec, lambda side: replace(side, embed=replace(side.embed, **changes)), which)


def both_ffn(spec: Any, activation: Any) -> Any:
    half = blocks_of(spec, "encoder", ffn=FFNSpec(48, activation))
    return blocks_of(half, "decoder", ffn=FFNSpec(40, activation))


WRONG: dict[str, Callable[[Any], Any]] = {
    "sines beside cosines": lambda s: embed(s, positions=SinusoidalSpec()),
    "sines beside cosines in the decoder": lambda s: embed(s, "decoder", positions=SinusoidalSpec()),
    "no positions": lambda s: embed(s, positions=None),
    "embedding not scaled": lambda s: embed(s, scale=1.0),
    "embedding not scaled in the decoder": lambda s: embed(s, "decoder", scale=1.0),
    "GELU for SiLU": lambda s: both_ffn(s, "gelu"),
    "norm before": lambda s: blocks_of(s, placement=PRE_NORM),
    "scores not scaled": lambda s: blocks_of(s, mixer={"scale": 1.0}),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_model_is_seen(model: EncoderDecoder, hf: Any, change: Callable[[Any], Any]) -> None:
    assert pair_gap(forced(change(model.spec), model), hf) > VISIBLE


def test_a_forgotten_bias_of_the_logits_is_seen(model: EncoderDecoder, hf: Any) -> None:
    bare = sides(model.spec, lambda d: replace(d, head=replace(d.head, bias=False)), "decoder")
    assert pair_gap(without(bare, model), hf) > VISIBLE


def test_vectors_of_the_other_side_are_seen() -> None:
    reference = theirs(**APART)
    right = ours(marian, reference)
    wrong = forced(right.spec, right)
    wrong.decoder.embed.tokens.weight.data.copy_(wrong.encoder.embed.tokens.weight)
    assert pair_gap(right, reference) <= TOLERANCE
    assert pair_gap(wrong, reference) > VISIBLE


# --- the table is strict ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, APART], ids=["shared", "apart"])
def test_weights_come_back_exactly(changes: dict[str, Any]) -> None:
    reference = theirs(**changes)
    model = ours(marian, reference)
    exported, weights = export_weights(model, marian.table(model.spec)), reference.state_dict()
    copies = {"lm_head.weight"}
    copies |= set() if changes else {"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"}
    assert weights.keys() - exported.keys() == copies | SINES
    assert all(torch.equal(exported[name], weights[name]) for name in exported)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("final_logits_bias"), "lacks final_logits_bias"),
        (lambda w: w.update({"model.encoder.layernorm_embedding.bias": torch.ones(32)}), "no place for model.encoder."),
        (lambda w: w.update({"lm_head.weight": torch.ones(VOCAB, 32)}), "lm_head.weight differs from model.shared"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    model: EncoderDecoder, hf: Any, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    weights = dict(hf.state_dict())
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, weights, marian.table(model.spec))


# --- the config is understood, or refused by name ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_decoder": True}, "is_decoder = true"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = false"),
        ({"normalize_before": True}, "normalize_before = true"),
        ({"normalize_embedding": True}, "normalize_embedding = true"),
        ({"static_position_embeddings": False}, "static_position_embeddings = false"),
        ({"activation_function": "quick_gelu"}, 'activation_function = "quick_gelu"'),
        ({"decoder_attention_heads": 5}, "decoder_attention_heads = 5 does not divide d_model = 32"),
        ({"architectures": ["MarianForCausalLM"]}, "MarianForCausalLM"),
        ({"model_type": "bart"}, 'model_type = "bart"'),
    ],
)
def test_a_config_that_is_not_understood_is_refused(hf: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        marian.to_spec({**config_json(hf), **changes})


PUBLISHED = """{"_num_labels": 3, "activation_dropout": 0.0, "activation_function": "swish", "add_bias_logits": false,
    "add_final_layer_norm": false, "architectures": ["MarianMTModel"], "attention_dropout": 0.0, "bad_words_ids":
    [[58100]], "bos_token_id": 0, "classif_dropout": 0.0, "classifier_dropout": 0.0, "d_model": 512,
    "decoder_attention_heads": 8, "decoder_ffn_dim": 2048, "decoder_layerdrop": 0.0, "decoder_layers": 6,
    "decoder_start_token_id": 58100, "decoder_vocab_size": 58101, "dropout": 0.1, "encoder_attention_heads": 8,
    "encoder_ffn_dim": 2048, "encoder_layerdrop": 0.0, "encoder_layers": 6, "eos_token_id": 0, "extra_pos_embeddings":
    58101, "forced_eos_token_id": 0, "init_std": 0.02, "is_encoder_decoder": true, "max_length": 512,
    "max_position_embeddings": 512, "model_type": "marian", "normalize_before": false, "normalize_embedding": false,
    "num_beams": 6, "num_hidden_layers": 6, "pad_token_id": 58100, "scale_embedding": true,
    "share_encoder_decoder_embeddings": true, "static_position_embeddings": true, "use_cache": true,
    "vocab_size": 58101}"""


def test_a_published_config_is_understood() -> None:
    spec = marian.to_spec(json.loads(PUBLISHED))
    assert (spec.encoder.n_layers, spec.decoder.n_layers, spec.d_model, spec.start_id) == (6, 6, 512, 58100)
    assert spec.encoder.embed.positions == SinusoidalSpec("halves")
    assert spec.encoder.embed.positions != LearnedSpec() and spec.encoder.embed.scale == 512**0.5
    assert spec.shared_embedding and spec.decoder.head.tied and spec.decoder.head.bias
