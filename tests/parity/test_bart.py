"""BART: ours is Hugging Face's, on random weights; and deliberately wrong models are not."""

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
    SOURCE_TIME,
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
from transformers import BartConfig, BartForConditionalGeneration

from pellucid.batch import Tokens
from pellucid.errors import CheckpointError
from pellucid.families import bart
from pellucid.families.weights import export_weights, load_weights
from pellucid.nn.models import EncoderDecoder, build_model
from pellucid.spec import PRE_NORM, REORDERED_NORM, Causal, FFNSpec, LayerNormSpec, LearnedSpec, Prefix

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
    "init_std": 0.1,
    "pad_token_id": None,  # else theirs keeps that token's gradient from its row of the embedding
    "bos_token_id": None,
    "eos_token_id": None,
    "forced_eos_token_id": None,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "scaled embedding": {"scale_embedding": True},
    "tanh gelu": {"activation_function": "gelu_new"},
    "relu, another start": {"activation_function": "relu", "decoder_start_token_id": 5},
}


def theirs(**changes: Any) -> Any:
    torch.manual_seed(0)
    return noisy(BartForConditionalGeneration(BartConfig(**{**TINY, **changes})))


@pytest.fixture(scope="module")
def hf() -> Any:
    return theirs()


@pytest.fixture
def model(hf: Any) -> EncoderDecoder:
    return ours(bart, hf)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_gradients_and_caches_agree(changes: dict[str, Any]) -> None:
    reference = theirs(**changes)
    model = ours(bart, reference)
    assert pair_gap(model, reference) <= TOLERANCE
    assert padded_pair_gap(model, reference, "right") <= TOLERANCE
    assert cached_pair_gap(model, reference) <= TOLERANCE
    assert pair_gradient_gap(bart, model, reference) <= TOLERANCE


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_exported_folder_is_the_same_model(changes: dict[str, Any], tmp_path: Path) -> None:
    model = ours(bart, theirs(**changes))
    assert pair_gap(model, reopened(model, tmp_path)) <= TOLERANCE


def test_a_model_without_a_bias_of_the_logits_is_written_too(model: EncoderDecoder, tmp_path: Path) -> None:
    """Its class has no head: their states, multiplied by the shared table, are our logits."""
    head = replace(model.spec.decoder.head, bias=False)
    bare = without(replace(model.spec, decoder=replace(model.spec.decoder, head=head)), model)
    again = reopened(bare, tmp_path)
    assert type(again).__name__ == "BartModel"
    source, ids = random_pair()
    with torch.no_grad():
        states = again(input_ids=source, decoder_input_ids=ids).last_hidden_state
        assert gap(bare(source, ids), states @ again.shared.weight.T) <= TOLERANCE


def test_greedy_text_agrees() -> None:
    reference = theirs(decoder_layers=2, init_std=0.4)  # their cache has as many layers as the encoder
    source, valid = random_pair()[0], ragged("right")
    wanted = reference.generate(source, attention_mask=valid.long(), do_sample=False, max_new_tokens=12, pad_token_id=0)
    assert len(wanted.unique()) > 4  # it says something
    assert torch.equal(greedy_pair(ours(bart, reference), source, valid, 12), wanted)


def test_activation_points_are_where_they_say(model: EncoderDecoder, hf: Any) -> None:
    gaps = inner_pair_gaps(model, hf)
    assert len(gaps) == 2 * 2 + 3 * 3 + 2
    assert max(gaps.values()) <= TOLERANCE, gaps


def test_a_left_padded_source_is_the_text_alone(model: EncoderDecoder, hf: Any) -> None:
    """Theirs counts padding as places, so the two agree only where each row is given to theirs without it."""
    source, ids = random_pair()
    valid = ragged("left")
    with torch.no_grad():
        alone = [hf(input_ids=source[i : i + 1, valid[i]], decoder_input_ids=ids[i : i + 1]).logits for i in range(3)]
        assert gap(model(source, ids, Tokens.padded(valid)), torch.cat(alone)) <= TOLERANCE
    assert padded_pair_gap(model, hf, "left") > VISIBLE


# --- controls: each is a mistake that somebody has made ---------------------------------------------------------------


def embed(spec: Any, which: str = "encoder decoder", **changes: Any) -> Any:
    return sides(spec, lambda side: replace(side, embed=replace(side.embed, **changes)), which)


