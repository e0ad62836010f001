"""Speculation writes what plain sampling would: the same tokens where guesses are not drawn, else the same law."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generate import CONTEXT, GREEDY, MODELS, WARM, Pieces, build
from torch import Tensor

from pellucid.errors import UsageError
from pellucid.generate import speculate
from pellucid.generate.beam import Beams
from pellucid.generate.decode import Completion, generate, stream
from pellucid.generate.policy import Policy
from pellucid.generate.sample import Sampling, draw
from pellucid.generate.speculate import Speculation
from pellucid.nn.init import initialise
from pellucid.nn.models import Decoder, Encoder, build_model
from pellucid.spec import (
    AttentionSpec,
    BlockSpec,
    Causal,
    DecoderSpec,
    EmbedSpec,
    EncoderSpec,
    FFNSpec,
    Full,
    LayerNormSpec,
    LinearAttentionSpec,
    LMHeadSpec,
    RecurrentSpec,
    RotarySpec,
    StackSpec,
    Window,
)

few = settings(max_examples=examples(20))
PLAIN = Sampling(temperature=1.0, top_p=1.0)
DRAFT = MODELS["learned"]
N_PROMPTS = 50
MIXERS = {
    "attention": AttentionSpec(2, 1, 8, rotary=RotarySpec()),
    "window": AttentionSpec(2, 1, 8, Causal() & Window(4), rotary=RotarySpec()),
    "running state": RecurrentSpec("gru", 16),
    "linear attention": LinearAttentionSpec(2, 8),
}


def random_decoder(vocab: int, seed: int, mixer: Any = MIXERS["attention"], context: int = 40) -> Decoder:
    """Of two layers, in float64, with weights wide enough to be decided."""
    stack = StackSpec(16, (BlockSpec(mixer, FFNSpec(24), LayerNormSpec()),) * 2, LayerNormSpec())
    model = initialise(
        build_model(DecoderSpec(vocab, context, EmbedSpec(), stack, LMHeadSpec(tied=False))), "normal", 0
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    assert isinstance(model, Decoder)
    return model.double().eval()


def prompts_of(n: int, vocab: int = 12) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 9, (n,), generator=generator).tolist()
    return [torch.randint(vocab, (length,), generator=generator).tolist() for length in lengths]


def ids_of(completions: list[Completion]) -> list[list[int]]:
    return [completion.ids for completion in completions]


@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS.keys())
@pytest.mark.parametrize("guesser", ["look-up", "draft"])
def test_greedy_texts_of_fifty_prompts_are_those_of_plain_decoding(mixer: Any, guesser: str) -> None:
    model, draft = random_decoder(12, 1, mixer), random_decoder(12, 2, mixer)
    policy = Speculation(draft if guesser == "draft" else None, sampling=GREEDY)
    plain = generate(model, prompts_of(N_PROMPTS), max_new_tokens=14, sampling=GREEDY)
    guessed = generate(model, prompts_of(N_PROMPTS), max_new_tokens=14, policy=policy)
    assert ids_of(guessed) == ids_of(plain)
    assert len({tuple(ids) for ids in ids_of(plain)}) >= 10, "the texts differ"
    gap = torch.tensor([c.logprobs for c in plain]) - torch.tensor([c.logprobs for c in guessed])
    assert float(gap.abs().max()) <= 1e-6


@few
@given(
    st.sampled_from(sorted(MODELS)).map(MODELS.__getitem__),
    st.lists(st.text(st.sampled_from("abc "), max_size=10), min_size=1, max_size=3),
    st.sampled_from([GREEDY, WARM, PLAIN]),
    st.sampled_from([[], ["a"], ["cd", "bcde"]]),
    st.integers(1, CONTEXT + 2),
    st.integers(1, 6),
    st.integers(0, 9),
)
def test_looked_up_guesses_give_the_tokens_of_plain_sampling(
    model: Decoder, prompts: list[str], sampling: Sampling, stop: list[str], n: int, guesses: int, seed: int
) -> None:
    """With the same seed; whatever ends a text, up to the context's last position."""
    asked: dict[str, Any] = {"max_new_tokens": n, "stop": stop, "seed": seed, "n": 2}
    plain = generate(model, prompts, sampling=sampling, **asked)
    guessed = generate(model, prompts, policy=Speculation(guesses=guesses, longest=2, sampling=sampling), **asked)
    facts = [[(c.text, c.ids, c.finish_reason) for c in some] for some in (plain, guessed)]
    assert facts[0] == facts[1]


class Counting(Decoder):
    """Counts its forwards, and the tokens that they read."""

    forwards = 0

    def states(self, ids: Tensor, *rest: Any, **named: Any) -> Tensor:
        self.forwards += 1
        return super().states(ids, *rest, **named)


