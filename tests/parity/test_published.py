"""Folders as they stand on the hub: keys that years of releases left in a config, and heads of all sizes.

Each config is a published one, its sizes made small; both sides open the same files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from against_hf import TOLERANCE, VISIBLE, VOCAB, gap, noisy, random_ids
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

import pellucid
from pellucid.batch import Batch, Tokens
from pellucid.errors import CheckpointError, DataError

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
LABELS: dict[str, Any] = {
    "id2label": {"0": "O", "1": "B-PER", "2": "I-PER"},
    "label2id": {"O": 0, "B-PER": 1, "I-PER": 2},
}
SCORE: dict[str, Any] = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
BERT: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    **SMALL,
    **{"vocab_size": VOCAB, "max_position_embeddings": 40, "type_vocab_size": 2, "pad_token_id": 0},
    **{"hidden_act": "gelu", "layer_norm_eps": 1e-12, "initializer_range": 0.02},
    **{"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
}
ROBERTA = {
    **{**BERT, "model_type": "xlm-roberta", "architectures": ["XLMRobertaForMaskedLM"]},
    **{"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1, "output_past": True},
}
NEOX: dict[str, Any] = {
    "model_type": "gpt_neox",
    "architectures": ["GPTNeoXForCausalLM"],
    **SMALL,
    **{"vocab_size": VOCAB, "max_position_embeddings": 40, "rotary_pct": 0.25, "rotary_emb_base": 10000},
}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    **SMALL,
    **{"vocab_size": VOCAB, "max_position_embeddings": 512, "rms_norm_eps": 1e-5},
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "hfl/chinese-roberta-wwm-ext": {**BERT, "directionality": "bidi", "output_past": True, "bos_token_id": 0},
    "dslim/bert-base-NER": {
        **{**BERT, "architectures": ["BertForTokenClassification"]},
        **{"_num_labels": 3, "output_past": True, **LABELS},
    },
    "nlptown/bert-base-multilingual-uncased-sentiment": {
        **{**BERT, "architectures": ["BertForSequenceClassification"], **LABELS},
        **{"finetuning_task": "sentiment-analysis", "output_past": True, "xla_device": None},
    },
    "cross-encoder/ms-marco-MiniLM-L6-v2": {
        **{**BERT, "architectures": ["BertForSequenceClassification"], **SCORE},
        "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.0.1"},
    },
    "BAAI/bge-reranker-base": {**ROBERTA, "architectures": ["XLMRobertaForSequenceClassification"], **SCORE},
    "xlm-roberta-base": ROBERTA,
    "camembert-base": {**ROBERTA, "model_type": "camembert", "architectures": ["CamembertForMaskedLM"]},
    "an AutoNLP model": {
        **{**BERT, "architectures": ["BertForSequenceClassification"], **LABELS},
        **{"_num_labels": 3, "max_length": 192, "padding": "max_length"},
    },
    "EleutherAI/gpt-neox-20b": {
        **{**NEOX, "hidden_act": "gelu_fast"},
        **{"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0},
    },
    "databricks/dolly-v2-3b": {
        **NEOX,
        "custom_pipelines": {"text-generation": {"impl": "instruct_pipeline.InstructionTextGenerationPipeline"}},
    },
    "NousResearch/Yarn-Llama-2-7b-64k": {
        **LLAMA,
        "rope_scaling": {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 32, "finetuned": True},
    },
}


def written(folder: Path, config: dict[str, Any]) -> Any:
    """The folder, and their model with the weights in it."""
    settings = {name: value for name, value in config.items() if name not in ("architectures", "model_type")}
    kind = getattr(transformers, config["architectures"][0])
    torch.manual_seed(0)
    model = noisy(kind(AutoConfig.for_model(config["model_type"], **json.loads(json.dumps(settings)))))
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    weights = {name: w.clone().contiguous() for name, w in model.state_dict().items() if name not in tied}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return kind.from_pretrained(folder).eval()


def words() -> Tensor:
    """Ids of which none is padding to a RoBERTa, which counts places by it."""
    return random_ids() % (VOCAB - 3) + 3


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_folder_is_opened_as_it_is(name: str, tmp_path: Path) -> None:
    theirs = written(tmp_path, PUBLISHED[name])
    model = pellucid.load(tmp_path, tokenizer=False)
    with torch.no_grad():
        want = theirs(words()).logits
        assert gap(model(words()), want[:, None] if want.ndim == 2 else want) <= TOLERANCE


@pytest.mark.parametrize("name", PUBLISHED)
def test_control_another_number_in_the_config_is_seen(name: str, tmp_path: Path) -> None:
    theirs = written(tmp_path, PUBLISHED[name])
    eps = "rms_norm_eps" if "rms_norm_eps" in PUBLISHED[name] else "layer_norm_eps"
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, eps: 0.1}))
    model = pellucid.load(tmp_path, tokenizer=False)
    with torch.no_grad():
        want = theirs(words()).logits
        assert gap(model(words()), want[:, None] if want.ndim == 2 else want) > VISIBLE


def test_a_score_goes_out_as_it_came_and_is_no_loss(tmp_path: Path) -> None:
    written(tmp_path, PUBLISHED["BAAI/bge-reranker-base"])
    model = pellucid.load(tmp_path, tokenizer=False)
    pellucid.convert(model, tmp_path / "out")
    kind: Any = transformers.RobertaForSequenceClassification
    again, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    ids = words()
    with torch.no_grad():
        assert gap(model(ids)[:, 0], again.eval()(ids).logits) <= TOLERANCE
    batch = Batch(ids, Tokens.plain(len(ids), ids.shape[1]), torch.zeros(len(ids), 1, dtype=torch.long))
    with pytest.raises(DataError, match="predicts nothing"):
        model.nll_sum(batch)


@pytest.mark.parametrize(
    ("config", "head"),
    [
        ({**BERT, "architectures": ["BertForQuestionAnswering"]}, "BertModel"),
        ({**ROBERTA, "architectures": ["XLMRobertaForSequenceClassification"], **LABELS}, "XLMRobertaModel"),
    ],
    ids=["answers", "classes"],
)
def test_the_encoder_alone_of_a_fine_tuned_model(config: dict[str, Any], head: str, tmp_path: Path) -> None:
    """Also of one under a head that we do not have: its error says how."""
    written(tmp_path, config)
    if config["model_type"] == "bert":
        with pytest.raises(CheckpointError, match=r'architecture="BertModel", pellucid\.load gives the encoder'):
            pellucid.load(tmp_path, tokenizer=False)
    model = pellucid.load(tmp_path, tokenizer=False, architecture=head)
    theirs = getattr(transformers, head).from_pretrained(tmp_path, add_pooling_layer=False).eval()
    ids = words()
    with torch.no_grad():
        assert gap(model(ids), theirs(ids).last_hidden_state) <= TOLERANCE


def test_a_family_that_we_do_not_have_is_not_taken_for_another(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mpnet", "architectures": ["MPNetModel"]}))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match='no family of ours has model_type = "mpnet"') as refused:
        pellucid.load(tmp_path)
    assert "did you mean" not in refused.value.remedy


T5: dict[str, Any] = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    **{"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2},
    **{"is_encoder_decoder": True, "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0},
    **{"output_past": True, "num_beams": 3, "no_repeat_ngram_size": 2},
}


@pytest.mark.parametrize("file", [True, False], ids=["a file of its own", "in the config"])
def test_how_a_model_writes_goes_out_with_it(file: bool, tmp_path: Path) -> None:
    theirs, source, out = written(tmp_path, T5), random_ids(), tmp_path / "out"
    if file:
        theirs.generation_config.save_pretrained(tmp_path)
    pellucid.convert(tmp_path, out)
    said = json.loads((out / "generation_config.json").read_text())
    assert (said["num_beams"], said["no_repeat_ngram_size"], said["eos_token_id"]) == (3, 2, 1)
    again: Any = transformers.T5ForConditionalGeneration.from_pretrained(out).eval()
    assert torch.equal(again.generate(source, max_new_tokens=9), theirs.generate(source, max_new_tokens=9))


def test_a_model_without_such_words_knows_where_to_begin(tmp_path: Path) -> None:
    written(tmp_path, T5)
    model = pellucid.load(tmp_path, tokenizer=False)
    model.generation = {}
    pellucid.convert(model, tmp_path / "out")
    again: Any = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    assert again.generate(random_ids(), max_new_tokens=2)[0, 0] == 0


def test_class_names_survive_export(tmp_path: Path) -> None:
    """Also by way of a folder of ours; and so does how a model writes."""
    (tmp_path / "ner").mkdir()
    written(tmp_path / "ner", PUBLISHED["dslim/bert-base-NER"])
    model = pellucid.load(tmp_path / "ner")
    assert model.class_names == ("O", "B-PER", "I-PER")
    model.generation = {"num_beams": 3}
    pellucid.save(model, tmp_path / "ours")
    pellucid.convert(tmp_path / "ours", tmp_path / "out")
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {name: said[name] for name in LABELS} == LABELS
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"num_beams": 3}


@pytest.mark.parametrize("listed", [{"0": "O", "1": 7, "2": "I"}, {"0": "O", "2": "I", "5": "B"}, {"0": "O" * 2000}])
def test_names_of_classes_that_are_none_are_left_out(listed: dict[str, Any], tmp_path: Path) -> None:
    written(tmp_path, PUBLISHED["dslim/bert-base-NER"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "id2label": listed, "num_labels": 3}))
    assert pellucid.load(tmp_path).class_names == ()
