"""One matrix under several names: a file may keep any of them, and where it has two matrices the model is not tied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file, save_model

import pellucid
from pellucid.errors import CheckpointError

WIDTH: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SIZES: dict[str, Any] = {**WIDTH, "max_position_embeddings": 32, "vocab_size": 50}
TIED: dict[str, Any] = {**SIZES, "tie_word_embeddings": True, "num_key_value_heads": 1, "pad_token_id": None}
PAIR: dict[str, Any] = {
    **{"vocab_size": 50, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2},
    **{"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 32},
}
MARIAN = {**PAIR, "pad_token_id": 49, "decoder_start_token_id": 49, "eos_token_id": 0, "forced_eos_token_id": None}
T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
CASES: dict[str, tuple[Any, Any]] = {
    "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2)),
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig(**TIED)),
    "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config(**TIED)),
    "mixtral": (hf.MixtralForCausalLM, hf.MixtralConfig(**TIED, num_local_experts=2)),
    "phi3": (hf.Phi3ForCausalLM, hf.Phi3Config(**TIED)),
    "gemma": (hf.GemmaForCausalLM, hf.GemmaConfig(**TIED, head_dim=8)),
    "gpt_neox": (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig(**SIZES, tie_word_embeddings=True)),
    "bert": (hf.BertForMaskedLM, hf.BertConfig(**SIZES)),
    "roberta": (hf.RobertaForMaskedLM, hf.RobertaConfig(**SIZES)),
    "albert": (hf.AlbertForMaskedLM, hf.AlbertConfig(**SIZES, embedding_size=8)),
    "distilbert": (
        hf.DistilBertForMaskedLM,
        hf.DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=32),
    ),
    "bart": (hf.BartForConditionalGeneration, hf.BartConfig(**PAIR)),
    "marian": (hf.MarianMTModel, hf.MarianConfig(**MARIAN)),  # pyright: ignore[reportArgumentType]
    "t5": (hf.T5ForConditionalGeneration, hf.T5Config(**T5, decoder_start_token_id=0)),  # pyright: ignore[reportCallIssue]
}
IDS, START = torch.tensor([[5, 6, 7, 8, 2]]), torch.tensor([[2, 5, 6]])
HEADS = {  # the names of matrices of heads that are not called lm_head.weight
    "gpt_neox": "embed_out.weight",
    "bert": "cls.predictions.decoder.weight",
    "roberta": "lm_head.decoder.weight",
    "albert": "predictions.decoder.weight",
    "distilbert": "vocab_projector.weight",
}


def made(name: str) -> Any:
    torch.manual_seed(0)
    kind, config = CASES[name]
    model = kind(config).eval()
    model.config.architectures = [kind.__name__]
    return model


def logits(model: Any) -> torch.Tensor:
    pair = {"decoder_input_ids": START} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=IDS, **pair).logits


def gap(folder: Path, right: torch.Tensor) -> float:
    model = pellucid.load(folder)
    with torch.no_grad():
        ours = model(IDS, START) if right.shape[1] == START.shape[1] else model(IDS)
    return float((ours - right).abs().max())


def aliases(model: Any) -> list[set[str]]:
    """The names of each matrix that has several."""
    homes: dict[int, set[str]] = {}
    for name, tensor in model.state_dict().items():
        homes.setdefault(tensor.data_ptr(), set()).add(name)
    return [names for names in homes.values() if len(names) > 1]


def keep(model: Any, folder: Path, names: set[str]) -> None:
    """The folder, with only these of the names that share a tensor."""
    drop = set().union(*aliases(model)) - names
    weights = {name: each.clone() for name, each in model.state_dict().items() if name not in drop}
    model.config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", CASES)
def test_tied_matrix_is_found_under_each_of_its_names(name: str, tmp_path: Path) -> None:
    model = made(name)
    right, groups = logits(model), aliases(model)
    matrix = max(groups, key=lambda names: max(model.state_dict()[each].numel() for each in names))
    others = {min(names) for names in groups if names is not matrix}
    for kept in sorted(matrix):
        keep(model, tmp_path, {kept, *others})
        assert gap(tmp_path, right) < 1e-5, kept


@pytest.mark.parametrize("name", ["gpt2", "t5", "roberta"])
def test_file_of_save_model_opens(name: str, tmp_path: Path) -> None:
    model = made(name)
    model.config.save_pretrained(tmp_path)
    save_model(model, str(tmp_path / "model.safetensors"))
    assert gap(tmp_path, logits(model)) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_another_matrix_in_the_head_is_kept_whatever_the_config_says(name: str, tmp_path: Path) -> None:
    model = made(name)
    head = HEADS.get(name, "lm_head.weight")
    keep(model, tmp_path, {min(names - {"lm_head.weight", head}) for names in aliases(model)})
    weights = load_file(tmp_path / "model.safetensors")
    own = model.get_output_embeddings()
    own.weight = torch.nn.Parameter(torch.randn_like(own.weight))
    save_file({**weights, head: own.weight.detach()}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert gap(tmp_path, logits(model)) < 1e-5
    narrow = own.weight.detach()[:, :4].clone()
    save_file({**weights, head: narrow}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{head} has the shape \(50, 4\)"):
        pellucid.load(tmp_path)


def test_head_that_the_config_asks_for_and_no_file_has_is_refused(tmp_path: Path) -> None:
    model = made("llama")
    model.config.tie_word_embeddings = False
    keep(model, tmp_path, {"model.embed_tokens.weight"})
    with pytest.raises(CheckpointError, match=r"lacks lm_head\.weight\n.*set tie_word_embeddings to true"):
        pellucid.load(tmp_path)


def test_index_may_list_a_tied_head_that_no_file_has(tmp_path: Path) -> None:
    model = made("llama")
    keep(model, tmp_path, {"model.embed_tokens.weight"})
    file = tmp_path / "model.safetensors"
    names = [*load_file(file), "lm_head.weight"]
    file.rename(tmp_path / "model-00001-of-00001.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}))
    assert gap(tmp_path, logits(model)) < 1e-5
    index.write_text(json.dumps({"weight_map": {**dict.fromkeys(names, "model-00001-of-00001.safetensors"), "x": "y"}}))
    with pytest.raises(CheckpointError, match="places x in 'y'"):
        pellucid.load(tmp_path)