def positions(spec: Any, offset: int, which: str = "encoder decoder") -> Any:
    """Another first row; the table keeps its size."""
    moved = embed(spec, which, positions=LearnedSpec(offset))
    return sides(moved, lambda side: replace(side, context=32 - offset), which)


def both_ffn(spec: Any, activation: Any) -> Any:
    half = blocks_of(spec, "encoder", ffn=FFNSpec(48, activation))
    return blocks_of(half, "decoder", ffn=FFNSpec(40, activation))


NEXT = Causal() | Prefix(1000)
WRONG: dict[str, tuple[Callable[[Any], Any], float]] = {  # each must differ by more than its floor; measured:
    "tanh GELU for exact GELU": (lambda s: both_ffn(s, "gelu_tanh"), 5 * TOLERANCE),  # 1.0e-3
    "norm before": (lambda s: blocks_of(s, placement=PRE_NORM), VISIBLE),  # 39
    "norm before in the encoder": (lambda s: blocks_of(s, "encoder", placement=PRE_NORM), VISIBLE),  # 4.9
    "norm on the branch": (lambda s: blocks_of(s, placement=REORDERED_NORM), VISIBLE),  # 20
    "positions from the first row": (lambda s: positions(s, 0), VISIBLE),  # 2.0
    "positions off by one": (lambda s: positions(s, 1), VISIBLE),  # 3.1
    "positions off by one in the decoder": (lambda s: positions(s, 1, "decoder"), VISIBLE),  # 0.87
    "embedding scaled": (lambda s: embed(s, scale=32**0.5), VISIBLE),  # 2.0
    "a decoder that sees the future": (lambda s: blocks_of(s, "decoder", mixer={"mask": NEXT}), VISIBLE),  # 0.96
    "an encoder that does not": (lambda s: blocks_of(s, "encoder", mixer={"mask": Causal()}), VISIBLE),  # 3.4
    "another eps": (lambda s: blocks_of(s, norm=LayerNormSpec(eps=1e-3)), 5 * TOLERANCE),  # 1.8e-3
    "scores not scaled": (lambda s: blocks_of(s, mixer={"scale": 1.0}), VISIBLE),  # 1.7
}


