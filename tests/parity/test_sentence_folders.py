"""Folders of sentence-transformers, of all its versions: where the encoder lies, how it pools, how a text is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

import pellucid
from pellucid.designs import modern
from pellucid.errors import CheckpointError, UsageError
from pellucid.nn.models import AnyModel

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "query", ":", *(f"w{i}" for i in range(20))]
OLD, NEW = "sentence_transformers.models.", "sentence_transformers.base.modules.kind."
TEXT = " ".join(f"w{i}" for i in range(12))
IDS = [2, *range(7, 19), 3]
MODES = {"mean": lambda x: x.mean(0), "cls": lambda x: x[0], "max": lambda x: x.amax(0), "lasttoken": lambda x: x[-1]}


@pytest.fixture(scope="module")
def bert() -> BertModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes)).eval()  # pyright: ignore[reportArgumentType]


def states(bert: BertModel, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return bert(torch.tensor([ids])).last_hidden_state[0]


def folder(
    bert: BertModel,
    root: Path,
    *,
    inside: str = "",
    classes: str = OLD,
    kind: str = "Transformer",
    pooling: dict[str, Any] | None = None,
    reading: dict[str, Any] | None = None,
    prompts: dict[str, Any] | None = None,
) -> Path:
    """A folder as some version of the library writes it. inside: the encoder's own folder."""
    own = root / inside
    bert.save_pretrained(own)
    (own / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (own / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "model_max_length": 20}')
    modules = [{"path": inside, "type": classes + kind}, {"path": "1_Pooling", "type": f"{classes}Pooling"}]
    (root / "modules.json").write_text(json.dumps(modules))
    (root / "1_Pooling").mkdir()
    (root / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {"pooling_mode_mean_tokens": True}))
    if reading is not None:
        (own / "sentence_bert_config.json").write_text(json.dumps(reading))
    if prompts is not None:
        (root / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return root


def gap(model: AnyModel, right: Tensor, **how: Any) -> float:
    return float((pellucid.embed(model, TEXT, **how)[0] - right).abs().max())


@pytest.mark.parametrize("mode", MODES)
def test_way_to_pool_named_by_one_string_is_read(bert: BertModel, tmp_path: Path, mode: str) -> None:
    said = {"embedding_dimension": 16, "pooling_mode": mode, "include_prompt": True}
    model = pellucid.load(folder(bert, tmp_path, classes=NEW, pooling=said))
    assert gap(model, MODES[mode](states(bert, IDS))) < 1e-6


def test_way_to_pool_that_nobody_says_is_the_mean(bert: BertModel, tmp_path: Path) -> None:
    root = folder(bert, tmp_path, pooling={"word_embedding_dimension": 16})
    model = pellucid.load(root)
    assert gap(model, states(bert, IDS).mean(0)) < 1e-6
    assert torch.equal(pellucid.embed(root, TEXT), pellucid.embed(model, TEXT))


@pytest.mark.parametrize("kind", ["Transformer", "BERT"])
def test_encoder_in_a_folder_of_its_own_is_found(bert: BertModel, tmp_path: Path, kind: str) -> None:
    model = pellucid.load(folder(bert, tmp_path, inside=f"0_{kind}", kind=kind))
    assert gap(model, states(bert, IDS).mean(0)) < 1e-6


@pytest.mark.parametrize(("said", "longest"), [({"max_seq_length": 8}, 8), ({}, 20), ({"max_seq_length": 500}, 32)])
def test_text_is_cut_to_the_greatest_length(
    bert: BertModel, tmp_path: Path, said: dict[str, Any], longest: int
) -> None:
    model = pellucid.load(folder(bert, tmp_path, reading=said))
    text = " ".join([TEXT] * 4)
    assert model.tokenizer.encode_prompt(text) == [2, *([*range(7, 19)] * 4)[: longest - 2], 3]
    assert pellucid.embed(model, text).shape == (1, 16)


PROMPTS = {"prompts": {"query": "query : ", "none": ""}, "default_prompt_name": "query"}


def test_default_prompt_stands_before_a_text(bert: BertModel, tmp_path: Path) -> None:
    model = pellucid.load(folder(bert, tmp_path, prompts=PROMPTS))
    prompted, plain = states(bert, [2, 5, 6, *IDS[1:]]).mean(0), states(bert, IDS).mean(0)
    assert gap(model, prompted) < 1e-6 < gap(model, plain)
    assert gap(model, plain, prompt="") < 1e-6 and gap(model, plain, prompt_name="none") < 1e-6
    with pytest.raises(UsageError, match=r"no prompt 'qery'\n.*'query'"):
        pellucid.embed(model, TEXT, prompt_name="qery")


def test_prompt_without_part_in_the_vector_is_read_and_not_pooled(bert: BertModel, tmp_path: Path) -> None:
    said = {"pooling_mode": "mean", "include_prompt": False}
    model = pellucid.load(folder(bert, tmp_path, pooling=said, prompts=PROMPTS))
    assert gap(model, states(bert, [2, 5, 6, *IDS[1:]])[3:].mean(0)) < 1e-6


def test_letters_become_small_where_the_folder_says_so(bert: BertModel, tmp_path: Path) -> None:
    model = pellucid.load(folder(bert, tmp_path, reading={"do_lower_case": True}))
    assert model.tokenizer.encode_prompt(TEXT.upper()) == IDS


@pytest.mark.parametrize("to", ["hf", "native"])
def test_reading_of_a_text_outlives_another_format(bert: BertModel, tmp_path: Path, to: Any) -> None:
    said = {"pooling_mode": "max", "include_prompt": False}
    reading = {"max_seq_length": 9, "do_lower_case": True}
    model = pellucid.load(folder(bert, tmp_path / "a", pooling=said, reading=reading, prompts=PROMPTS))
    pellucid.convert(model, tmp_path / "b", to=to)
    again = pellucid.load(tmp_path / "b")
    assert again.sentences == model.sentences and again.spec == model.spec
    assert torch.equal(pellucid.embed(again, TEXT), pellucid.embed(model, TEXT))
    if to == "hf":
        tokenizer = json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())
        assert tokenizer["model_max_length"] == 9


