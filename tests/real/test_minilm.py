"""all-MiniLM-L6-v2 as it was published: the states are its library's, and near in meaning is near in space."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from against_hf import gap
from checkpoints import minilm
from torch import Tensor

import pellucid
from pellucid.batch import Tokens
from pellucid.checkpoints.export import to_hf
from pellucid.errors import CheckpointError
from pellucid.nn.models import Encoder
from pellucid.spec import PoolerHeadSpec

TOLERANCE = 1e-5
TEXTS = ("The cat sits on the mat.", "A short one", "Ünïcode — naïve café, 東京!", "x " * 60)
# a text, what says the same, and what shares words but not the meaning
TRIPLES = (
    ("How do I reset my password?", "I forgot my login and want a new one.", "How do I reset the clock in my car?"),
    ("A man is playing the guitar.", "Someone plays music on a string instrument.", "A man is playing football."),
    ("The stock market fell sharply today.", "Shares dropped a lot this afternoon.", "The market sells fresh fruit."),
    ("He adopted a puppy from the shelter.", "The animal home gave him a young dog.", "He took shelter from the rain."),
    ("The bank raised interest rates.", "Borrowing money became more expensive.", "We sat on the bank of the river."),
)


@pytest.fixture(scope="module")
def model() -> Encoder:
    loaded = pellucid.load(minilm())
    assert isinstance(loaded, Encoder)
    return loaded


@pytest.fixture(scope="module")
def theirs() -> Any:
    return transformers.BertModel.from_pretrained(minilm()).eval()


def padded(model: Encoder, texts: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Ids of all texts and which of them are there, padded on the right."""
    rows = [model.tokenizer.encode_prompt(text) for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [model.tokenizer.pad_id] * (longest - len(row)) for row in rows])
    return ids, torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]


def test_ids_are_those_of_its_own_tokenizer(model: Encoder) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm())
    for text in TEXTS:
        assert model.tokenizer.encode_prompt(text) == tokenizer(text).input_ids


@torch.no_grad()
def test_states_are_those_of_its_own_library(model: Encoder, theirs: Any) -> None:
    """Padded rows of very different lengths, at every token; and after each layer."""
    ids, valid = padded(model, TEXTS)
    expected = theirs(ids, attention_mask=valid.long(), output_hidden_states=True)
    with model.taps(read="blocks.*.resid_post") as acts:
        states = model.states(ids, Tokens.padded(valid))
    assert gap(states[valid], expected.last_hidden_state[valid]) <= TOLERANCE
    for i, layer in enumerate(expected.hidden_states[1:]):
        assert gap(acts[f"blocks.{i}.resid_post"][valid], layer[valid]) <= TOLERANCE
    unmasked = theirs(ids).last_hidden_state  # the control: padding seen is a difference seen
    assert gap(states[valid], unmasked[valid]) > 0.05


@torch.no_grad()
def test_a_call_gives_sentence_vectors(model: Encoder, theirs: Any) -> None:
    """What modules.json beside the config says: the mean of the states of what is there, of length 1."""
    assert model.spec.head == PoolerHeadSpec("mean", dense=False, normalise=True)
    ids, valid = padded(model, TEXTS)
    states = theirs(ids, attention_mask=valid.long()).last_hidden_state
    mean = (states * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)
    expected = torch.nn.functional.normalize(mean, dim=-1)
    assert gap(model(ids, Tokens.padded(valid)), expected) <= TOLERANCE
    assert gap(torch.nn.functional.normalize(states.mean(1), dim=-1), expected) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("triple", TRIPLES, ids=[triple[0] for triple in TRIPLES])
def test_sentences_of_equal_meaning_are_near(model: Encoder, triple: tuple[str, str, str]) -> None:
    ids, valid = padded(model, triple)
    text, same, other = model(ids, Tokens.padded(valid))
    assert text @ same > text @ other + 0.1


@torch.no_grad()
def test_the_plain_encoder_is_there_for_the_asking(theirs: Any) -> None:
    model: Any = pellucid.load(minilm(), architecture="BertModel")
    ids = torch.tensor([model.tokenizer.encode_prompt(TEXTS[0])])
    assert model.spec.head == PoolerHeadSpec()
    assert gap(model(ids), theirs(ids).pooler_output) <= TOLERANCE


@torch.no_grad()
def test_minilm_survives_export_and_load(model: Encoder, theirs: Any, tmp_path: Path) -> None:
    """Exported, its library opens it with the same states; loaded again, it is the same to the bit, head and all."""
    assert to_hf(model, tmp_path / "out") == "bert"
    ids = torch.tensor([model.tokenizer.encode_prompt(TEXTS[0])])
    again = transformers.BertModel.from_pretrained(tmp_path / "out", add_pooling_layer=False).eval()
    assert torch.equal(again(ids).last_hidden_state, theirs(ids).last_hidden_state)
    back = pellucid.load(tmp_path / "out")
    assert back.spec == model.spec
    weights = model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in back.state_dict().items())
    assert torch.equal(back(ids), model(ids))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("modules.json", '{"a": 1}', r"modules\.json is no list of modules"),
        (
            "modules.json",
            '[{"type": "x.Transformer"}, {"type": "x.Dense"}]',
            r"lists the modules Transformer, Dense",
        ),
        (
            "modules.json",
            '[{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "../1_Pooling"}]',
            r"modules\.json: '\.\./1_Pooling' is no path of a folder in it",
        ),
        (
            "modules.json",
            '[{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": ".."}]',
            r"modules\.json: '\.\.' is no path of a folder in it",
        ),
        ("1_Pooling/config.json", '{"pooling_mode_mean_sqrt_len_tokens": true}', r"pools by mean_sqrt_len_tokens"),
        ("1_Pooling/config.json", '{"pooling_mode": []}', r"1_Pooling/config\.json names no way to pool"),
    ],
)
def test_a_head_that_we_do_not_have_is_refused(file: str, change: str, message: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(minilm(), tmp_path / "copy"))
    (folder / file).write_text(change)
    with pytest.raises(CheckpointError, match=message):
        pellucid.load(folder)
    assert pellucid.load(folder, architecture="BertModel", tokenizer=False).spec.n_layers == 6


def test_a_file_without_a_pooler_is_an_encoder_without_a_head(tmp_path: Path) -> None:
    """Many sentence encoders are published so; its library would draw a pooler at random."""
    folder = tmp_path / "out"
    bert = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(bert, add_pooling_layer=False).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertModel"]
    model: Any = pellucid.load(folder)
    assert model.spec.head is None
