"""A real model, SmolLM2: its beams are those of transformers, and what guesses write is what greedy decoding writes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from checkpoints import smollm2

import pellucid
from pellucid.generate.beam import Beams
from pellucid.generate.sample import Sampling
from pellucid.generate.speculate import Speculation
from pellucid.nn.models import Decoder

NEW, WIDTH = 10, 3
CLOSE = 1e-4  # of scores: products of other shapes are rounded otherwise, thirty layers long
GREEDY = Sampling(temperature=0.0)
QUESTIONS = ("The capital of France is", "Water boils when")
PLACES = (
    "France Italy Spain Japan China India Egypt Kenya Peru Chile Brazil Canada Mexico Cuba Norway Sweden Finland Poland"
    " Greece Turkey Iran Iraq Nepal Ghana Mali"
).split()


@pytest.fixture(scope="module")
def model() -> Decoder:
    loaded = pellucid.load(smollm2())
    assert isinstance(loaded, Decoder)
    return loaded


@pytest.fixture(scope="module")
def theirs() -> Any:
    from transformers import AutoModelForCausalLM

    file = smollm2()
    loaded: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    return loaded.eval()


@pytest.mark.slow
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_beams_of_a_real_model_equal_those_of_transformers(
    model: Decoder, theirs: Any, length_penalty: float, early_stopping: Any
) -> None:
    for question in QUESTIONS:
        ids = model.tokenizer.encode_prompt(question)
        beams = Beams(WIDTH, length_penalty, early_stopping)
        ours = pellucid.generate(model, [ids], max_new_tokens=NEW, policy=beams, n=WIDTH)
        out = theirs.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), num_beams=WIDTH,
            num_return_sequences=WIDTH, max_new_tokens=NEW, do_sample=False, length_penalty=length_penalty,
            early_stopping=early_stopping, eos_token_id=list(model.tokenizer.stop_ids), pad_token_id=0,
            output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        for completion, row, score in zip(ours, out.sequences, out.sequences_scores.tolist(), strict=True):
            assert completion.ids == row[len(ids) : len(ids) + len(completion.ids)].tolist()
            assert completion.score is not None and abs(float(completion.score) - score) <= CLOSE


def shallow(model: Decoder, n_layers: int) -> Decoder:
    """The first layers of a model with its head: a draft that costs a part of it, and is often right."""
    spec = replace(model.spec, stack=replace(model.spec.stack, blocks=model.spec.stack.blocks[:n_layers]))
    draft = pellucid.build(spec)
    kept = draft.state_dict().keys()
    draft.load_state_dict({name: weight for name, weight in model.state_dict().items() if name in kept})
    draft.tokenizer = model.tokenizer
    return draft.eval()


@pytest.mark.slow
@pytest.mark.parametrize("guesser", ["look-up", "draft"])
def test_guesses_write_the_greedy_texts_of_fifty_real_prompts(model: Decoder, guesser: str) -> None:
    prompts = [f"The {what} of {place} is" for what in ("capital", "president") for place in PLACES]
    assert len(prompts) == 50
    policy = Speculation(shallow(model, 24) if guesser == "draft" else None, sampling=GREEDY)
    plain = pellucid.generate(model, prompts, max_new_tokens=16, sampling=GREEDY)
    guessed = pellucid.generate(model, prompts, max_new_tokens=16, policy=policy)
    assert [completion.ids for completion in guessed] == [completion.ids for completion in plain]