@pytest.mark.parametrize(("change", "floor"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_model_is_seen(model: EncoderDecoder, hf: Any, change: Callable[[Any], Any], floor: float) -> None:
    assert pair_gap(forced(change(model.spec), model), hf) > floor


LEFT_OUT: dict[str, Callable[[Any], Any]] = {  # measured:
    "no norm of the embedding": lambda s: embed(s, norm=None),  # 3.5
    "memory of embeddings without their norm": lambda s: embed(s, "encoder", norm=None),  # 3.3
    "no bias of the logits": lambda s: sides(
        s, lambda d: replace(d, head=replace(d.head, bias=False)), "decoder"
    ),  # 0.43
    "no positions in the encoder": lambda s: embed(s, "encoder", positions=None),  # 2.4
}


@pytest.mark.parametrize("change", LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_control_left_out_part_is_seen(model: EncoderDecoder, hf: Any, change: Callable[[Any], Any]) -> None:
    assert pair_gap(without(change(model.spec), model), hf) > VISIBLE


def test_padding_that_is_not_masked_is_seen(model: EncoderDecoder, hf: Any) -> None:
    assert padded_pair_gap(model, hf, "right", Tokens.plain(3, SOURCE_TIME)) > VISIBLE


def test_sides_that_are_confused_are_seen(model: EncoderDecoder, hf: Any) -> None:
    """Each side has its own positions and its own norm of the embedding; only the vectors of tokens are shared."""
    for part in ("positions.weight", "norm.weight", "norm.bias"):
        wrong, weights = forced(model.spec, model), model.state_dict()
        wrong.load_state_dict({**weights, f"decoder.embed.{part}": weights[f"encoder.embed.{part}"]})
        assert pair_gap(wrong, hf) > VISIBLE


# --- the table is strict ----------------------------------------------------------------------------------------------


def test_weights_come_back_exactly(model: EncoderDecoder, hf: Any) -> None:
    exported, weights = export_weights(model, bart.TABLE), hf.state_dict()
    copies = {"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"}
    assert weights.keys() - exported.keys() == copies
    assert exported["final_logits_bias"].shape == (1, VOCAB)
    assert all(torch.equal(exported[name], weights[name]) for name in exported)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("final_logits_bias"), "lacks final_logits_bias"),
        (lambda w: w.update({"final_logits_bias": torch.ones(VOCAB)}), r"final_logits_bias has the shape \(61,\)"),
        (lambda w: w.update({"model.encoder.layer_norm.weight": torch.ones(32)}), "no place for model.encoder.layer_n"),
        (
            lambda w: w.update({"model.encoder.layers.2.fc1.bias": torch.ones(48)}),
            "no place for model.encoder.layers.2",
        ),
        (lambda w: w.update({"lm_head.weight": torch.ones(VOCAB, 32)}), "lm_head.weight differs from model.shared"),
        (lambda w: w.update({"model.encoder.embed_positions.weight": torch.ones(30, 32)}), r"has the shape \(30, 32\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    model: EncoderDecoder, hf: Any, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    weights = dict(hf.state_dict())
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, weights, bart.TABLE)


def test_files_of_the_bare_model_lack_the_bias_alone(model: EncoderDecoder, hf: Any) -> None:
    bare: dict[str, Any] = dict(hf.model.state_dict())
    fresh: Any = build_model(model.spec)
    with pytest.raises(CheckpointError, match="the checkpoint lacks final_logits_bias"):
        load_weights(fresh, bare, bart.TABLE)
    load_weights(fresh, {**bare, "final_logits_bias": hf.final_logits_bias}, bart.TABLE)
    assert pair_gap(fresh.eval(), hf) <= TOLERANCE


# --- the config is understood, or refused by name ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_decoder": True}, "is_decoder = true"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder = false"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = false"),
        ({"normalize_before": True}, "normalize_before = true"),
        ({"add_final_layer_norm": True}, "add_final_layer_norm = true"),
        ({"static_position_embeddings": True}, "static_position_embeddings = true"),
        ({"activation_function": "quick_gelu"}, 'activation_function = "quick_gelu"'),
        ({"decoder_attention_heads": 5}, "decoder_attention_heads = 5 does not divide d_model = 32"),
        ({"encoder_layers": "2"}, 'encoder_layers = "2" is not int'),
        ({"model_type": "mbart"}, 'model_type = "mbart"'),
    ],
)
def test_a_config_that_is_not_understood_is_refused(hf: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        bart.to_spec({**config_json(hf), **changes})


PUBLISHED = """{"activation_dropout": 0.1, "activation_function": "gelu", "add_bias_logits": false,
    "add_final_layer_norm": false, "architectures": ["BartModel"], "attention_dropout": 0.1, "bos_token_id": 0,
    "classif_dropout": 0.1, "classifier_dropout": 0.0, "d_model": 768, "decoder_attention_heads": 12,
    "decoder_ffn_dim": 3072, "decoder_layerdrop": 0.0, "decoder_layers": 6, "decoder_start_token_id": 2, "dropout": 0.1,
    "early_stopping": true, "encoder_attention_heads": 12, "encoder_ffn_dim": 3072, "encoder_layerdrop": 0.0,
    "encoder_layers": 6, "eos_token_id": 2, "forced_bos_token_id": 0, "forced_eos_token_id": 2,
    "gradient_checkpointing": false, "init_std": 0.02, "is_encoder_decoder": true, "max_position_embeddings": 1024,
    "model_type": "bart", "no_repeat_ngram_size": 3, "normalize_before": false, "normalize_embedding": true,
    "num_beams": 4, "num_hidden_layers": 6, "pad_token_id": 1, "scale_embedding": false, "use_cache": true,
    "vocab_size": 50265}"""


def test_a_published_config_is_understood() -> None:
    spec = bart.to_spec(json.loads(PUBLISHED))
    assert (spec.encoder.n_layers, spec.decoder.n_layers, spec.d_model, spec.start_id) == (6, 6, 768, 2)
    assert spec.encoder.embed == spec.decoder.embed
    assert spec.encoder.embed.positions == LearnedSpec(offset=2)
    assert spec.shared_embedding and spec.decoder.head.tied
    assert not spec.decoder.head.bias  # of BartModel; a file of the other class has one
    assert bart.to_spec(json.loads(PUBLISHED), "BartForConditionalGeneration").decoder.head.bias
