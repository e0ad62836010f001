"""GPT-2: ours is Hugging Face's, on random weights; and deliberately wrong models are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from against_hf import (
    TOLERANCE,
    VISIBLE,
    VOCAB,
    agrees,
    agrees_inside,
    comes_back,
    config_json,
    edited,
    every_block,
    forced,
    gap,
    logits_gap,
    ours,
    random_ids,
    random_theirs,
    swapped,
)
from transformers import GPT2Config, GPT2LMHeadModel

from pellucid.batch import Tokens
from pellucid.errors import CheckpointError
from pellucid.families import gpt2
from pellucid.families.table import STACKED, Row
from pellucid.families.weights import load_weights
from pellucid.nn.models import Decoder
from pellucid.spec import REORDERED_NORM, Causal, FFNSpec, LayerNormSpec, Prefix

TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_positions": 40,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "layer_norm_epsilon": 1e-3,  # far from the usual, so that one who forgets it is seen
    "bos_token_id": None,
    "eos_token_id": None,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "untied": {"tie_word_embeddings": False},
    "narrow, exact gelu": {"n_inner": 48, "activation_function": "gelu"},
    "relu": {"activation_function": "relu"},
    "scores over layer number": {"scale_attn_by_inverse_layer_idx": True},
    "unscaled scores": {"scale_attn_weights": False},
}


def theirs(**changes: Any) -> Any:
    return random_theirs("gpt2", TINY, changes)


@pytest.fixture(scope="module")
def hf() -> Any:
    return theirs()


@pytest.fixture
def model(hf: Any) -> Decoder:
    return ours(gpt2, hf)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_model_equals_transformers_both_ways(changes: dict[str, Any], tmp_path: Path) -> None:
    agrees(gpt2, theirs(**changes), tmp_path)


def test_padded_rows_text_and_activations_agree(hf: Any) -> None:
    agrees_inside(gpt2, hf)


# --- controls: each is a mistake that somebody has made ---------------------------------------------------------------


def exact_gelu(model: Decoder) -> Decoder:
    return forced(every_block(model.spec, ffn=FFNSpec(128, "gelu")), model)


def relu(model: Decoder) -> Decoder:
    return forced(every_block(model.spec, ffn=FFNSpec(128, "relu")), model)


def default_eps(model: Decoder) -> Decoder:
    return forced(every_block(model.spec, norm=LayerNormSpec()), model)


def default_eps_of_final_norm(model: Decoder) -> Decoder:
    return forced(replace(model.spec, stack=replace(model.spec.stack, final_norm=LayerNormSpec())), model)


def norm_after_branch(model: Decoder) -> Decoder:
    return forced(every_block(model.spec, placement=REORDERED_NORM), model)


def parallel(model: Decoder) -> Decoder:
    return forced(every_block(model.spec, parallel=True), model)


def not_causal(model: Decoder) -> Decoder:
    everyone = Causal() | Prefix(1000)
    return forced(every_block(model.spec, mixer={"mask": everyone}), model)


def unscaled(model: Decoder) -> Decoder:
    return forced(every_block(model.spec, mixer={"scale": 1.0}), model)


def drop_norm_bias(block: Any) -> None:
    block.attn_norms.pre.bias.zero_()


def drop_value_bias(block: Any) -> None:
    block.attn.v.bias.zero_()


def forget_to_transpose(block: Any) -> None:  # a square matrix: no shape will tell
    block.attn.o.weight.copy_(block.attn.o.weight.T.clone())


def shift_positions(model: Decoder) -> Decoder:
    wrong: Any = forced(model.spec, model)
    with torch.no_grad():
        wrong.embed.positions.weight.copy_(wrong.embed.positions.weight.roll(1, 0))
    return wrong


CONTROLS: dict[
    str, tuple[Callable[[Decoder], Decoder], float]
] = {  # each must differ by more than its floor; measured:
    "exact GELU for tanh GELU": (exact_gelu, 5 * TOLERANCE),  # 1.1e-3
    "ReLU for GELU": (relu, VISIBLE),  # 1.1
    "default eps": (default_eps, VISIBLE),  # 0.054
    "default eps in the final norm": (default_eps_of_final_norm, 5 * TOLERANCE),  # 1.8e-4
    "norm after the branch": (norm_after_branch, VISIBLE),  # 4.0
    "parallel block": (parallel, VISIBLE),  # 5.4
    "no causal mask": (not_causal, VISIBLE),  # 5.3
    "scores not scaled": (unscaled, VISIBLE),  # 2.6
    "q and k swapped": (swapped("attn.q.weight", "attn.k.weight"), VISIBLE),  # 0.91
    "norm without its bias": (edited(drop_norm_bias), VISIBLE),  # 0.37
    "v without its bias": (edited(drop_value_bias), VISIBLE),  # 0.72
    "square matrix not transposed": (edited(forget_to_transpose), VISIBLE),  # 2.6
    "positions off by one": (shift_positions, VISIBLE),  # 3.5
}


@pytest.mark.parametrize(("control", "floor"), CONTROLS.values(), ids=CONTROLS.keys())
def test_a_wrong_model_is_seen(model: Decoder, hf: Any, control: Callable[[Decoder], Decoder], floor: float) -> None:
    assert logits_gap(control(model), hf) > floor


def test_positions_that_count_padding_are_seen(model: Decoder, hf: Any) -> None:
    ids, valid = random_ids(), torch.ones(3, 24, dtype=torch.bool)
    valid[:, :5] = False
    right, tokens = Tokens.padded(valid), Tokens.padded(valid)
    assert right.pos[0, 5] == 0
    wrong = Tokens((tokens.pos + 5).masked_fill(~valid, -1))
    with torch.no_grad():
        want = hf(ids, attention_mask=valid.long(), position_ids=right.pos.clamp(min=0)).logits[valid]
        assert gap(model(ids, right)[valid], want) <= TOLERANCE
        assert gap(model(ids, wrong)[valid], want) > VISIBLE


# --- the table is strict ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}])
def test_weights_come_back_exactly(changes: dict[str, Any]) -> None:
    comes_back(gpt2, theirs(**changes))


def test_files_of_the_bare_model_load_too(model: Decoder, hf: Any) -> None:
    bare = {name.removeprefix("transformer."): weight for name, weight in hf.transformer.state_dict().items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 40, 40).tril()  # what the first files carry
    fresh = Decoder(model.spec)
    load_weights(fresh, bare, gpt2.TABLE)
    assert logits_gap(fresh, hf) <= TOLERANCE


@pytest.mark.parametrize(
    "name", ["transformer.wpe.weight", "transformer.h.1.ln_1.bias", "transformer.h.2.attn.c_attn.weight"]
)
def test_a_renamed_weight_is_refused_and_would_show(model: Decoder, hf: Any, name: str) -> None:
    weights = dict(hf.state_dict())
    weights[name.replace("weight", "kernel").replace("bias", "shift")] = weights.pop(name)
    fresh = Decoder(model.spec)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    with pytest.raises(CheckpointError, match=name):
        load_weights(fresh, weights, gpt2.TABLE)
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())  # nothing half-loaded
    forgiven = theirs()
    missing, unexpected = forgiven.load_state_dict(weights, strict=False)
    assert name in missing
    assert len(unexpected) == 1
    with torch.no_grad():  # what strict=False leaves in its place: the initial value
        forgiven.get_parameter(name).copy_(GPT2LMHeadModel(GPT2Config(**TINY)).get_parameter(name))
    assert logits_gap(model, forgiven) > VISIBLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("transformer.ln_f.bias"), "lacks transformer.ln_f.bias"),
        (lambda w: w.update({"transformer.h.0.attn.gate": torch.ones(4)}), "no place for transformer.h.0.attn.gate"),
        (
            lambda w: w.update({"transformer.h.3.ln_1.weight": torch.ones(32)}),
            "no place for transformer.h.3.ln_1.weight",
        ),
        (
            lambda w: w.update({"transformer.wpe.weight": torch.ones(41, 32)}),
            r"transformer.wpe.weight has the shape \(41",
        ),
        (
            lambda w: w.update({"transformer.wpe.weight": torch.ones(40, 32).char()}),
            "transformer.wpe.weight is torch.int8",
        ),
        (
            lambda w: w.update({"lm_head.weight": w["lm_head.weight"] + 1}),
            "lm_head.weight differs from transformer.wte",
        ),
        (
            lambda w: w.update({"transformer.h.0.attn.c_attn.weight": torch.ones(32, 95)}),
            r"c_attn.weight has the shape",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    model: Decoder, hf: Any, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    weights = dict(hf.state_dict())
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, weights, gpt2.TABLE)


def test_a_model_of_another_make_is_refused(model: Decoder, hf: Any) -> None:
    no_bias = every_block(model.spec, norm=LayerNormSpec(bias=False))
    with pytest.raises(CheckpointError, match=r"no place for transformer\.h\.0\.ln_1\.bias"):
        load_weights(Decoder(no_bias), hf.state_dict(), gpt2.TABLE)
    with_qk_norm = every_block(model.spec, mixer={"qk_norm": LayerNormSpec()})
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attn\.k_norm\.bias"):
        load_weights(Decoder(with_qk_norm), hf.state_dict(), gpt2.TABLE)


def test_a_table_without_its_transform_is_refused(model: Decoder, hf: Any) -> None:
    rows = tuple(
        Row(row.theirs, row.ours, STACKED) if row.theirs.endswith("c_attn.weight") else row for row in gpt2.TABLE.rows
    )
    with pytest.raises(CheckpointError, match="c_attn"):
        load_weights(model, hf.state_dict(), replace(gpt2.TABLE, rows=rows))


# --- the config is understood, or refused by name ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"add_cross_attention": True}, "add_cross_attention = true"),
        ({"activation_function": "quick_gelu"}, 'activation_function = "quick_gelu"'),
        ({"sliding_window": 8}, "sliding_window = 8"),
        ({"model_type": "gptj"}, 'model_type = "gptj"'),
        ({"n_layer": "3"}, 'n_layer = "3" is not int'),
        ({"n_head": None}, "n_head = null is not int"),
        ({"n_head": 5}, "n_head = 5 does not divide"),
        ({"n_ctx": 80}, "n_ctx = 80"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(hf: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        gpt2.to_spec({**config_json(hf), **changes})


def test_the_first_published_config_is_understood() -> None:
    published: dict[str, Any] = {
        "_num_labels": 1,
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 50256,
        "embd_pdrop": 0.1,
        "eos_token_id": 50256,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "n_special": 0,
        "output_past": True,
        "predict_special_tokens": True,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257,
    }
    spec = gpt2.to_spec(published)
    assert spec == gpt2.to_spec(GPT2Config().to_dict())
    assert (spec.n_layers, spec.d_model, spec.context, spec.head.tied) == (12, 768, 1024, True)
