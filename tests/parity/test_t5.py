"""T5 1.0 and 1.1: ours is Hugging Face's, on random weights; and deliberately wrong models are not."""

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
from torch import nn
from transformers import MT5Config, MT5ForConditionalGeneration, T5Config, T5ForConditionalGeneration

import pellucid
from pellucid.batch import Tokens
from pellucid.errors import CheckpointError
from pellucid.families import t5
from pellucid.families.registry import spec_of
from pellucid.families.weights import export_weights, load_weights
from pellucid.nn.models import EncoderDecoder, build_model
from pellucid.spec import (
    REORDERED_NORM,
    Causal,
    FFNSpec,
    Full,
    GatedFFNSpec,
    LMHeadSpec,
    Prefix,
    RMSNormSpec,
)

TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "d_kv": 12,  # 4 heads of 12 are more than 32
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,  # so few that all of them are used, the last one too
    "relative_attention_max_distance": 12,
    "layer_norm_epsilon": 1e-2,  # far from the usual, so that one who forgets it is seen
    "decoder_start_token_id": 0,
    "initializer_factor": 0.3,  # else numbers of 20 and more, and their rounding
}
GATED: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "1.0": {},
    "1.1": GATED,
    "usual buckets": {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
    "gated, silu": {"feed_forward_proj": "gated-silu"},
    "exact gelu": {"feed_forward_proj": "gelu"},
    "as deep": {"num_decoder_layers": None},
}


def theirs(**changes: Any) -> Any:
    torch.manual_seed(0)
    reference = T5ForConditionalGeneration(T5Config(**{**TINY, **changes}))
    if (
        changes.get("tie_word_embeddings") is False
    ):  # their newest release ties all, until it reads a file that does not
        reference.lm_head.weight = nn.Parameter(reference.lm_head.weight.detach().clone())
        reference.config.tie_word_embeddings = False
    return noisy(reference)


@pytest.fixture(scope="module")
def hf() -> Any:
    return theirs()


@pytest.fixture(scope="module")
def gated_hf() -> Any:
    return theirs(**GATED)


@pytest.fixture
def model(hf: Any) -> EncoderDecoder:
    return ours(t5, hf)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_gradients_and_caches_agree(changes: dict[str, Any]) -> None:
    reference = theirs(**changes)
    model = ours(t5, reference)
    assert pair_gap(model, reference) <= TOLERANCE
    assert cached_pair_gap(model, reference) <= TOLERANCE
    assert pair_gradient_gap(t5, model, reference) <= TOLERANCE


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_exported_folder_is_the_same_model(changes: dict[str, Any], tmp_path: Path) -> None:
    model = ours(t5, theirs(**changes))
    tied = model.spec.decoder.head.tied  # in memory, theirs says that all are
    assert pair_gap(model, reopened(model, tmp_path, same_config=tied)) <= TOLERANCE


@pytest.mark.parametrize(
    ("config", "library"), [(T5Config, T5ForConditionalGeneration), (MT5Config, MT5ForConditionalGeneration)]
)
def test_a_head_of_its_own_is_kept_as_the_newest_release_saves_it(config: Any, library: Any, tmp_path: Path) -> None:
    """Of every T5 its config then says that it is tied; where nothing is scaled, two tables in the file say more."""
    torch.manual_seed(0)
    reference = library(config(**{**TINY, **GATED}))
    reference.lm_head.weight = nn.Parameter(torch.randn(VOCAB, 32))
    noisy(reference).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True
    model: Any = pellucid.load(tmp_path)
    assert model.spec.decoder.head == LMHeadSpec(tied=False, scale=1.0)
    assert pair_gap(model, reference) <= TOLERANCE


def test_scaled_head_that_differs_from_its_table_is_kept_and_scaled(tmp_path: Path) -> None:
    reference = theirs()
    reference.lm_head.weight = nn.Parameter(torch.randn(VOCAB, 32))
    reference.save_pretrained(tmp_path)
    model: Any = pellucid.load(tmp_path)
    assert model.spec.decoder.head == LMHeadSpec(tied=False, scale=32**-0.5)
    assert pair_gap(model, reference) <= TOLERANCE


