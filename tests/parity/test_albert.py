"""ALBERT, whose layers share weights: ours is Hugging Face's, on random weights; deliberately wrong models are not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from against_encoders import (
    TYPES,
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
    ours,
    random_ids,
    relative,
)
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AlbertForPreTraining,
    AlbertForSequenceClassification,
    AlbertForTokenClassification,
    AlbertModel,
)

from pellucid.batch import Tokens
from pellucid.errors import CheckpointError
from pellucid.families import albert
from pellucid.families.registry import config_of
from pellucid.families.weights import export_weights, load_weights
from pellucid.nn.models import Encoder, build_model
from pellucid.spec import (
    PRE_NORM,
    ClassifierHeadSpec,
    FFNSpec,
    LayerNormSpec,
    MaskedLMHeadSpec,
    PoolerHeadSpec,
    TaggerHeadSpec,
)

TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "embedding_size": 12,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "layer_norm_eps": 1e-3,  # far from the usual, so that one who forgets it is seen
    "num_labels": 3,
    "pad_token_id": None,  # else theirs keeps that token's gradient from its row of the embedding
}
HEADS: dict[str, Any] = {
    "pooler": AlbertModel,
    "masked LM": AlbertForMaskedLM,
    "classifier": AlbertForSequenceClassification,
    "tagger": AlbertForTokenClassification,
}
# their sizes -> whose weights each of our layers has
GROUPS: dict[str, tuple[dict[str, int], tuple[int, ...]]] = {
    "one for all": ({}, (0, 0, 0, 0)),
    "two in turn": ({"inner_group_num": 2}, (0, 1, 0, 1, 0, 1, 0, 1)),
    "one, then another": ({"num_hidden_groups": 2}, (0, 0, 2, 2)),
    "three groups": ({"num_hidden_groups": 3}, (0, 0, 2, 3)),
    "two groups of two": ({"num_hidden_groups": 2, "inner_group_num": 2}, (0, 1, 0, 1, 4, 5, 4, 5)),
    "each its own": ({"num_hidden_groups": 4}, ()),
    "as wide as the stream": ({"embedding_size": 32}, (0, 0, 0, 0)),
}


def theirs(kind: Any = AlbertForMaskedLM, **changes: Any) -> Any:
    return with_head(kind, AlbertConfig(**{**TINY, **changes}))


@pytest.fixture(scope="module")
def hf() -> Any:
    return theirs()


@pytest.fixture
def model(hf: Any) -> Encoder:
    return ours(albert, hf)


@pytest.mark.parametrize("kind", HEADS.values(), ids=HEADS.keys())
def test_every_head_agrees_both_ways(kind: Any, tmp_path: Path) -> None:
    reference = theirs(kind)
    model = ours(albert, reference)
    assert head_gap(model, reference) <= TOLERANCE
    assert head_gap(model, reference, types=None) <= TOLERANCE
    assert padded_head_gap(model, reference, "right") <= TOLERANCE
    if kind is not AlbertModel:
        assert head_gradient_gap(albert, model, reference, random_ids()) <= TOLERANCE
    assert head_gap(model, reopened(model, tmp_path)) <= TOLERANCE


@pytest.mark.parametrize(("sizes", "shared"), GROUPS.values(), ids=GROUPS.keys())
def test_every_way_to_share_agrees_both_ways(sizes: dict[str, int], shared: tuple[int, ...], tmp_path: Path) -> None:
    reference = theirs(**sizes)
    model = ours(albert, reference)
    assert model.spec.stack.shared == shared
    assert model.n_parameters == sum(weight.numel() for weight in reference.parameters())
    assert head_gap(model, reference) <= TOLERANCE
    assert head_gap(model, reopened(model, tmp_path)) <= TOLERANCE
    # in float64: what eight layers round is more than the tolerance of gradients that almost cancel
    assert head_gradient_gap(albert, model.double(), reference.double(), random_ids()) <= TOLERANCE


@torch.no_grad()
def test_activation_points_are_those_of_each_depth() -> None:
    reference, ids = theirs(AlbertModel), random_ids()
    model = ours(albert, reference)
    with model.taps(read=["blocks.*.attn.pattern", "blocks.*.resid_pre", "final_norm", "head.pooled"]) as acts:
        model(ids, types=TYPES)
    reference.set_attn_implementation("eager")
    out = reference(ids, token_type_ids=TYPES, output_attentions=True, output_hidden_states=True)
    assert gap(acts["head.pooled"], out.pooler_output) <= TOLERANCE
    assert gap(acts["final_norm"], out.last_hidden_state) <= TOLERANCE
    for i, pattern in enumerate(out.attentions):
        assert gap(acts[f"blocks.{i}.attn.pattern"], pattern) <= TOLERANCE
    for i in range(1, 4):
        assert gap(acts[f"blocks.{i}.resid_pre"], out.hidden_states[i]) <= TOLERANCE
    assert len(acts) == 2 + 2 * 4


# --- controls: each is a mistake that somebody has made ---------------------------------------------------------------


def shared(spec: Any, owners: tuple[int, ...]) -> Any:
    return replace(spec, stack=replace(spec.stack, shared=owners))


def head(spec: Any, **changes: Any) -> Any:
    return replace(spec, head=replace(spec.head, **changes))


CLOSE, USUAL = 5 * TOLERANCE, LayerNormSpec()
WRONG: dict[str, tuple[Callable[[Any], Any], float]] = {
    "exact GELU for tanh GELU": (lambda s: every_block(s, ffn=FFNSpec(48, "gelu")), CLOSE),
    "exact GELU in the head": (lambda s: head(s, activation="gelu"), CLOSE),
    "norm before": (lambda s: every_block(s, placement=PRE_NORM), VISIBLE),
    "default eps": (lambda s: every_block(s, norm=USUAL), CLOSE),
    "default eps in the embedding": (lambda s: replace(s, embed=replace(s.embed, norm=USUAL)), CLOSE),
    "scores not scaled": (lambda s: every_block(s, mixer={"scale": 1.0}), VISIBLE),
    "a layer too few": (
        lambda s: replace(s, stack=replace(s.stack, blocks=s.stack.blocks[:3], shared=(0, 0, 0))),
        VISIBLE,
    ),
}


@pytest.mark.parametrize(("change", "floor"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_model_is_seen(model: Encoder, hf: Any, change: Callable[[Any], Any], floor: float) -> None:
    assert head_gap(forced(change(model.spec), model), hf) > floor


def test_layers_that_share_otherwise_are_seen() -> None:
    reference = theirs(inner_group_num=2)
    right = ours(albert, reference)
    for owners in ((0, 0, 2, 2, 0, 0, 2, 2), (0, 1, 1, 0, 0, 1, 1, 0)):
        wrong: Any = build_model(shared(right.spec, owners))
        names = [name for name, _ in wrong.named_parameters()]
        with torch.no_grad():
            for name, weight in zip(names, right.parameters(), strict=True):
                wrong.get_parameter(name).copy_(weight)
        assert head_gap(wrong.eval(), reference) > VISIBLE


def test_every_depth_teaches_the_weights_that_it_shares(model: Encoder, hf: Any) -> None:
    """The gradient is the sum of those of four layers that happen to be equal; that of one of them is another."""
    alone: Any = build_model(shared(model.spec, ()))
    first = {name.replace("blocks.0.", "blocks.#."): weight for name, weight in model.named_parameters()}
    with torch.no_grad():
        for name, weight in alone.named_parameters():
            weight.copy_(first[re.sub(r"blocks\.\d", "blocks.#", name)])
    for each in (model, alone):
        each.zero_grad()
        each(random_ids(), types=TYPES).square().mean().backward()
    for name, weight in model.blocks[0].named_parameters():
        four: list[Any] = [block.get_parameter(name).grad for block in alone.blocks]
        together: Any = weight.grad
        assert relative(torch.stack(four).sum(0), together) <= TOLERANCE
        assert name.endswith("attn.k.bias") or relative(four[0], together) > VISIBLE  # of which there is none


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_that_is_not_masked_is_seen(model: Encoder, hf: Any, side: str) -> None:
    assert padded_head_gap(model, hf, side, Tokens.plain(BATCH, TIME)) > VISIBLE


# --- the table is strict ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS.values(), ids=HEADS.keys())
def test_weights_come_back_exactly(kind: Any) -> None:
    reference = theirs(kind, num_hidden_groups=2, inner_group_num=2)
    model = ours(albert, reference)
    base = "albert." if kind is AlbertModel else ""
    weights = {base + name: weight for name, weight in reference.state_dict().items()}
    exported = export_weights(model, albert.table(model.spec))
    copies = {"predictions.decoder.weight", "predictions.decoder.bias"} if kind is AlbertForMaskedLM else set()
    assert weights.keys() - exported.keys() == copies
    assert exported.keys() <= weights.keys()
    assert all(torch.equal(exported[name], weights[name]) for name in exported)


def test_a_pretrained_file_is_read_for_any_head_that_it_has() -> None:
    reference = theirs(AlbertForPreTraining)
    ids = random_ids()
    with torch.no_grad():
        wanted = reference(ids, token_type_ids=TYPES).prediction_logits, reference.albert(ids, token_type_ids=TYPES)
        for kind, want in (("AlbertForMaskedLM", wanted[0]), ("AlbertModel", wanted[1].pooler_output)):
            model: Any = build_model(albert.to_spec(config_json(reference), kind))
            load_weights(model, reference.state_dict(), albert.table(model.spec))
            assert gap(model.eval()(ids, types=TYPES), want) <= TOLERANCE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("albert.encoder.embedding_hidden_mapping_in.bias"), "lacks albert.encoder.embedding_hidden"),
        (
            lambda w: w.update({"albert.encoder.albert_layer_groups.1.albert_layers.0.ffn.bias": torch.ones(48)}),
            "no place for albert.encoder.albert_layer_groups.1",
        ),
        (lambda w: w.update({"predictions.decoder.weight": torch.ones(VOCAB, 12)}), "decoder.weight differs"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    model: Encoder, hf: Any, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    weights = dict(hf.state_dict())
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, weights, albert.table(model.spec))


# --- the config is understood, or refused by name ---------------------------------------------------------------------


def test_the_head_follows_the_architecture(hf: Any) -> None:
    config = {**config_json(hf), "architectures": None}
    heads = [
        albert.to_spec(config, kind).head
        for kind in (None, "AlbertForMaskedLM", "AlbertForSequenceClassification", "AlbertForTokenClassification")
    ]
    masked = MaskedLMHeadSpec("gelu_tanh", LayerNormSpec(1e-3))
    assert heads == [PoolerHeadSpec(), masked, ClassifierHeadSpec(3), TaggerHeadSpec(3)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tie_word_embeddings": False}, "tie_word_embeddings = false"),
        ({"num_hidden_groups": 5}, "num_hidden_groups = 5 is more than num_hidden_layers = 4"),
        ({"num_hidden_groups": 0}, "num_hidden_groups = 0"),
        ({"inner_group_num": 10**6}, "inner_group_num = 1000000 makes more than"),
        ({"embedding_size": 0}, "embedding_size = 0"),
        ({"num_memory_blocks": 1}, "num_memory_blocks = 1"),
        ({"num_attention_heads": 5}, "num_attention_heads = 5 does not divide"),
        ({"architectures": ["AlbertForQuestionAnswering"]}, "AlbertForQuestionAnswering"),
        ({"model_type": "bert"}, 'model_type = "bert"'),
        ({"rope_theta": 5.0}, "rope_theta = 5"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(hf: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        albert.to_spec({**config_json(hf), **changes})


def test_sharing_that_no_albert_has_is_refused(model: Encoder) -> None:
    with pytest.raises(CheckpointError, match=r"stack\.shared = \(0, 1, 1, 0\)"):
        config_of(shared(model.spec, (0, 1, 1, 0)), "albert")


PUBLISHED = """{"architectures": ["AlbertForMaskedLM"], "attention_probs_dropout_prob": 0, "bos_token_id": 2,
    "classifier_dropout_prob": 0.1, "down_scale_factor": 1, "embedding_size": 128, "eos_token_id": 3, "gap_size": 0,
    "hidden_act": "gelu_new", "hidden_dropout_prob": 0, "hidden_size": 768, "initializer_range": 0.02,
    "inner_group_num": 1, "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
    "model_type": "albert", "net_structure_type": 0, "num_attention_heads": 12, "num_hidden_groups": 1,
    "num_hidden_layers": 12, "num_memory_blocks": 0, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": 30000}"""


def test_a_published_config_is_understood() -> None:
    spec = albert.to_spec(json.loads(PUBLISHED))
    assert (spec.n_layers, spec.d_model, spec.embed.d_embed, spec.context) == (12, 768, 128, 512)
    assert spec.stack.shared == (0,) * 12
