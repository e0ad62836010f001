"""Beam search: our texts and scores are those of transformers' generate; other rules for scores and ends are not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from against_beams import (
    END,
    PENALTIES,
    STOPPINGS,
    Text,
    gap_of,
    our_texts,
    prompts_of,
    their_texts,
    tiny_llama,
    tiny_marian,
)

from pellucid.generate.beam import Beams
from pellucid.generate.decode import generate
from pellucid.generate.sample import Sampling

CLOSE = 1e-5  # of two sums of float32 logarithms
SEEDS, NEW, WIDTH = range(6), 8, 3
some_seeds = pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 6), marks=pytest.mark.slow)], ids=str)
MAKERS = {"decoder": tiny_llama, "encoder–decoder": tiny_marian}
every_rule = pytest.mark.parametrize(
    ("length_penalty", "early_stopping"), [(penalty, stopping) for penalty in PENALTIES for stopping in STOPPINGS]
)


@pytest.fixture(scope="module", params=MAKERS.values(), ids=list(MAKERS))
def pairs(request: pytest.FixtureRequest) -> list[tuple[Any, Any]]:
    """Theirs and ours, for each seed."""
    return [request.param(seed) for seed in SEEDS]


@some_seeds
@every_rule
def test_beam_search_equals_transformers(
    pairs: list[tuple[Any, Any]], length_penalty: float, early_stopping: Any, seeds: range
) -> None:
    beams = Beams(WIDTH, length_penalty, early_stopping)
    for seed in seeds:
        (theirs, model), prompts = pairs[seed], prompts_of(seed)
        wanted = their_texts(
            theirs, prompts, WIDTH, NEW, WIDTH, length_penalty=length_penalty, early_stopping=early_stopping
        )
        assert gap_of(our_texts(model, prompts, NEW, WIDTH, beams), wanted) <= CLOSE, seed


def bests(pairs: list[tuple[Any, Any]], beams: Beams) -> list[tuple[int, ...]]:
    """The best text of each prompt of each model."""
    found: list[tuple[int, ...]] = []
    for seed, (_, model) in zip(SEEDS, pairs, strict=True):
        found += [texts[0][0] for texts in our_texts(model, prompts_of(seed), NEW, 1, beams)]
    return found


def test_control_rules_find_different_texts(pairs: list[tuple[Any, Any]]) -> None:
    """Otherwise the comparison above would not tell one rule from another."""
    by_penalty = {penalty: bests(pairs, Beams(WIDTH, penalty)) for penalty in PENALTIES}
    assert by_penalty[0.0] != by_penalty[1.0] != by_penalty[2.0]
    by_stopping = {stopping: bests(pairs, Beams(WIDTH, 2.0, stopping)) for stopping in STOPPINGS}
    assert by_stopping[True] != by_stopping["never"]
    assert len({len(text) for text in by_penalty[1.0]}) >= 2, "texts end at several lengths"


@pytest.mark.parametrize("more", [1, -1], ids=["the start token counts", "the end of text does not count"])
def test_control_another_length_is_seen(pairs: list[tuple[Any, Any]], more: int) -> None:
    theirs, model = pairs[0]
    prompts = prompts_of(0)
    wanted = their_texts(theirs, prompts, WIDTH, NEW, WIDTH, length_penalty=1.0)

    def otherwise(text: Text) -> Text:
        ids, score = text
        return ids, score * len(ids) / max(1, len(ids) + more)

    ours = our_texts(model, prompts, NEW, WIDTH, Beams(WIDTH))
    assert gap_of([[otherwise(text) for text in texts] for texts in ours], wanted) > 100 * CLOSE


def test_penalty_on_logprobs_equals_transformers(pairs: list[tuple[Any, Any]]) -> None:
    """Their beam search multiplies log-probabilities; a penalty on logits, which sampling has, finds other texts."""
    gaps: dict[str, list[float]] = {"logprobs": [], "logits": []}
    for seed, (theirs, model) in zip(SEEDS, pairs, strict=True):
        prompts = prompts_of(seed)
        wanted = their_texts(theirs, prompts, WIDTH, NEW, WIDTH, repetition_penalty=1.7)
        for penalise, found in gaps.items():
            beams = Beams(WIDTH, repetition_penalty=1.7, penalise=penalise)  # type: ignore[arg-type]
            found.append(gap_of(our_texts(model, prompts, NEW, WIDTH, beams), wanted))
    assert max(gaps["logprobs"]) <= CLOSE
    assert max(gaps["logits"]) > 100 * CLOSE


def test_a_cut_off_text_is_not_said_to_have_ended() -> None:
    """Many translators' configs force the end of text at the maximum length, with probability 1: the difference."""
    theirs, model = tiny_marian(1)
    prompts = prompts_of(1)
    ours = generate(model, prompts[:1], max_new_tokens=2, policy=Beams(WIDTH, 0.0), n=WIDTH)
    forced = their_texts(theirs, prompts[:1], WIDTH, 2, WIDTH, length_penalty=0.0, forced_eos_token_id=END)[0]
    assert all(ids[-1] == END for ids, _ in forced)
    cut = [completion for completion in ours if completion.finish_reason == "length"]
    assert cut and all(completion.ids[-1] != END for completion in cut)
    gains = [score - float(c.score) for c in cut if c.score for ids, score in forced if ids[:1] == tuple(c.ids[:1])]
    assert max(gains) > 100 * CLOSE, "theirs does not pay for the last token"