def test_each_text_of_many_has_the_vector_that_it_has_alone(bert: BertModel, tmp_path: Path) -> None:
    model = pellucid.load(folder(bert, tmp_path, prompts=PROMPTS))
    texts = ["w1", TEXT, "", "w3 w4 w5", "w7 w8"]
    together = pellucid.embed(model, texts, batch_tokens=24)
    alone = torch.cat([pellucid.embed(model, text) for text in texts])
    assert (together - alone).abs().max() < 1e-6 and not together.requires_grad
    assert pellucid.embed(model, []).shape == (0, 16)


def test_model_with_a_head_of_its_own_opens_with_that_head(bert: BertModel, tmp_path: Path) -> None:
    root = folder(bert, tmp_path)
    (root / "modules.json").write_text(json.dumps([{"path": "", "type": f"{NEW}Transformer"}]))
    model = pellucid.load(root)
    assert model(torch.tensor([IDS])).shape == (1, 16) and model.sentences["longest"] == 20  # BERT's own pooler


def test_model_without_vectors_is_refused() -> None:
    model = pellucid.build(modern(50, 32, 2, 16, 8))
    with pytest.raises(UsageError, match="this Decoder gives no vector of a text"):
        pellucid.embed(model, TEXT)
    with pytest.raises(UsageError, match="texts = 5 cannot be used"):
        pellucid.embed(model, 5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "max"]}, "pools by mean and max; known: cls"),
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "pools by weightedmean"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, "names no way to pool"),
        ("modules.json", [{"path": "../x", "type": f"{OLD}Transformer"}] * 2, "lists the modules Transformer, Transf"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "0 is no number of tokens"),
        ("config_sentence_transformers.json", {"prompts": {"a": 1}}, "prompts are no texts"),
        ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "'x' is none of its prompts"),
    ],
)
def test_folder_that_asks_for_more_is_refused(
    bert: BertModel, tmp_path: Path, file: str, content: Any, message: str
) -> None:
    root = folder(bert, tmp_path)
    (root / file).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message) as refused:
        pellucid.load(root)
    assert file in refused.value.problem
    if "Pooling" in file:
        assert f"pellucid.load({str(root)!r}, architecture='BertModel')" in refused.value.remedy
        assert pellucid.load(root, architecture="BertModel").sentences == {}