def test_accepted_guesses_save_forwards() -> None:
    model = build(kind=Counting)
    prompt, n = [2, 3, 4, 2, 3, 4, 2, 3], 12
    used: dict[str, int] = {}
    policies: dict[str, Policy] = {
        "plain": GREEDY,
        "itself": Speculation(build(), guesses=3, sampling=GREEDY),
        "look-up": Speculation(guesses=3, sampling=GREEDY),
    }
    for name, policy in policies.items():
        model.forwards = 0
        (row,) = generate(model, [prompt], max_new_tokens=n, policy=policy, ignore_eos=True)
        assert row.n_generated == n
        used[name] = model.forwards
    assert used["itself"] <= used["plain"] - 7, "a draft equal to the model is always right"
    assert used["look-up"] <= used["plain"]


# --- the law of what is drawn -----------------------------------------------------------------------------------------

VOCAB, N_TEXTS, STEPS = 4, 3000, 4
CRITICAL = 37.7  # χ² with 15 degrees of freedom exceeds it once in a thousand times, with fewer more rarely


def law_of_two(model: Decoder, prompt: list[int], sampling: Sampling) -> Tensor:
    """p(second, third token), the first summed out, from plain forwards over whole texts: (vocab, vocab)."""
    law = torch.zeros(VOCAB, VOCAB, dtype=torch.double)
    with torch.inference_mode():
        for first, second in product(range(VOCAB), repeat=2):
            logits = model(torch.tensor([[*prompt, first, second]]))[0, len(prompt) - 1 :]
            p = sampling.probabilities(logits[None])[0].double()
            law[second] += p[0, first] * p[1, second] * p[2]
    return law


def chi_squared(policy: Policy, model: Decoder, sampling: Sampling, seed: int = 0) -> float:
    prompt = [1, 3]
    texts = generate(model, [prompt], max_new_tokens=STEPS, policy=policy, n=N_TEXTS, seed=seed)
    counts: Counter[tuple[int, ...]] = Counter((completion.ids[1], completion.ids[2]) for completion in texts)
    law = law_of_two(model, prompt, sampling)
    cells = [(counts[pair], N_TEXTS * float(law[pair])) for pair in product(range(VOCAB), repeat=2)]
    rare = [cell for cell in cells if cell[1] < 5]  # too few for the normal approximation, unless together
    cells = [cell for cell in cells if cell[1] >= 5]
    if sum(expected for _, expected in rare) >= 5:
        cells.append((sum(seen for seen, _ in rare), sum(expected for _, expected in rare)))
    return sum((seen - expected) ** 2 / expected for seen, expected in cells)


@pytest.fixture(scope="module")
def two() -> tuple[Decoder, Decoder]:
    """A model and a draft that disagree."""
    return random_decoder(VOCAB, 3), random_decoder(VOCAB, 4)


WARMER = Sampling(temperature=1.3, top_k=3, top_p=1.0)


@pytest.mark.parametrize("sampling", [PLAIN, WARMER], ids=["plain", "filtered"])
def test_two_tokens_of_a_drafted_text_follow_the_model(two: tuple[Decoder, Decoder], sampling: Sampling) -> None:
    model, draft = two
    assert chi_squared(Speculation(draft, guesses=2, sampling=sampling), model, sampling) < CRITICAL


def test_control_plain_sampling_passes_and_the_draft_alone_does_not(two: tuple[Decoder, Decoder]) -> None:
    model, draft = two
    assert chi_squared(PLAIN, model, PLAIN) < CRITICAL
    texts = generate(draft, [[1, 3]], max_new_tokens=STEPS, sampling=PLAIN, n=N_TEXTS)
    law = law_of_two(model, [1, 3], PLAIN)
    counts = Counter((completion.ids[1], completion.ids[2]) for completion in texts)
    gap = [abs(counts[a, b] / N_TEXTS - float(law[a, b])) for a, b in product(range(VOCAB), repeat=2)]
    assert max(gap) > 0.03, "the two models differ by enough to be told apart"


def always(token: int, p: Tensor, q: Tensor, generator: torch.Generator) -> int:
    return token


def without_residual(token: int, p: Tensor, q: Tensor, generator: torch.Generator) -> int:
    """A refused guess is replaced by a draw from p, instead of what p has and q lacks."""
    if float(torch.rand((), generator=generator)) * float(q[token]) < float(p[token]):
        return token
    return int(draw(p.log()[None], [generator]))


