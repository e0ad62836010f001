"""GPT-NeoX and Pythia: ours is Hugging Face's, on random weights; and deliberately wrong models are not."""

from __future__ import annotations

from collections.abc import Callable
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
    config_json,
    every_block,
    forced,
    logits_gap,
    ours,
    random_theirs,
    without,
)
from safetensors.torch import load_file
from transformers import GPTNeoXConfig

from pellucid.errors import CheckpointError
from pellucid.families import neox
from pellucid.families.table import STACKED, Row
from pellucid.families.weights import export_weights, load_weights
from pellucid.nn.models import Decoder
from pellucid.spec import FFNSpec, LayerNormSpec, RotarySpec

TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-3,  # far from the usual, so that one who forgets it is seen
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25},
}
HALF = {"rope_type": "linear", "rope_theta": 500.0, "partial_rotary_factor": 0.5, "factor": 4.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "one after the other": {"use_parallel_residual": False},
    "whole heads turned": {"rope_parameters": {**TINY["rope_parameters"], "partial_rotary_factor": 1.0}},
    "half turned, scaled": {"rope_parameters": HALF},
    "no biases": {"attention_bias": False},
    "tied": {"tie_word_embeddings": True},
    "tanh gelu": {"hidden_act": "gelu_pytorch_tanh"},
}


def theirs(**changes: Any) -> Any:
    return random_theirs("gpt_neox", TINY, changes)


@pytest.fixture(scope="module")
def hf() -> Any:
    return theirs()


@pytest.fixture
def model(hf: Any) -> Decoder:
    return ours(neox, hf)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_model_equals_transformers_both_ways(changes: dict[str, Any], tmp_path: Path) -> None:
    agrees(neox, theirs(**changes), tmp_path)


@pytest.mark.parametrize("changes", [{}, {"use_parallel_residual": False}])
def test_padded_rows_text_and_activations_agree(changes: dict[str, Any]) -> None:
    agrees_inside(neox, theirs(**changes))


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "attention_bias": False}])
def test_files_are_read_and_written_as_they_are_published(changes: dict[str, Any], tmp_path: Path) -> None:
    """Bit for bit; in files the head has another name than in memory."""
    reference = theirs(**changes)
    reference.save_pretrained(tmp_path)
    files = load_file(tmp_path / "model.safetensors")
    model = Decoder(neox.to_spec(config_json(reference)))
    load_weights(model, files, neox.table(model.spec))
    assert logits_gap(model.eval(), reference) <= TOLERANCE
    given = export_weights(model, neox.table(model.spec))
    assert given.keys() == files.keys()
    assert all(torch.equal(given[name], files[name]) for name in files)
    assert ("embed_out.weight" in files) == (not changes)


def test_buffers_of_old_files_are_ignored_by_name(model: Decoder, hf: Any) -> None:
    weights = export_weights(model, neox.table(model.spec))
    for i in range(3):
        attention = f"gpt_neox.layers.{i}.attention"
        weights[f"{attention}.bias"] = torch.ones(1, 1, 64, 64).tril()
        weights[f"{attention}.masked_bias"] = torch.tensor(-1e9)
        weights[f"{attention}.rotary_emb.inv_freq"] = torch.ones(2)
    fresh = Decoder(model.spec)
    load_weights(fresh, weights, neox.table(model.spec))
    assert logits_gap(fresh.eval(), hf) <= TOLERANCE


# --- controls: each is a mistake that somebody has made ---------------------------------------------------------------

WRONG: dict[str, tuple[Callable[[Any], Any], float]] = {  # each must differ by more than its floor; measured:
    "one after the other": (lambda s: every_block(s, parallel=False), VISIBLE),
    "whole heads turned": (lambda s: every_block(s, mixer={"rotary": RotarySpec(500.0)}), VISIBLE),
    "another base": (lambda s: every_block(s, mixer={"rotary": RotarySpec(fraction=0.25)}), VISIBLE),
    "tanh GELU for exact GELU": (lambda s: every_block(s, ffn=FFNSpec(80, "gelu_tanh")), 5 * TOLERANCE),
    "default eps": (lambda s: every_block(s, norm=LayerNormSpec()), VISIBLE),
}


@pytest.mark.parametrize(("change", "floor"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_model_is_seen(model: Decoder, hf: Any, change: Callable[[Any], Any], floor: float) -> None:
    assert logits_gap(forced(change(model.spec), model), hf) > floor


@pytest.mark.parametrize("part", ["bias", "out_bias"])
def test_biases_left_out_are_seen(model: Decoder, hf: Any, part: str) -> None:
    assert logits_gap(without(every_block(model.spec, mixer={part: False}), model), hf) > VISIBLE


@pytest.mark.parametrize("transform", [STACKED, neox.by_head(1), neox.by_head(6)])
def test_q_k_and_v_divided_otherwise_are_seen(model: Decoder, hf: Any, transform: Any) -> None:
    """All of q, then all of k and of v, or heads of another width: no shape will tell."""
    table, wrong = neox.table(model.spec), Decoder(model.spec)
    rows = tuple(Row(r.theirs, r.ours, transform) if "query_key" in r.theirs else r for r in table.rows)
    load_weights(wrong, export_weights(model, table), type(table)(rows))
    assert logits_gap(wrong.eval(), hf) > VISIBLE


# --- the config is understood, or refused by name ---------------------------------------------------------------------


def test_old_and_new_names_of_rotary_settings() -> None:
    new = config_json(theirs())
    old = {name: value for name, value in new.items() if name != "rope_parameters"}
    assert neox.to_spec({**old, "rotary_emb_base": 500, "rotary_pct": 0.25}) == neox.to_spec(new)
    assert neox.to_spec({**old, "rope_theta": 500.0, "partial_rotary_factor": 0.25}) == neox.to_spec(new)
    unsaid: Any = neox.to_spec(old).stack.blocks[0].mixer
    assert unsaid.rotary == RotarySpec(10_000.0, 0.25)


def test_a_published_config_is_understood() -> None:
    """Pythia 160M."""
    published: dict[str, Any] = {
        "architectures": ["GPTNeoXForCausalLM"],
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_act": "gelu",
        "hidden_size": 768,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "model_type": "gpt_neox",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.24.0",
        "use_cache": True,
        "use_parallel_residual": True,
        "vocab_size": 50304,
    }
    theirs = GPTNeoXConfig(**{name: value for name, value in published.items() if name != "model_type"})
    assert neox.to_spec(published) == neox.to_spec(theirs.to_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gptj"}, 'model_type = "gptj"'),
        ({"num_attention_heads": 5}, "num_attention_heads = 5 does not divide"),
        ({"hidden_act": "quick_gelu"}, 'hidden_act = "quick_gelu"'),
        ({"attention_bias": None, "use_bias": False}, "not understood: use_bias = false"),
        ({"rotary_pct": "a"}, 'rotary_pct = "a" is not float'),
        ({"rotary_emb_base": 77.0}, "rotary_emb_base = 77.0 contradicts"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(hf: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        neox.to_spec({**config_json(hf), **changes})
