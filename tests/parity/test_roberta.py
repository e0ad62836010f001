"""RoBERTa under each of its heads: ours is Hugging Face's, on random weights; deliberately wrong models are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from against_encoders import (
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
    ours,
    random_ids,
)
from transformers import (
    CamembertConfig,
    CamembertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaForSequenceClassification,
)

from pellucid.batch import Tokens
from pellucid.errors import CheckpointError
from pellucid.families import roberta
from pellucid.families.registry import spec_of
from pellucid.families.weights import export_weights, load_weights
from pellucid.nn.models import Encoder
from pellucid.spec import (
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
    "max_position_embeddings": 42,
    "layer_norm_eps": 1e-3,  # far from the usual, so that one who forgets it is seen
    "num_labels": 3,
}
PAD = 1
HEADS: dict[str, Any] = {
    "pooler": RobertaModel,
    "masked LM": RobertaForMaskedLM,
    "classifier": RobertaForSequenceClassification,
    "tagger": RobertaForTokenClassification,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "published eps": {"layer_norm_eps": 1e-12},
    "tanh gelu, but not in the head": {"hidden_act": "gelu_new"},
    "another padding": {"pad_token_id": 4, "max_position_embeddings": 45},
}


def theirs(kind: Any = RobertaForMaskedLM, **changes: Any) -> Any:
    settings: dict[str, Any] = {**TINY, "pad_token_id": PAD, **changes}
    return with_head(kind, RobertaConfig(**settings))


def text(pad: int = PAD) -> torch.Tensor:
    """Theirs takes every place that holds the id of padding for padding, and counts positions without it."""
    ids = random_ids()
    return ids.masked_fill(ids == pad, pad + 1)


@pytest.fixture(scope="module")
def hf() -> Any:
    return theirs()


@pytest.fixture
def model(hf: Any) -> Encoder:
    return ours(roberta, hf)


@pytest.mark.parametrize("kind", HEADS.values(), ids=HEADS.keys())
def test_every_head_agrees_both_ways(kind: Any, tmp_path: Path) -> None:
    reference = theirs(kind)
    model = ours(roberta, reference)
    assert head_gap(model, reference, ids=text()) <= TOLERANCE
    assert head_gap(model, reference, None, text()) <= TOLERANCE
    assert padded_head_gap(model, reference, "right", pad=PAD) <= TOLERANCE
    if kind is not RobertaModel:
        assert head_gradient_gap(roberta, model, reference, text()) <= TOLERANCE
    assert head_gap(model, reopened(model, tmp_path), ids=text()) <= TOLERANCE


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_agree_both_ways(changes: dict[str, Any], tmp_path: Path) -> None:
    reference = theirs(**changes)
    model, ids = ours(roberta, reference), text(changes.get("pad_token_id", PAD))
    assert head_gap(model, reference, ids=ids) <= TOLERANCE
    assert head_gap(model, reopened(model, tmp_path), ids=ids) <= TOLERANCE


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (XLMRobertaForMaskedLM, XLMRobertaConfig),
        (XLMRobertaForSequenceClassification, XLMRobertaConfig),
        (CamembertForMaskedLM, CamembertConfig),
    ],
)
def test_models_that_differ_by_name_alone_agree(kind: Any, config: Any, tmp_path: Path) -> None:
    reference = with_head(kind, config(**TINY))
    assert spec_of(config_json(reference))[0] == roberta.to_spec(config_json(reference))
    model = ours(roberta, reference)
    assert head_gap(model, reference, ids=text()) <= TOLERANCE
    assert type(reopened(model, tmp_path)).__name__.startswith("Roberta")


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_agrees(model: Encoder, hf: Any, side: str) -> None:
    """Theirs counts positions by what is no padding, so it needs no telling."""
    assert padded_head_gap(model, hf, side, pad=PAD) <= TOLERANCE
    assert padded_head_gap(model, hf, side, first=PAD + 1) <= TOLERANCE


# --- controls: each is a mistake that somebody has made ---------------------------------------------------------------


def embed(spec: Any, **changes: Any) -> Any:
    return replace(spec, embed=replace(spec.embed, **changes))


def head(spec: Any, **changes: Any) -> Any:
    return replace(spec, head=replace(spec.head, **changes))


def positions(offset: int) -> Callable[[Any], Any]:
    """The first token reads another row; the table keeps its size."""
    return lambda spec: replace(embed(spec, positions=LearnedSpec(offset)), context=42 - offset)


CLOSE, USUAL = 5 * TOLERANCE, LayerNormSpec()
WRONG: dict[str, tuple[Callable[[Any], Any], float]] = {
    "positions from the first row": (positions(0), VISIBLE),
    "positions one too early": (positions(1), VISIBLE),
    "positions one too late": (positions(3), VISIBLE),
    "tanh GELU for exact GELU": (lambda s: every_block(s, ffn=FFNSpec(48, "gelu_tanh")), CLOSE),
    "tanh GELU in the head": (lambda s: head(s, activation="gelu_tanh"), CLOSE),
    "default eps": (lambda s: every_block(s, norm=USUAL), CLOSE),
    "default eps in the head": (lambda s: head(s, norm=USUAL), CLOSE),
}


@pytest.mark.parametrize(("change", "floor"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_model_is_seen(model: Encoder, hf: Any, change: Callable[[Any], Any], floor: float) -> None:
    assert head_gap(forced(change(model.spec), model), hf, ids=text()) > floor


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_that_is_not_masked_is_seen(model: Encoder, hf: Any, side: str) -> None:
    assert padded_head_gap(model, hf, side, Tokens.plain(BATCH, TIME), pad=PAD) > VISIBLE


# --- the table is strict ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS.values(), ids=HEADS.keys())
def test_weights_come_back_exactly(kind: Any) -> None:
    reference = theirs(kind)
    model = ours(roberta, reference)
    base = "roberta." if kind is RobertaModel else ""
    weights = {base + name: weight for name, weight in reference.state_dict().items()}
    exported = export_weights(model, roberta.table(model.spec))
    copies = {"lm_head.decoder.weight", "lm_head.decoder.bias"} if kind is RobertaForMaskedLM else set()
    assert weights.keys() - exported.keys() == copies
    assert exported.keys() <= weights.keys()
    assert all(torch.equal(exported[name], weights[name]) for name in exported)


def test_old_files_hold_positions_and_a_pooler_too(model: Encoder, hf: Any) -> None:
    old = {
        **hf.state_dict(),
        "roberta.embeddings.position_ids": torch.arange(42)[None],
        "roberta.pooler.dense.weight": torch.ones(32, 32),
        "roberta.pooler.dense.bias": torch.ones(32),
    }
    load_weights(model, old, roberta.table(model.spec))
    assert head_gap(model, hf, ids=text()) <= TOLERANCE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: [w.pop(name, None) for name in ("lm_head.bias", "lm_head.decoder.bias")], "lacks lm_head.bias"),
        (lambda w: w.update({"lm_head.decoder.bias": torch.ones(VOCAB)}), "decoder.bias differs from lm_head.bias"),
        (lambda w: w.update({"classifier.dense.bias": torch.ones(32)}), "no place for classifier.dense.bias"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    model: Encoder, hf: Any, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    weights = dict(hf.state_dict())
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, weights, roberta.table(model.spec))


# --- the config is understood, or refused by name ---------------------------------------------------------------------


def test_the_head_follows_the_architecture(hf: Any) -> None:
    config = {**config_json(hf), "architectures": None, "hidden_act": "relu"}
    heads = [
        roberta.to_spec(config, kind).head
        for kind in (
            None,
            "XLMRobertaForMaskedLM",
            "RobertaForSequenceClassification",
            "CamembertForTokenClassification",
        )
    ]
    masked = MaskedLMHeadSpec("gelu", LayerNormSpec(1e-3))  # whatever hidden_act is
    assert heads == [PoolerHeadSpec(), masked, ClassifierHeadSpec(3), TaggerHeadSpec(3)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_decoder": True}, "is_decoder = true"),
        ({"position_embedding_type": "relative_key"}, 'position_embedding_type = "relative_key"'),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = false"),
        ({"max_position_embeddings": 2}, "max_position_embeddings = 2 leaves no place"),
        ({"pad_token_id": -3}, "leaves no place"),
        ({"architectures": ["RobertaForCausalLM"]}, "RobertaForCausalLM"),
        ({"model_type": "bert"}, 'model_type = "bert"'),
        ({"attention_window": [4]}, r"attention_window = \[4\]"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(hf: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        roberta.to_spec({**config_json(hf), **changes})


PUBLISHED = """{"architectures": ["RobertaForMaskedLM"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 0,
    "eos_token_id": 2, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 514, "model_type": "roberta",
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": 50265}"""


def test_a_published_config_is_understood() -> None:
    spec = roberta.to_spec(json.loads(PUBLISHED))
    assert (spec.n_layers, spec.d_model, spec.context, spec.embed.n_types) == (12, 768, 512, 1)
    assert spec.embed.positions == LearnedSpec(offset=2)