@pytest.mark.parametrize("rule", [always, without_residual])
def test_control_a_wrong_rule_of_acceptance_is_seen(
    two: tuple[Decoder, Decoder], rule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, draft = two
    monkeypatch.setattr(speculate, "accept", rule)
    assert chi_squared(Speculation(draft, guesses=2, sampling=PLAIN), model, PLAIN) > 2 * CRITICAL


def test_the_rule_of_acceptance_gives_p_whatever_q_is() -> None:
    """Summed over what is guessed and drawn, by many draws at once."""
    p, q = torch.tensor([0.6, 0.3, 0.1, 0.0]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    generator = torch.Generator().manual_seed(0)
    n = 4000
    drawn = Counter(speculate.accept(int(draw(q.log()[None], [generator])), p, q, generator) for _ in range(n))
    assert drawn[3] == 0
    chi = sum((drawn[token] - n * float(p[token])) ** 2 / (n * float(p[token])) for token in range(3))
    assert chi < 13.8  # 2 degrees of freedom, once in a thousand times


def test_equal_distributions_accept_every_guess() -> None:
    p = torch.tensor([0.25, 0.75])
    generator = torch.Generator().manual_seed(0)
    assert all(speculate.accept(token, p, p, generator) == token for token in [0, 1] * 50)


# --- one row, many rows, streams, conversations -----------------------------------------------------------------------


@few
@given(st.lists(st.text(st.sampled_from("abc "), max_size=8), min_size=2, max_size=4), st.integers(0, 9), st.booleans())
def test_a_row_of_a_batch_draws_what_it_draws_alone(prompts: list[str], seed: int, drafted: bool) -> None:
    policy = Speculation(DRAFT if drafted else None, guesses=3, sampling=WARM)
    together = generate(MODELS["rotary"], prompts, max_new_tokens=9, policy=policy, seed=seed)
    for i, prompt in enumerate(prompts):
        if prompt not in prompts[:i]:
            (alone,) = generate(MODELS["rotary"], [prompt], max_new_tokens=9, policy=policy, seed=seed)
            assert alone.ids == together[i].ids


def test_streamed_pieces_join_to_the_speculated_text() -> None:
    policy = Speculation(DRAFT, sampling=WARM)
    (whole,) = generate(MODELS["rotary"], "ab", max_new_tokens=15, policy=policy, ignore_eos=True)
    pieces = list(stream(MODELS["rotary"], "ab", max_new_tokens=15, policy=policy, ignore_eos=True))
    assert "".join(pieces) == whole.text


def test_a_draft_of_a_shorter_context_stops_guessing() -> None:
    model, short = random_decoder(12, 1), random_decoder(12, 1, context=6)
    policy = Speculation(short, sampling=GREEDY)
    prompts = [[1, 2, 3], [1] * 9]
    plain = generate(model, prompts, max_new_tokens=20, sampling=GREEDY)
    assert ids_of(generate(model, prompts, max_new_tokens=20, policy=policy)) == ids_of(plain)


# --- what cannot be served is refused by name, before anything is read ------------------------------------------------


class Others(Pieces):
    """As many tokens, but other ones."""

    def bytes_of(self, token: int) -> bytes:
        return super().bytes_of(token) if token != 3 else b"?"


def with_tokenizer(tokenizer: Any) -> Decoder:
    model = build()
    model.tokenizer = tokenizer
    return model


def encoder() -> Encoder:
    stack = StackSpec(8, (BlockSpec(AttentionSpec(2, 2, 4, Full()), FFNSpec(8), LayerNormSpec()),), LayerNormSpec())
    return Encoder(EncoderSpec(17, 24, EmbedSpec(), stack))


REFUSED: dict[str, tuple[Any, str]] = {
    "a draft with another number of tokens": (
        lambda: {"policy": Speculation(random_decoder(12, 0))},
        r"the draft's vocabulary has 12 tokens, the model's 15",
    ),
    "a draft with other tokens": (
        lambda: {"policy": Speculation(with_tokenizer(Others()))},
        r"another vocabulary than the model: token 3 is b'\?'",
    ),
    "a draft that cannot write": (
        lambda: {"policy": Speculation(encoder())},
        "the draft is an instance of Encoder, the model of Decoder",
    ),
    "more texts than beams": (lambda: {"policy": Beams(2), "n": 3}, "3 texts of each prompt, but 2 beams"),
    "two policies": (lambda: {"policy": Beams(2), "sampling": GREEDY}, "both sampling and policy"),
    "no text": (lambda: {"n": 0}, "n is 0"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_impossible_policies_are_refused_before_anything_is_read(options: Any, message: str) -> None:
    model = build(kind=Counting)
    with pytest.raises(UsageError, match=message):
        generate(model, "ab", **options())
    assert model.forwards == 0


@pytest.mark.parametrize("make", [
    lambda: Beams(0), lambda: Beams(True), lambda: Beams(2, float("nan")),
    lambda: Beams(2, repetition_penalty=0.0),
    lambda: Speculation(guesses=0), lambda: Speculation(longest=0),
])  # fmt: skip
def test_values_out_of_range_are_refused_by_name(make: Any) -> None:
    with pytest.raises(UsageError, match="it must be"):
        make()


def test_a_search_is_not_streamed() -> None:
    with pytest.raises(UsageError, match="Beams knows the text only when it is complete"):
        stream(MODELS["rotary"], "ab", policy=Beams(2))


def test_an_encoder_does_not_write_by_any_policy() -> None:
    for policy in (Beams(2), Speculation(), PLAIN):
        with pytest.raises(UsageError, match="an encoder reads whole texts and cannot write"):
            generate(encoder(), [[1, 2]], policy=policy)
