"""SmolLM2-135M on "The capital of France is": parts that sum, the head that carries the country, a fact rewritten."""

from __future__ import annotations

import pytest
import torch
from checkpoints import smollm2

import pellucid
from pellucid.interpret.attribution import attribute
from pellucid.interpret.facts import rewrite, scores
from pellucid.interpret.patching import pair, patch
from pellucid.nn.models import Decoder

PROMPT = "The capital of France is"
PARAPHRASES = ["The capital city of France is called", "Q: What is the capital of France? A: The capital of France is"]
NEIGHBOURS = ["The city where the Eiffel Tower stands is", "The Louvre is a museum in the city of"]
OTHERS = {"Italy": " Rome", "Germany": " Berlin", "Spain": " Madrid", "Japan": " Tokyo"}


@pytest.fixture(scope="module")
def model() -> Decoder:
    loaded = pellucid.load(smollm2())
    assert isinstance(loaded, Decoder)
    return loaded


def token(model: Decoder, word: str) -> int:
    (found,) = model.tokenizer.encode(word)
    return found


@torch.no_grad()
def following(model: Decoder, text: str) -> str:
    logits = model(torch.tensor([model.tokenizer.encode_prompt(text)]))
    return model.tokenizer.decode([int(logits[0, -1].argmax())])


@torch.no_grad()
def test_parts_sum_to_the_logit_difference_of_a_real_model(model: Decoder) -> None:
    ids = torch.tensor([model.tokenizer.encode_prompt(PROMPT)])
    found = attribute(model, ids, token(model, " Paris"), token(model, " Rome"))
    logits = model(ids)[0, -1]
    torch.testing.assert_close(found.total[0], logits[token(model, " Paris")] - logits[token(model, " Rome")])
    torch.testing.assert_close(found.sum(), found.total, atol=1e-4, rtol=1e-4)


def test_one_head_carries_the_country_to_the_last_token(model: Decoder) -> None:
    prompts = pair(model, PROMPT, "The capital of Italy is")
    answers = token(model, " Paris"), token(model, " Rome")
    heads = patch(model, prompts, *answers, point="attn.z", over=("layer", "head")).recovered[..., 0]
    assert heads[23, 4] > 0.8
    states = patch(model, prompts, *answers).recovered[..., 0]
    assert states[:23, 3].min() > 0.9 and states[25:, 4].min() > 0.9
    assert states[:20, 4].max() < 0.1 and states[25:, 3].abs().max() < 0.1


@pytest.mark.slow
def test_a_rewritten_capital_keeps_other_facts_and_comes_back_bit_for_bit(model: Decoder) -> None:
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    before = scores(model, " Paris", " Berlin", [PROMPT], PARAPHRASES, NEIGHBOURS)
    assert (before.efficacy, before.paraphrase, before.neighbourhood) == (0.0, 0.0, 1.0)
    edit = rewrite(model, PROMPT, "France", " Berlin", layer=3)
    after = scores(model, " Paris", " Berlin", [PROMPT], PARAPHRASES, NEIGHBOURS)
    assert (after.efficacy, after.paraphrase, after.neighbourhood) == (1.0, 1.0, 1.0)
    assert following(model, PROMPT) == " Berlin"
    assert {land: following(model, f"The capital of {land} is") for land in OTHERS} == OTHERS
    edit.undo()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())