def test_a_multilingual_one_differs_by_name_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = noisy(MT5ForConditionalGeneration(MT5Config(**{**TINY, **GATED})))
    config = {**config_json(reference), "tie_word_embeddings": True}  # in memory theirs is tied, whatever it says
    spec, table = spec_of(config)
    assert spec == t5.to_spec(config)
    model: Any = build_model(spec)
    load_weights(model, reference.state_dict(), table)
    assert pair_gap(model.eval(), reference) <= TOLERANCE
    assert pair_gap(model, reopened(model, tmp_path)) <= TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_sources_agree(model: EncoderDecoder, hf: Any, side: str) -> None:
    assert padded_pair_gap(model, hf, side) <= TOLERANCE


def test_greedy_text_agrees() -> None:
    reference = theirs(num_decoder_layers=2, **GATED)  # their cache has as many layers as the encoder
    source, valid = random_pair()[0], ragged("right")
    reference.generation_config.eos_token_id = None
    wanted = reference.generate(source, attention_mask=valid.long(), do_sample=False, max_new_tokens=12)
    assert len(wanted.unique()) > 4  # it says something
    assert torch.equal(greedy_pair(ours(t5, reference), source, valid, 12), wanted)


@pytest.mark.parametrize("changes", [{}, GATED])
def test_activation_points_are_where_they_say(changes: dict[str, Any]) -> None:
    reference = theirs(**changes)
    gaps = inner_pair_gaps(ours(t5, reference), reference)
    assert len(gaps) == 2 * 2 + 3 * 3 + 2
    assert max(gaps.values()) <= TOLERANCE, gaps


# --- controls: each is a mistake that somebody has made ---------------------------------------------------------------


def head(spec: Any, **changes: Any) -> Any:
    return sides(spec, lambda side: replace(side, head=replace(side.head, **changes)), "decoder")


def cross(spec: Any, **changes: Any) -> Any:
    attention = spec.decoder.stack.blocks[0].cross
    return blocks_of(spec, "decoder", cross=replace(attention, **changes))


def stack(spec: Any, which: str, **changes: Any) -> Any:
    return sides(spec, lambda side: replace(side, stack=replace(side.stack, **changes)), which)


def buckets(spec: Any, which: str, **changes: Any) -> Any:
    bias = getattr(spec, which).stack.bias
    return stack(spec, which, bias=replace(bias, **changes))


