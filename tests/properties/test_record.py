"""Activations recorded over many batches are those of each forward; measures of a batch are those of each row."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EXAMPLE, build, close, ids, specs
from torch import Tensor

from pellucid.batch import IGNORE, Batch, Tokens
from pellucid.errors import TapError, UsageError
from pellucid.interpret.measures import cosines, expert_load, lengths, likeness, shares, strongest_links
from pellucid.interpret.record import capture, record
from pellucid.nn.models import Decoder, EncoderDecoder
from pellucid.nn.residual import Sublayer
from pellucid.spec import (
    AttentionSpec,
    BlockSpec,
    DecoderSpec,
    EmbedSpec,
    EncoderDecoderSpec,
    EncoderSpec,
    FFNSpec,
    Full,
    RMSNormSpec,
    StackSpec,
)

few = settings(max_examples=examples(10))
TEXT = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8], [9, 7, 9, 3, 2, 3]])
VALID = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]]).bool()
POINTS = ["embed", "blocks.*.resid_post", "blocks.0.attn.z", "blocks.1.attn.pattern"]


def padded() -> Batch:
    labels = torch.where(VALID, TEXT, IGNORE).roll(-1, 1)
    labels[:, -1] = IGNORE
    return Batch(TEXT, Tokens.padded(VALID), labels)


@given(specs().map(build), st.lists(ids(), min_size=1, max_size=3))
@few
def test_recorded_activations_are_those_of_each_forward(model: Decoder, texts: list[Tensor]) -> None:
    recorded = list(record(model, texts, "*"))
    assert len(recorded) == len(texts)
    for text, seen in zip(texts, recorded, strict=True):
        with torch.no_grad(), model.taps(read="*") as acts:
            model(text)
        assert list(seen) == list(acts) and torch.equal(seen.batch.ids, text)
        for name, x in acts.items():
            assert torch.equal(seen[name], x) and not seen[name].requires_grad


def test_tokens_are_all_but_padding_rows_after_each_other() -> None:
    model, batch = build(EXAMPLE), padded()
    (whole,), (seen,) = (list(record(model, [batch], POINTS, positions=p)) for p in (None, "tokens"))
    for name in ("embed", "blocks.0.resid_post"):
        assert torch.equal(seen[name], whole[name][VALID])
    assert torch.equal(seen["blocks.0.attn.z"], whole["blocks.0.attn.z"].transpose(1, 2)[VALID])  # (tokens, heads, dim)
    pattern = whole["blocks.1.attn.pattern"].transpose(1, 2)[VALID]
    assert torch.equal(seen["blocks.1.attn.pattern"], pattern)  # (tokens, heads, key)


def test_a_function_chooses_tokens_and_a_slice_or_numbers_choose_positions() -> None:
    model, batch = build(EXAMPLE), padded()
    (whole,) = record(model, [batch], POINTS)
    (fives,) = record(model, [batch], POINTS, positions=lambda batch: batch.ids == 5)
    assert torch.equal(fives["embed"], whole["embed"][TEXT == 5])
    for positions, wanted in ((slice(1, 5, 2), [1, 3]), ([5, 0, -2], [5, 0, 4])):
        (some,) = record(model, [batch], POINTS, positions=positions)
        assert torch.equal(some["embed"], whole["embed"][:, wanted])
        assert torch.equal(some["blocks.0.attn.z"], whole["blocks.0.attn.z"][:, :, wanted])


def test_positions_that_a_row_does_not_have_are_refused() -> None:
    with pytest.raises(UsageError, match="position 6 of embed"):
        next(record(build(EXAMPLE), [TEXT], "embed", positions=[0, 6]))
    with pytest.raises(TapError, match="blocks\\.9"):
        next(record(build(EXAMPLE), [TEXT], "blocks.9.resid_post"))


def test_gradients_are_those_of_the_models_loss_or_of_any_other() -> None:
    model, batch = build(EXAMPLE), padded()
    with model.taps(read=POINTS[:2]) as acts:
        loss = model.nll_sum(batch)
    wanted = dict(zip(acts, torch.autograd.grad(loss, list(acts.values())), strict=True))
    for asked in (True, lambda model, batch: model.nll_sum(batch)):
        (seen,) = record(model, [batch], POINTS[:2], gradients=asked)
        assert seen.gradients is not None
        for name, gradient in wanted.items():
            close(seen.gradients[name], gradient)
            assert not seen[name].requires_grad
    (seen,) = record(model, [batch], POINTS[:2], gradients=True, positions="tokens", reduce=lambda x: x.mean(0))
    assert seen.gradients is not None
    close(seen.gradients["embed"], wanted["embed"][VALID].mean(0))
    assert all(p.grad is None for p in model.parameters())


def test_dtype_is_that_of_what_is_floating_point() -> None:
    model = build(EXAMPLE)
    (seen,) = record(model, [TEXT], POINTS, dtype=torch.bfloat16, device="cpu")
    assert all(x.dtype == torch.bfloat16 for x in seen.values())


def test_recorded_activations_can_be_trained_on() -> None:
    """What comes out of inference mode cannot be saved for a backward pass: probes are fitted to what is recorded."""
    (seen,) = record(build(EXAMPLE), [TEXT], "blocks.0.resid_post", positions="tokens")
    probe = torch.nn.Linear(8, 1, dtype=torch.float64)
    probe(seen["blocks.0.resid_post"]).square().sum().backward()
    assert probe.weight.grad is not None


def test_only_one_batch_is_alive_at_a_time() -> None:
    alive: list[weakref.ref[Any]] = []

    def batches() -> Iterator[Tensor]:
        for i in range(6):
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 1, "an earlier batch is still held"
            yield (TEXT + i) % 11

    for seen in record(build(EXAMPLE), batches(), "blocks.*"):
        alive.append(weakref.ref(seen["blocks.0.resid_post"]))
        del seen


def test_a_model_is_not_listened_to_between_batches_and_keeps_its_modes() -> None:
    model = build(EXAMPLE).train()
    for module in model.modules():
        if isinstance(module, Sublayer):
            module.dropout = 0.5
    wanted = capture(model.eval(), TEXT, ["final_norm"])["final_norm"]
    model.train()
    for seen in record(model, [TEXT, TEXT], "final_norm"):
        model(TEXT[:1])
        assert torch.equal(seen["final_norm"], wanted)
        assert all(module.training for module in model.modules())


def test_both_sides_of_an_encoder_decoder_are_recorded_by_their_own_tokens() -> None:
    def block(**options: Any) -> BlockSpec:
        return BlockSpec(AttentionSpec(2, 2, 4, **options), FFNSpec(16), RMSNormSpec())

    encoder = EncoderSpec(11, 8, EmbedSpec(), StackSpec(8, (block(mask=Full()),), RMSNormSpec()), None)
    writer = BlockSpec(AttentionSpec(2, 2, 4), FFNSpec(16), RMSNormSpec(), cross=AttentionSpec(2, 2, 4, Full()))
    decoder = DecoderSpec(11, 8, EmbedSpec(), StackSpec(8, (writer,), RMSNormSpec()))
    model = build(EncoderDecoderSpec(encoder, decoder, start_id=0))
    assert isinstance(model, EncoderDecoder)
    source, text = TEXT[:2, :5], TEXT[:2, :3]
    points = ["encoder.final_norm", "decoder.final_norm", "decoder.blocks.0.cross.pattern"]
    (seen,) = record(model, [(source, text)], points, positions="tokens")
    assert [tuple(x.shape) for x in seen.values()] == [(10, 8), (6, 8), (6, 2, 5)] or len(seen) == 3
    assert seen["encoder.final_norm"].shape == (10, 8) and seen["decoder.final_norm"].shape == (6, 8)
    assert seen["decoder.blocks.0.cross.pattern"].shape == (6, 2, 5)
    with pytest.raises(UsageError, match=r"decoder\.blocks\.0\.cross\.k has 5 positions, and the batch 3"):
        next(record(model, [(source, text)], "decoder.blocks.0.cross.k", positions="tokens"))
    with pytest.raises(UsageError, match="needs something to read"):
        next(record(model, [text], points))


# --- measures --------------------------------------------------------------------------------------------------------


def patterns(batch: int = 3, heads: int = 4, time: int = 7, causal: bool = True) -> Tensor:
    scores = torch.randn(batch, heads, time, time, generator=torch.Generator().manual_seed(0))
    hidden = torch.ones(time, time, dtype=torch.bool).triu(1) if causal else torch.zeros(time, time, dtype=torch.bool)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1)


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("time", [1, 2, 3, 5, 9])
def test_shares_are_means_over_queries_that_have_a_choice(both_ways: bool, time: int) -> None:
    pattern = patterns(time=time, causal=not both_ways)
    found = shares(pattern, both_ways=both_ways)
    queries = range(2, time - 2) if both_ways and time > 4 else range(min(2, time - 1), time)
    for row in range(3):
        for head in range(4):
            p = pattern[row, head]
            wanted = {
                "first": [p[q, 0] for q in queries],
                "previous": [p[q, max(q - 1, 0)] for q in queries],
                "itself": [p[q, q] for q in queries],
                "following": [p[q, min(q + 1, time - 1)] if both_ways else torch.tensor(0.0) for q in queries],
                "last": [p[q, -1] if both_ways else torch.tensor(0.0) for q in queries],
            }
            for name, values in wanted.items():
                close(getattr(found, name)[row, head], torch.stack(values).mean())


@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("n_keys", [2, 5])
def test_the_strongest_link_is_the_largest_weight_that_counts(
    itself: bool, first: bool, last: bool, n_keys: int
) -> None:
    pattern = torch.rand(2, 3, 4, n_keys, generator=torch.Generator().manual_seed(1))
    links = strongest_links(pattern, itself=itself, first=first, last=last)
    for row in range(2):
        for head in range(3):
            weights = {
                (q, k): float(pattern[row, head, q, k])
                for q in range(4)
                for k in range(n_keys)
                if (itself or q != k) and (first or k != 0 or n_keys < 3) and (last or k != n_keys - 1 or n_keys < 3)
            }
            best = max(weights, key=lambda place: weights[place])
            assert (int(links.query[row, head]), int(links.key[row, head])) == best
            assert float(links.weight[row, head]) == pytest.approx(weights[best])


def test_lengths_cosines_and_likeness_are_those_of_their_definitions() -> None:
    x, vector = torch.randn(2, 5, 8), torch.randn(2, 8)
    close(lengths(x), x.square().sum(-1).sqrt())
    close(cosines(x), torch.cosine_similarity(x[:, :, None], x[:, None], dim=-1))
    close(likeness(x, vector), torch.cosine_similarity(x, vector[:, None].expand_as(x), dim=-1))
    assert lengths(x.bfloat16()).dtype == torch.float32


def test_the_load_of_experts_is_their_share_of_a_rows_choices() -> None:
    load = expert_load(torch.tensor([[[0, 1], [0, 2]], [[3, 3], [3, 0]]]), 4)
    assert load.tolist() == [[0.5, 0.25, 0.25, 0.0], [0.25, 0.0, 0.0, 0.75]]
