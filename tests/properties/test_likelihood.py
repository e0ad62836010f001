"""How likely a text is: sums of log-probabilities, batched as alone, and exact for prefix language models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EXAMPLE, VOCAB, build, encoder_decoder_specs, specs, with_mask

from pellucid.batch import Tokens
from pellucid.engine.likelihood import Likelihood, likelihoods, rolling
from pellucid.errors import DataError, UsageError
from pellucid.predicates import PrefixPart
from pellucid.spec import Causal, EncoderDecoderSpec, EncoderSpec, Mask, Prefix

few = settings(max_examples=examples(15))
CONTEXT = 24
texts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=4)
PREFIXES = [Causal(), Causal() | Prefix(4), Causal() | PrefixPart(), Causal() | Prefix(3) | PrefixPart()]


def by_hand(model: Any, context: list[int], continuation: list[int]) -> Likelihood:
    """One token after the other, each predicted by a forward that has read nothing behind it."""
    each, greedy, pair = list[float](), True, isinstance(model.spec, EncoderDecoderSpec)
    before = [model.spec.start_id] if pair else list(context)
    for n, token in enumerate(continuation):
        ids = torch.tensor([before + continuation[:n]])
        part = (torch.arange(ids.shape[1]) < len(context)).long()[None]
        with torch.no_grad():
            if pair:
                logits = model(torch.tensor([context]), ids)
            else:
                logits = model(ids, Tokens(Tokens.plain(ids.shape[0], ids.shape[1]).pos, part=part))
        log_p = logits[0, -1].double().log_softmax(-1)
        each.append(float(log_p[token]))
        greedy = greedy and int(log_p.argmax()) == token
    return Likelihood(tuple(each), greedy)


def assert_same(got: list[Likelihood], expected: list[Likelihood]) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.each == pytest.approx(theirs.each, abs=1e-6)
        assert ours.greedy == theirs.greedy and ours.total == pytest.approx(theirs.total, abs=1e-5)


@given(specs() | encoder_decoder_specs(), pairs, st.sampled_from([1, 7, 1000]))
@few
def test_continuation_likelihood_equals_one_token_after_the_other(spec: Any, some: Any, batch_tokens: int) -> None:
    model = build(spec)
    assert_same(likelihoods(model, some, batch_tokens=batch_tokens), [by_hand(model, *pair) for pair in some])


@given(st.sampled_from(PREFIXES), pairs)
@few
def test_prefix_language_model_takes_the_context_as_its_prefix(mask: Mask, some: Any) -> None:
    """And where the context is shorter than a fixed prefix, no token is predicted by one that sees it."""
    model = build(with_mask(EXAMPLE, mask))
    assert_same(likelihoods(model, some), [by_hand(model, *pair) for pair in some])


def test_control_one_forward_of_a_fixed_prefix_sees_what_it_predicts() -> None:
    model = build(with_mask(EXAMPLE, Causal() | Prefix(4)))
    with torch.no_grad():
        leaked = model(torch.tensor([[1, 2, 3, 4]])).double().log_softmax(-1)[0, 0, 2]
    assert abs(float(leaked) - likelihoods(model, [([1], [2, 3, 4, 5])])[0].each[0]) > 1e-3


def test_greedy_continuation_is_called_greedy() -> None:
    model = build(EXAMPLE)
    with torch.no_grad():
        best = int(model(torch.tensor([[1, 2]]))[0, -1].argmax())
    right, wrong = likelihoods(model, [([1, 2], [best]), ([1, 2], [(best + 1) % VOCAB])])
    assert right.greedy and not wrong.greedy and right.total > wrong.total


@given(st.lists(st.integers(0, VOCAB - 1), max_size=60), st.sampled_from([None, 1, 5, CONTEXT]))
@few
def test_rolling_likelihood_scores_each_token_once_from_enough_before_it(text: list[int], stride: int | None) -> None:
    model = build(EXAMPLE)
    (got,) = rolling(model, [text], before=3, stride=stride)
    inputs, step, expected, start = [3, *text], stride or CONTEXT, list[float](), 0
    while len(expected) < len(text):
        window = torch.tensor([inputs[start : start + CONTEXT]])
        with torch.no_grad():
            log_p = model(window).double().log_softmax(-1)[0]
        end = min(start + CONTEXT, len(text))
        expected += [float(log_p[t - start, text[t]]) for t in range(len(expected), end)]
        start += step
    assert got.each == pytest.approx(expected, abs=1e-6)


def test_rolling_likelihood_of_short_texts_is_that_of_a_continuation() -> None:
    model, some = build(EXAMPLE), [[1, 2, 3], [4], [], [5, 6]]
    got = rolling(model, some, before=7)
    assert_same([got[0], got[1], got[3]], likelihoods(model, [([7], text) for text in some if text]))
    assert got[2].each == () and got[2].total == 0.0


def test_mode_of_the_model_is_left_as_it_was() -> None:
    model = build(EXAMPLE).train()
    likelihoods(model, [([1], [2])])
    assert model.training and all(module.training for module in model.modules())


def test_pairs_without_a_likelihood_are_refused() -> None:
    model = build(EXAMPLE)
    for pair, problem in ((([], [1]), "its context has no tokens"), (([1], []), "its continuation has no tokens")):
        with pytest.raises(DataError, match=f"pair 1: {problem}"):
            likelihoods(model, [([1], [2]), pair])
    with pytest.raises(DataError, match="25 tokens to read, but the model's context is 24"):
        likelihoods(model, [([1] * 20, [2] * 6)])
    with pytest.raises(DataError, match="token id 99 is outside the vocabulary"):
        likelihoods(model, [([99], [2])])
    with pytest.raises(UsageError, match="stride=25 is not in 1…24"):
        rolling(model, [[1]], before=0, stride=25)
    encoder = build(
        EncoderSpec(**{name: getattr(EXAMPLE, name) for name in ("vocab_size", "context", "stack", "embed")})
    )
    for call in (lambda: likelihoods(encoder, [([1], [2])]), lambda: rolling(encoder, [[1]], before=0)):
        with pytest.raises(UsageError):
            call()