NEXT = Causal() | Prefix(1000)
USUAL = RMSNormSpec()
WRONG: dict[str, Callable[[Any], Any]] = {  # measured:
    "scores scaled": lambda s: blocks_of(s, mixer={"scale": None}),  # 0.067
    "scores of the encoder scaled": lambda s: blocks_of(s, "encoder", mixer={"scale": None}),  # 0.047
    "cross scores scaled": lambda s: cross(s, scale=None),  # 0.098
    "logits not scaled": lambda s: head(s, scale=1.0),  # 2.5
    "one-directional buckets in the encoder": lambda s: buckets(s, "encoder", both_directions=False),  # 0.020
    "buckets for both directions in the decoder": lambda s: buckets(s, "decoder", both_directions=True),  # 0.030
    "another farthest distance": lambda s: buckets(s, "encoder", max_distance=128),  # 8.4e-3
    "another farthest distance in the decoder": lambda s: buckets(s, "decoder", max_distance=128),  # 0.030
    "a decoder that sees the future": lambda s: blocks_of(s, "decoder", mixer={"mask": NEXT}),  # 0.18
    "an encoder that does not": lambda s: blocks_of(s, "encoder", mixer={"mask": Causal()}),  # 0.34
    "norm after the branch": lambda s: blocks_of(s, placement=REORDERED_NORM),  # 0.36
    "GELU for ReLU": lambda s: blocks_of(s, ffn=FFNSpec(48, "gelu", bias=False)),  # 0.29
    "default eps": lambda s: blocks_of(s, norm=USUAL),  # 0.012
    "default eps at the end": lambda s: stack(s, "encoder decoder", final_norm=USUAL),  # 4.9e-3
    "gain 1 + weight": lambda s: blocks_of(s, norm=RMSNormSpec(1e-2, offset=1.0)),  # 0.59
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_model_is_seen(model: EncoderDecoder, hf: Any, change: Callable[[Any], Any]) -> None:
    assert pair_gap(forced(change(model.spec), model), hf) > VISIBLE


LEFT_OUT: dict[str, Callable[[Any], Any]] = {  # measured:
    "no buckets in the encoder": lambda s: stack(s, "encoder", bias=None),  # 0.011
    "no buckets in the decoder": lambda s: stack(s, "decoder", bias=None),  # 0.041
    "memory without its norm": lambda s: stack(s, "encoder", final_norm=None),  # 0.30
    "decoder without its last norm": lambda s: stack(s, "decoder", final_norm=None),  # 1.7
}


@pytest.mark.parametrize("change", LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_control_left_out_part_is_seen(model: EncoderDecoder, hf: Any, change: Callable[[Any], Any]) -> None:
    assert pair_gap(without(change(model.spec), model), hf) > VISIBLE


def test_exact_gelu_for_tanh_gelu_is_seen(gated_hf: Any) -> None:
    right = ours(t5, gated_hf)
    wrong = forced(blocks_of(right.spec, ffn=GatedFFNSpec(48, "gelu")), right)
    assert pair_gap(right, gated_hf) <= TOLERANCE
    assert pair_gap(wrong, gated_hf) > 5 * TOLERANCE


def test_a_head_that_is_tied_or_scaled_in_the_wrong_version_is_seen(gated_hf: Any) -> None:
    right = ours(t5, gated_hf)
    assert right.spec.decoder.head == LMHeadSpec(tied=False, scale=1.0)
    assert pair_gap(without(head(right.spec, tied=True), right), gated_hf) > VISIBLE
    assert pair_gap(forced(head(right.spec, scale=32**-0.5), right), gated_hf) > VISIBLE


def test_gate_and_up_swapped_is_seen(gated_hf: Any) -> None:
    wrong, weights = ours(t5, gated_hf), dict(gated_hf.state_dict())
    first = "encoder.block.1.layer.1.DenseReluDense.wi_0.weight"
    second = first.replace("wi_0", "wi_1")
    weights[first], weights[second] = weights[second], weights[first]
    load_weights(wrong, weights, t5.table(wrong.spec))
    assert pair_gap(wrong, gated_hf) > VISIBLE


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_that_is_not_masked_is_seen(model: EncoderDecoder, hf: Any, side: str) -> None:
    assert padded_pair_gap(model, hf, side, Tokens.plain(3, SOURCE_TIME)) > VISIBLE


def test_padding_that_only_the_decoder_ignores_is_seen(model: EncoderDecoder, hf: Any) -> None:
    source, ids = random_pair()
    valid = ragged("right")
    padded = Tokens.padded(valid)
    with torch.no_grad():
        want = hf(input_ids=source, attention_mask=valid.long(), decoder_input_ids=ids).logits
        careless = replace(model.encode(source), tokens=padded)
        assert gap(model.decoder(ids, memory=model.encode(source, padded)), want) <= TOLERANCE
        assert gap(model.decoder(ids, memory=careless), want) > VISIBLE
        careless = replace(model.encode(source, padded), tokens=Tokens.plain(3, SOURCE_TIME))
        assert gap(model.decoder(ids, memory=careless), want) > VISIBLE


# --- the table is strict ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, GATED])
def test_weights_come_back_exactly(changes: dict[str, Any]) -> None:
    reference = theirs(**changes)
    model = ours(t5, reference)
    exported, weights = export_weights(model, t5.table(model.spec)), reference.state_dict()
    copies = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    assert weights.keys() - exported.keys() == copies | (set() if changes else {"lm_head.weight"})
    assert all(torch.equal(exported[name], weights[name]) for name in exported)


def test_keys_that_no_reader_uses_are_ignored_by_name(model: EncoderDecoder, hf: Any) -> None:
    weights = dict(hf.state_dict())
    weights["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(8, 4)
    load_weights(model, weights, t5.table(model.spec))
    weights["decoder.block.1.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(8, 4)
    with pytest.raises(CheckpointError, match=r"no place for decoder\.block\.1\..*relative_attention_bias"):
        load_weights(model, weights, t5.table(model.spec))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("encoder.final_layer_norm.weight"), "lacks encoder.final_layer_norm.weight"),
        (lambda w: w.update({"encoder.block.2.layer.0.layer_norm.weight": torch.ones(32)}), "no place for encoder"),
        (lambda w: w.update({"lm_head.weight": torch.ones(VOCAB, 32)}), "lm_head.weight differs from shared.weight"),
        (lambda w: w.update({"decoder.embed_tokens.weight": torch.ones(VOCAB, 32)}), "decoder.embed_tokens.weight dif"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    model: EncoderDecoder, hf: Any, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    weights = dict(hf.state_dict())
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, weights, t5.table(model.spec))


def test_a_gate_is_no_plain_layer(model: EncoderDecoder, hf: Any, gated_hf: Any) -> None:
    with pytest.raises(CheckpointError, match=r"DenseReluDense\.wi_0\.weight"):
        load_weights(build_model(t5.to_spec(config_json(gated_hf))), hf.state_dict(), t5.GATED)
    with pytest.raises(CheckpointError, match=r"do not fit: .*ffn\.gate\.weight"):
        load_weights(build_model(t5.to_spec(config_json(gated_hf))), gated_hf.state_dict(), t5.PLAIN)


# --- the config is understood, or refused by name ---------------------------------------------------------------------


def head_of(config: dict[str, Any]) -> Any:
    return t5.to_spec(config).decoder.head


def test_files_of_every_age_say_how_the_head_is_scaled(hf: Any) -> None:
    new = config_json(hf)
    old = {name: value for name, value in new.items() if name not in ("scale_decoder_outputs", "tie_word_embeddings")}
    scaled = LMHeadSpec(tied=True, scale=32**-0.5)
    assert head_of(new) == head_of(old) == head_of({**old, "tie_word_embeddings": True}) == scaled
    assert head_of({**old, "tie_word_embeddings": False}) == LMHeadSpec(tied=False, scale=1.0)
    assert head_of({**new, "scale_decoder_outputs": False}) == LMHeadSpec(tied=True, scale=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_decoder": True}, "is_decoder = true"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder = false"),
        ({"feed_forward_proj": "gated-quick"}, 'feed_forward_proj = "gated-quick"'),
        ({"feed_forward_proj": "relu", "is_gated_act": True}, "is_gated_act = true"),
        ({"dense_act_fn": "gelu"}, 'dense_act_fn = "gelu"'),
        ({"num_heads": None}, "num_heads = null is not int"),
        ({"rope_theta": 5.0}, "rope_theta = 5"),
        ({"model_type": "umt5"}, 'model_type = "umt5"'),
    ],
)
def test_a_config_that_is_not_understood_is_refused(hf: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        t5.to_spec({**config_json(hf), **changes})


PUBLISHED = """{"architectures": ["T5ForConditionalGeneration"], "d_ff": 1024, "d_kv": 64, "d_model": 512,
    "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0, "is_encoder_decoder": true, "layer_norm_epsilon": 1e-06, "model_type": "t5",
    "num_decoder_layers": 8, "num_heads": 6, "num_layers": 8, "output_past": true, "pad_token_id": 0,
    "relative_attention_num_buckets": 32, "tie_word_embeddings": false, "vocab_size": 32128}"""


def test_a_published_config_is_understood() -> None:
    spec = t5.to_spec(json.loads(PUBLISHED))
    assert (spec.encoder.n_layers, spec.decoder.n_layers, spec.d_model, spec.start_id) == (8, 8, 512, 0)
    assert spec.decoder.stack.blocks[0].ffn == GatedFFNSpec(1024, "gelu_tanh")
    assert not spec.decoder.head.tied
    assert spec.encoder.stack.blocks[0].mixer == replace(spec.decoder.stack.blocks[0].mixer, mask=Full())
