"""BERT under each of its heads: ours is Hugging Face's, on random weights; and deliberately wrong models are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from against_encoders import (
    TYPES,
    answer,
    head_gap,
    head_gradient_gap,
    padded_head_gap,
    reopened,
    with_head,
)
from against_hf import (
    BATCH,
    TIME,
    TOLERANCE,
    VISIBLE,
    VOCAB,
    config_json,
    every_block,
    forced,
    gap,
    noisy,
    ours,
    random_ids,
    relative,
    without,
)
from against_pairs import ragged
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

from pellucid.batch import Tokens
from pellucid.errors import CheckpointError
from pellucid.families import bert
from pellucid.families.registry import config_of, spec_of
from pellucid.families.weights import export_weights, load_weights, to_theirs
from pellucid.nn.models import Encoder, build_model
from pellucid.spec import (
    PRE_NORM,
    REORDERED_NORM,
    Causal,
    ClassifierHeadSpec,
    FFNSpec,
    LayerNormSpec,
    LearnedSpec,
    MaskedLMHeadSpec,
    PoolerHeadSpec,
    TaggerHeadSpec,
)

TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "layer_norm_eps": 1e-3,  # far from the usual, so that one who forgets it is seen
    "num_labels": 3,
    "pad_token_id": None,  # else theirs keeps that token's gradient from its row of the embedding
}
HEADS: dict[str, Any] = {
    "pooler": BertModel,
    "masked LM": BertForMaskedLM,
    "classifier": BertForSequenceClassification,
    "tagger": BertForTokenClassification,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "published eps": {"layer_norm_eps": 1e-12},
    "tanh gelu": {"hidden_act": "gelu_new"},
    "relu": {"hidden_act": "relu"},
    "one type": {"type_vocab_size": 1},
    "two heads": {"num_attention_heads": 2, "intermediate_size": 64},
}


def theirs(kind: Any = BertForMaskedLM, **changes: Any) -> Any:
    return with_head(kind, BertConfig(**{**TINY, **changes}))


@pytest.fixture(scope="module")
def hf() -> Any:
    return theirs()


@pytest.fixture
def model(hf: Any) -> Encoder:
    return ours(bert, hf)


@pytest.mark.parametrize("kind", HEADS.values(), ids=HEADS.keys())
def test_every_head_agrees(kind: Any) -> None:
    reference = theirs(kind)
    model = ours(bert, reference)
    assert head_gap(model, reference) <= TOLERANCE
    assert head_gap(model, reference, types=None) <= TOLERANCE


@pytest.mark.parametrize("kind", HEADS.values(), ids=HEADS.keys())
def test_exported_folder_is_the_same_model(kind: Any, tmp_path: Path) -> None:
    model = ours(bert, theirs(kind))
    assert head_gap(model, reopened(model, tmp_path)) <= TOLERANCE


@torch.no_grad()
def test_a_model_without_a_pooler_is_written_too(tmp_path: Path) -> None:
    spec = replace(ours(bert, theirs(BertModel)).spec, head=None)
    model = noisy(build_model(spec))
    config, table = config_of(spec)
    assert spec_of(config) == (spec, table) and not any("pooler" in name for name in export_weights(model, table))
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(export_weights(model, table), tmp_path / "model.safetensors", {"format": "pt"})
    reference: Any = BertModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert gap(model(random_ids()), reference.eval()(random_ids()).last_hidden_state) <= TOLERANCE


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_agree(changes: dict[str, Any]) -> None:
    reference = theirs(**changes)
    types = TYPES if reference.config.type_vocab_size > 1 else None
    assert head_gap(ours(bert, reference), reference, types) <= TOLERANCE


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForSequenceClassification, BertForTokenClassification])
def test_gradients_agree(kind: Any) -> None:
    reference = theirs(kind)
    assert head_gradient_gap(bert, ours(bert, reference), reference, random_ids()) <= TOLERANCE


def test_gradients_of_the_pooled_vector_agree() -> None:
    reference, ids = theirs(BertModel), random_ids()
    model = ours(bert, reference)
    model(ids, types=TYPES).square().mean().backward()
    answer(reference, ids, TYPES).square().mean().backward()
    grads = to_theirs(
        {name: w.grad for name, w in model.named_parameters() if w.grad is not None}, bert.table(model.spec)
    )
    expected = {f"bert.{name}": w.grad for name, w in reference.named_parameters()}
    assert grads.keys() == expected.keys()
    assert max(relative(grads[name], want) for name, want in expected.items()) <= TOLERANCE


@pytest.mark.parametrize("kind", HEADS.values(), ids=HEADS.keys())
def test_right_padded_rows_agree(kind: Any) -> None:
    reference = theirs(kind)
    assert padded_head_gap(ours(bert, reference), reference, "right") <= TOLERANCE


def test_left_padded_rows_agree_where_theirs_is_told_the_positions(model: Encoder, hf: Any) -> None:
    assert padded_head_gap(model, hf, "left") <= TOLERANCE


@torch.no_grad()
def test_the_first_token_is_pooled_wherever_padding_stands() -> None:
    reference, ids, valid = theirs(BertModel), random_ids(), ragged("left", TIME)
    alone = [answer(reference, ids[i : i + 1, valid[i]], TYPES[i : i + 1, valid[i]]) for i in range(BATCH)]
    model = ours(bert, reference)
    assert gap(model(ids, Tokens.padded(valid), TYPES), torch.cat(alone)) <= TOLERANCE


@torch.no_grad()
def test_activation_points_are_where_they_say() -> None:
    reference, ids = theirs(BertModel), random_ids()
    model = ours(bert, reference)
    with model.taps(read=["blocks.*.attn.pattern", "blocks.*.resid_pre", "final_norm", "head.pooled"]) as acts:
        model(ids, types=TYPES)
    reference.set_attn_implementation("eager")
    out = reference(ids, token_type_ids=TYPES, output_attentions=True, output_hidden_states=True)
    assert gap(acts["head.pooled"], out.pooler_output) <= TOLERANCE
    assert gap(acts["final_norm"], out.last_hidden_state) <= TOLERANCE
    for i, (pattern, resid) in enumerate(zip(out.attentions, out.hidden_states[:-1], strict=True)):
        assert gap(acts[f"blocks.{i}.attn.pattern"], pattern) <= TOLERANCE
        assert gap(acts[f"blocks.{i}.resid_pre"], resid) <= TOLERANCE
    assert len(acts) == 2 + 2 * 3


# --- controls: each is a mistake that somebody has made ---------------------------------------------------------------


def head(spec: Any, **changes: Any) -> Any:
    return replace(spec, head=replace(spec.head, **changes))


def embed(spec: Any, **changes: Any) -> Any:
    return replace(spec, embed=replace(spec.embed, **changes))


def shifted(spec: Any) -> Any:
    """Position p reads row p + 1; the table keeps its size."""
    return replace(embed(spec, positions=LearnedSpec(offset=1)), context=39)


CLOSE, USUAL = 5 * TOLERANCE, LayerNormSpec()
WRONG: dict[str, tuple[Callable[[Any], Any], float]] = {  # each must differ by more than its floor; measured:
    "tanh GELU for exact GELU": (lambda s: every_block(s, ffn=FFNSpec(48, "gelu_tanh")), CLOSE),  # 8.6e-4
    "tanh GELU in the head": (lambda s: head(s, activation="gelu_tanh"), CLOSE),  # 1.2e-3
    "ReLU in the head": (lambda s: head(s, activation="relu"), VISIBLE),  # 0.39
    "norm before": (lambda s: every_block(s, placement=PRE_NORM), VISIBLE),  # 3.6
    "norm on the branch": (lambda s: every_block(s, placement=REORDERED_NORM), VISIBLE),  # 2.9
    "causal mask": (lambda s: every_block(s, mixer={"mask": Causal()}), VISIBLE),  # 2.9
    "default eps": (lambda s: every_block(s, norm=USUAL), CLOSE),  # 1.2e-3
    "default eps in the embedding": (lambda s: embed(s, norm=USUAL), VISIBLE),  # 0.016
    "default eps in the head": (lambda s: head(s, norm=USUAL), CLOSE),  # 4.3e-3
    "scores not scaled": (lambda s: every_block(s, mixer={"scale": 1.0}), VISIBLE),  # 2.1
    "positions off by one": (shifted, VISIBLE),  # 2.2
}


@pytest.mark.parametrize(("change", "floor"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_model_is_seen(model: Encoder, hf: Any, change: Callable[[Any], Any], floor: float) -> None:
    assert head_gap(forced(change(model.spec), model), hf) > floor


@pytest.mark.parametrize("change", [lambda s: embed(s, norm=None), lambda s: head(s, bias=False)])
def test_control_left_out_part_is_seen(model: Encoder, hf: Any, change: Callable[[Any], Any]) -> None:
    assert head_gap(without(change(model.spec), model), hf) > VISIBLE


@torch.no_grad()
def test_types_that_are_ignored_are_seen(model: Encoder, hf: Any) -> None:
    ids = random_ids()
    want, plain = answer(hf, ids, TYPES), answer(hf, ids, None)
    assert gap(model(ids), want) > VISIBLE
    assert gap(model(ids, types=1 - TYPES), want) > VISIBLE
    untyped = without(embed(model.spec, n_types=0), model)  # even the first kind has a vector
    assert gap(model(ids), plain) <= TOLERANCE
    assert gap(untyped(ids), plain) > VISIBLE


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_that_is_not_masked_is_seen(model: Encoder, hf: Any, side: str) -> None:
    assert padded_head_gap(model, hf, side, Tokens.plain(BATCH, TIME)) > VISIBLE


def test_positions_that_count_padding_are_seen(model: Encoder, hf: Any) -> None:
    valid = ragged("left", TIME)
    counted = Tokens(torch.arange(TIME).expand(BATCH, TIME).masked_fill(~valid, -1))
    assert padded_head_gap(model, hf, "left", counted) > VISIBLE


@pytest.mark.parametrize("pooler", [PoolerHeadSpec("mean"), PoolerHeadSpec("last"), PoolerHeadSpec("max")])
def test_a_wrong_pooling_is_seen(pooler: PoolerHeadSpec) -> None:
    reference = theirs(BertForSequenceClassification)
    right = ours(bert, reference)
    wrong = forced(replace(right.spec, head=ClassifierHeadSpec(3, pooler)), right)
    assert head_gap(wrong, reference) > VISIBLE
    unpooled = without(replace(right.spec, head=ClassifierHeadSpec(3, PoolerHeadSpec(dense=False))), right)
    assert head_gap(unpooled, reference) > VISIBLE


# --- the table is strict ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS.values(), ids=HEADS.keys())
def test_weights_come_back_exactly(kind: Any) -> None:
    reference = theirs(kind)
    model = ours(bert, reference)
    weights = (
        reference.state_dict() if kind is not BertModel else {f"bert.{n}": w for n, w in reference.state_dict().items()}
    )
    exported = export_weights(model, bert.table(model.spec))
    copies = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"} if kind is BertForMaskedLM else set()
    assert weights.keys() - exported.keys() == copies
    assert exported.keys() <= weights.keys()
    assert all(torch.equal(exported[name], weights[name]) for name in exported)


def test_the_first_files_call_norms_otherwise(model: Encoder, hf: Any) -> None:
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): w
        for n, w in hf.state_dict().items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(40)[None]
    assert old.keys() & hf.state_dict().keys() < old.keys()
    fresh: Any = build_model(model.spec)
    load_weights(fresh, old, bert.table(model.spec))
    assert head_gap(fresh.eval(), hf) <= TOLERANCE


def test_a_pretrained_file_is_read_for_any_head_that_it_has() -> None:
    reference = theirs(BertForPreTraining)
    ids = random_ids()
    with torch.no_grad():
        wanted = reference(ids, token_type_ids=TYPES).prediction_logits, reference.bert(ids, token_type_ids=TYPES)
        for kind, want in (("BertForMaskedLM", wanted[0]), ("BertModel", wanted[1].pooler_output)):
            model: Any = build_model(bert.to_spec(config_json(reference), kind))
            load_weights(model, reference.state_dict(), bert.table(model.spec))
            assert gap(model.eval()(ids, types=TYPES), want) <= TOLERANCE
        states: Any = build_model(replace(bert.to_spec(config_json(reference)), head=None))
        load_weights(states, reference.state_dict(), bert.table(states.spec))
        assert gap(states.eval()(ids, types=TYPES), wanted[1].last_hidden_state) <= TOLERANCE
    tagger: Any = build_model(bert.to_spec(config_json(reference), "BertForTokenClassification"))
    with pytest.raises(CheckpointError, match=r"lacks classifier\.bias, classifier\.weight"):
        load_weights(tagger, reference.state_dict(), bert.table(tagger.spec))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: [w.pop(f"cls.predictions.{name}", None) for name in ("bias", "decoder.bias")],
            "lacks cls.predictions.bias",
        ),
        (lambda w: w.update({"bert.encoder.layer.3.output.dense.bias": torch.ones(32)}), "no place for bert.encoder"),
        (lambda w: w.update({"cls.predictions.decoder.bias": torch.ones(VOCAB)}), "decoder.bias differs from cls"),
        (lambda w: w.update({"cls.predictions.decoder.weight": torch.ones(VOCAB, 32)}), "decoder.weight differs"),
        (
            lambda w: w.update({"bert.embeddings.LayerNorm.gamma": w.pop("bert.embeddings.LayerNorm.weight")}),
            "lacks bert.embeddings.LayerNorm.weight; and this model has no place for bert.embeddings.LayerNorm.gamma",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    model: Encoder, hf: Any, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    weights = dict(hf.state_dict())
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, weights, bert.table(model.spec))


# --- the config is understood, or refused by name ---------------------------------------------------------------------


def test_the_head_follows_the_architecture(hf: Any) -> None:
    config = {**config_json(hf), "architectures": None}
    heads = [
        bert.to_spec(config, kind).head
        for kind in (None, "BertForMaskedLM", "BertForSequenceClassification", "BertForTokenClassification")
    ]
    masked = MaskedLMHeadSpec("gelu", LayerNormSpec(1e-3))
    assert heads == [PoolerHeadSpec(), masked, ClassifierHeadSpec(3), TaggerHeadSpec(3)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_decoder": True}, "is_decoder = true"),
        ({"add_cross_attention": True}, "add_cross_attention = true"),
        ({"position_embedding_type": "relative_key"}, 'position_embedding_type = "relative_key"'),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = false"),
        ({"hidden_act": "quick_gelu"}, 'hidden_act = "quick_gelu"'),
        ({"num_attention_heads": 5}, "num_attention_heads = 5 does not divide"),
        ({"architectures": ["BertForQuestionAnswering"]}, "BertForQuestionAnswering"),
        ({"architectures": ["BertForTokenClassification"], "id2label": {"0": "one"}}, 'id2label = {"0": "one"}'),
        ({"embedding_size": 16}, "embedding_size = 16"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000"),
        ({"type_vocab_size": 0}, "type_vocab_size = 0"),
        ({"model_type": "albert"}, 'model_type = "albert"'),
    ],
)
def test_a_config_that_is_not_understood_is_refused(hf: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        bert.to_spec({**config_json(hf), **changes})


PUBLISHED = """{"architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "directionality": "bidi",
    "gradient_checkpointing": false, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768,
    "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
    "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0, "pooler_fc_size": 768,
    "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3, "pooler_size_per_head": 128, "vocab_size": 30522,
    "pooler_type": "first_token_transform", "position_embedding_type": "absolute", "type_vocab_size": 2}"""


def test_a_published_config_is_understood() -> None:
    spec = bert.to_spec(json.loads(PUBLISHED))
    assert spec == bert.to_spec(BertConfig().to_dict(), "BertForMaskedLM")
    assert (spec.n_layers, spec.d_model, spec.context) == (12, 768, 512)