# --- promises that need no reference ----------------------------------------------------------------------------------


@some_seeds
def test_a_row_of_a_batch_finds_the_texts_of_a_single_one(pairs: list[tuple[Any, Any]], seeds: range) -> None:
    for seed in seeds:
        (_, model), prompts = pairs[seed], prompts_of(seed, (2, 7, 5, 5))
        for beams in (Beams(WIDTH), Beams(4, 2.0, "never"), Beams(2, 0.0, True, 1.3)):
            together = our_texts(model, prompts, NEW, 2, beams)
            alone = [our_texts(model, [prompt], NEW, 2, beams)[0] for prompt in prompts]
            assert gap_of(together, alone) <= CLOSE


def test_search_is_deterministic(pairs: list[tuple[Any, Any]]) -> None:
    _, model = pairs[0]
    first, second = (our_texts(model, prompts_of(0), NEW, 2, Beams(WIDTH)) for _ in range(2))
    assert first == second


def test_one_beam_that_stops_early_is_greedy(pairs: list[tuple[Any, Any]]) -> None:
    for seed, (_, model) in zip(SEEDS, pairs, strict=True):
        prompts = prompts_of(seed)
        greedy = generate(model, prompts, max_new_tokens=NEW, sampling=Sampling(temperature=0.0))
        searched = generate(model, prompts, max_new_tokens=NEW, policy=Beams(1, early_stopping=True))
        assert [c.ids for c in searched] == [c.ids for c in greedy]


def test_all_beams_find_the_likeliest_text(pairs: list[tuple[Any, Any]]) -> None:
    """As many beams as there are texts search exhaustively."""
    _, model = pairs[0]
    n_texts = 13 * 13
    (best,) = generate(model, prompts_of(0)[:1], max_new_tokens=2, policy=Beams(n_texts, 0.0, "never"))
    every = generate(model, prompts_of(0)[:1], max_new_tokens=2, policy=Beams(n_texts, 0.0, "never"), n=n_texts)
    assert len(every) == 12 * 13 + 1, "every pair of tokens, and the end alone: fewer texts than were asked for"
    assert math.isclose(sum(math.exp(sum(c.logprobs)) for c in every), 1.0, abs_tol=1e-5)
    assert best.ids == max(every, key=lambda c: sum(c.logprobs)).ids


def test_a_score_says_how_it_is_normalised(pairs: list[tuple[Any, Any]]) -> None:
    _, model = pairs[0]
    for completion in generate(model, prompts_of(0), max_new_tokens=NEW, policy=Beams(WIDTH, 2.0), n=2):
        score = completion.score
        assert score is not None
        assert math.isclose(score.logprob, sum(completion.logprobs), abs_tol=1e-5)
        assert (score.length, score.length_penalty) == (len(completion.ids), 2.0)
        assert math.isclose(float(score), score.logprob / len(completion.ids) ** 2)
        assert str(score) == f"{float(score):.4f} (ln p / {len(completion.ids)}^2)"
    (drawn,) = generate(model, prompts_of(0)[:1], max_new_tokens=2)
    assert drawn.score is None
    assert torch.is_grad_enabled()
