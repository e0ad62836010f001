"""DistilBERT under each of its heads: ours is Hugging Face's, on random weights; deliberately wrong models are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from against_encoders import reopened, with_head
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
    loss_gradient_gap,
    ours,
    random_ids,
)
from against_pairs import ragged
from torch import Tensor
from transformers import (
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
)

from pellucid.batch import IGNORE, Batch, Tokens
from pellucid.errors import CheckpointError
from pellucid.families import distilbert
from pellucid.families.weights import export_weights, load_weights
from pellucid.nn.models import Encoder, build_model
from pellucid.spec import PRE_NORM, ClassifierHeadSpec, FFNSpec, LearnedSpec, MaskedLMHeadSpec, PoolerHeadSpec

TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "dim": 32,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 48,
    "max_position_embeddings": 40,
    "num_labels": 3,
    "pad_token_id": None,  # else theirs keeps that token's gradient from its row of the embedding
}
HEADS: dict[str, Any] = {
    "states": DistilBertModel,
    "masked LM": DistilBertForMaskedLM,
    "classifier": DistilBertForSequenceClassification,
    "tagger": DistilBertForTokenClassification,
}


def theirs(kind: Any = DistilBertForMaskedLM, **changes: Any) -> Any:
    return with_head(kind, DistilBertConfig(**{**TINY, **changes}))


def answer(reference: Any, valid: Tensor | None = None) -> Tensor:
    out = reference(random_ids(), attention_mask=None if valid is None else valid.long())
    if "logits" not in out:
        return out.last_hidden_state
    return out.logits[:, None] if out.logits.ndim == 2 else out.logits


@torch.no_grad()
def head_gap(model: Encoder, reference: Any) -> float:
    return gap(model(random_ids()), answer(reference))


@torch.no_grad()
def padded_gap(model: Encoder, reference: Any, tokens: Tokens | None = None) -> float:
    valid = ragged("right", TIME)
    got, want = model(random_ids(), Tokens.padded(valid) if tokens is None else tokens), answer(reference, valid)
    return gap(got[valid], want[valid]) if want.shape[:2] == valid.shape else gap(got, want)


@pytest.fixture(scope="module")
def hf() -> Any:
    return theirs()


@pytest.fixture
def model(hf: Any) -> Encoder:
    return ours(distilbert, hf)


@pytest.mark.parametrize("kind", HEADS.values(), ids=HEADS.keys())
def test_every_head_agrees_both_ways(kind: Any, tmp_path: Path) -> None:
    reference = theirs(kind)
    model = ours(distilbert, reference)
    assert head_gap(model, reference) <= TOLERANCE
    assert padded_gap(model, reference) <= TOLERANCE
    assert head_gap(model, reopened(model, tmp_path)) <= TOLERANCE


def test_gradients_agree(model: Encoder, hf: Any) -> None:
    valid = ragged("right", TIME)
    labels = random_ids().flip(1).masked_fill(~valid, IGNORE)
    loss = hf(random_ids(), attention_mask=valid.long(), labels=labels).loss
    batch = Batch(random_ids(), Tokens.padded(valid), labels)
    assert loss_gradient_gap(distilbert, model, hf, batch, loss) <= TOLERANCE


# --- controls: each is a mistake that somebody has made ---------------------------------------------------------------


def positions(spec: Any) -> Any:
    """Position p reads row p + 1; the table keeps its size."""
    return replace(spec, embed=replace(spec.embed, positions=LearnedSpec(offset=1)), context=39)


WRONG: dict[str, tuple[Callable[[Any], Any], float]] = {
    "tanh GELU for exact GELU": (lambda s: every_block(s, ffn=FFNSpec(48, "gelu_tanh")), 5 * TOLERANCE),
    "tanh GELU in the head": (lambda s: replace(s, head=replace(s.head, activation="gelu_tanh")), 5 * TOLERANCE),
    "norm before": (lambda s: every_block(s, placement=PRE_NORM), VISIBLE),
    "positions off by one": (positions, VISIBLE),
}


@pytest.mark.parametrize(("change", "floor"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_model_is_seen(model: Encoder, hf: Any, change: Callable[[Any], Any], floor: float) -> None:
    assert head_gap(forced(change(model.spec), model), hf) > floor


@pytest.mark.parametrize("pooler", [PoolerHeadSpec(), PoolerHeadSpec("mean", activation="relu")])
def test_a_wrong_pooling_is_seen(pooler: PoolerHeadSpec) -> None:
    reference = theirs(DistilBertForSequenceClassification)
    right = ours(distilbert, reference)
    assert right.spec.head == ClassifierHeadSpec(3, PoolerHeadSpec(activation="relu"))
    assert head_gap(forced(replace(right.spec, head=ClassifierHeadSpec(3, pooler)), right), reference) > VISIBLE


def test_padding_that_is_not_masked_is_seen(model: Encoder, hf: Any) -> None:
    assert padded_gap(model, hf, Tokens.plain(BATCH, TIME)) > VISIBLE


# --- the table and the config are strict ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS.values(), ids=HEADS.keys())
def test_weights_come_back_exactly(kind: Any) -> None:
    reference = theirs(kind)
    model = ours(distilbert, reference)
    base = "distilbert." if kind is DistilBertModel else ""
    weights = {base + name: weight for name, weight in reference.state_dict().items()}
    exported = export_weights(model, distilbert.table(model.spec))
    assert weights.keys() - exported.keys() == ({"vocab_projector.weight"} if kind is DistilBertForMaskedLM else set())
    assert all(torch.equal(exported[name], weights[name]) for name in exported)


def test_a_pretrained_file_is_read_without_its_head(model: Encoder, hf: Any) -> None:
    bare: Any = build_model(distilbert.to_spec(config_json(hf), "DistilBertModel"))
    load_weights(bare, hf.state_dict(), distilbert.table(bare.spec))
    with torch.no_grad():
        assert gap(bare.eval()(random_ids()), hf.distilbert(random_ids()).last_hidden_state) <= TOLERANCE
    weights = {**hf.state_dict(), "distilbert.pooler.bias": torch.ones(32)}
    with pytest.raises(CheckpointError, match=r"no place for distilbert\.pooler\.bias"):
        load_weights(bare, weights, distilbert.table(bare.spec))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 5}, "n_heads = 5 does not divide dim = 32"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = false"),
        ({"architectures": ["DistilBertForQuestionAnswering"]}, "DistilBertForQuestionAnswering"),
        ({"model_type": "bert"}, 'model_type = "bert"'),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps = 1e-05"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(hf: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        distilbert.to_spec({**config_json(hf), **changes})


PUBLISHED = """{"activation": "gelu", "architectures": ["DistilBertForMaskedLM"], "attention_dropout": 0.1, "dim": 768,
    "dropout": 0.1, "hidden_dim": 3072, "initializer_range": 0.02, "max_position_embeddings": 512, "model_type":
    "distilbert", "n_heads": 12, "n_layers": 6, "pad_token_id": 0, "qa_dropout": 0.1, "seq_classif_dropout": 0.2,
    "sinusoidal_pos_embds": false, "tie_weights_": true, "vocab_size": 30522}"""


def test_a_published_config_is_understood() -> None:
    spec = distilbert.to_spec(json.loads(PUBLISHED))
    assert (spec.n_layers, spec.d_model, spec.context) == (6, 768, 512)
    assert isinstance(spec.head, MaskedLMHeadSpec) and spec.embed.n_types == 0
