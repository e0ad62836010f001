"""BERT under each of its heads: ours is Hugging Face's, on random weights; and deliberately wrong models are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
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
    noisy,
    ours,
    random_ids,
    relative,
    without,
)
from against_pairs import ragged
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

from pellucid.batch import IGNORE, Batch, Tokens
from pellucid.errors import CheckpointError
from pellucid.families import bert
from pellucid.families.table import export_weights, load_weights, to_theirs
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
TYPES = (torch.arange(TIME).expand(BATCH, TIME) > torch.tensor([[9], [3], [20]])).long()


def theirs(kind: Any = BertForMaskedLM, **changes: Any) -> Any:
    reference = noisy(kind(BertConfig(**{**TINY, **changes})))
    reference.config.architectures = [kind.__name__]
    return reference


@pytest.fixture(scope="module")
def hf() -> Any:
    return theirs()


@pytest.fixture
def model(hf: Any) -> Encoder:
    return ours(bert, hf)


def answer(reference: Any, ids: Tensor, types: Tensor | None, **more: Any) -> Tensor:
    """What their head gives, in our shape."""
    out = reference(ids, token_type_ids=types, **more)
    if isinstance(reference, BertModel):
        return out.pooler_output
    return out.logits[:, None] if isinstance(reference, BertForSequenceClassification) else out.logits


@torch.no_grad()
def head_gap(model: Encoder, reference: Any, types: Tensor | None = TYPES) -> float:
    ids = random_ids()
    return gap(model(ids, types=types), answer(reference, ids, TYPES if types is not None else None))


@pytest.mark.parametrize("kind", HEADS.values(), ids=HEADS.keys())
def test_every_head_agrees(kind: Any) -> None:
    reference = theirs(kind)
    model = ours(bert, reference)
    assert head_gap(model, reference) <= TOLERANCE
    assert head_gap(model, reference, types=None) <= TOLERANCE


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_agree(changes: dict[str, Any]) -> None:
    reference = theirs(**changes)
    types = TYPES if reference.config.type_vocab_size > 1 else None
    assert head_gap(ours(bert, reference), reference, types) <= TOLERANCE


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForSequenceClassification, BertForTokenClassification])
def test_gradients_agree(kind: Any) -> None:
    reference, ids, valid = theirs(kind), random_ids(), ragged("right", TIME)
    model, generator = ours(bert, reference), torch.Generator().manual_seed(3)
    n = VOCAB if kind is BertForMaskedLM else 3
    if kind is BertForSequenceClassification:
        labels = torch.randint(n, (BATCH, 1), generator=generator)
    else:
        labels = torch.randint(n, (BATCH, TIME), generator=generator).masked_fill(~valid, IGNORE)
        labels[:, ::3] = IGNORE
    loss = reference(ids, attention_mask=valid.long(), token_type_ids=TYPES, labels=labels.squeeze(1)).loss
    batch = Batch(ids, Tokens.padded(valid), labels, types=TYPES)
    assert loss_gradient_gap(bert, model, reference, batch, loss) <= TOLERANCE


def test_gradients_of_the_pooled_vector_agree() -> None:
    reference, ids = theirs(BertModel), random_ids()
    model = ours(bert, reference)
    model(ids, types=TYPES).square().sum().backward()
    answer(reference, ids, TYPES).square().sum().backward()
    grads = to_theirs({name: w.grad for name, w in model.named_parameters() if w.grad is not None}, bert.table(model.spec))
    expected = {f"bert.{name}": w.grad for name, w in reference.named_parameters()}
    assert grads.keys() == expected.keys()
    assert max(relative(grads[name], want) for name, want in expected.items()) <= TOLERANCE


@torch.no_grad()
def padded_head_gap(model: Encoder, reference: Any, side: str, tokens: Tokens | None = None) -> float:
    """Padded on one side. ``tokens``: what ours is told about it instead of the truth."""
    ids, valid = random_ids(), ragged(side, TIME)
    truth = Tokens.padded(valid)
    mask, places = valid.long(), truth.pos.clamp(min=0)
    want = answer(reference, ids, TYPES, attention_mask=mask, position_ids=places)
    got = model(ids, truth if tokens is None else tokens, TYPES)
    return gap(got[valid], want[valid]) if want.shape[:2] == valid.shape else gap(got, want)


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


def shifted_table(spec: Any) -> Any:
    """Position p reads row p + 1; the table keeps its size."""
    return replace(spec, context=39, embed=replace(spec.embed, positions=LearnedSpec(offset=1)))


WRONG: dict[str, tuple[Callable[[Any], Any], float]] = {  # each must differ by more than its floor; measured:
    "tanh GELU for exact GELU": (lambda s: every_block(s, ffn=FFNSpec(48, "gelu_tanh")), 5 * TOLERANCE),
    "tanh GELU in the head": (lambda s: replace(s, head=replace(s.head, activation="gelu_tanh")), 5 * TOLERANCE),
    "no activation like the blocks' in the head": (lambda s: replace(s, head=replace(s.head, activation="relu")), VISIBLE),
    "norm before": (lambda s: every_block(s, placement=PRE_NORM), VISIBLE),
    "norm on the branch": (lambda s: every_block(s, placement=REORDERED_NORM), VISIBLE),
    "causal mask": (lambda s: every_block(s, mixer={"mask": Causal()}), VISIBLE),
    "default eps": (lambda s: every_block(s, norm=LayerNormSpec()), VISIBLE),
    "default eps in the embedding": (lambda s: replace(s, embed=replace(s.embed, norm=LayerNormSpec())), VISIBLE),
    "default eps in the head": (lambda s: replace(s, head=replace(s.head, norm=LayerNormSpec())), 5 * TOLERANCE),
    "scores not scaled": (lambda s: every_block(s, mixer={"scale": 1.0}), VISIBLE),
    "positions off by one": (shifted_table, VISIBLE),
}


@torch.no_grad()
def masked_lm_gap(wrong: Encoder, hf: Any) -> float:
    ids = random_ids()
    states = build_model(replace(wrong.spec, head=None)) if wrong.spec.sees_future_is_wrong else wrong
    return gap(states(ids), answer(hf, ids, None))


@pytest.mark.parametrize(("change", "floor"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_model_is_seen(model: Encoder, hf: Any, change: Callable[[Any], Any], floor: float) -> None:
    assert head_gap(forced(change(model.spec), model), hf) > floor
