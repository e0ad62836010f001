"""An encoder and a decoder of any kind, together: cached, padded, packed, batched, tapped, saved, shared, trained."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    CONTEXT,
    EXAMPLE,
    VOCAB,
    as_encoder,
    build,
    chunks,
    classifiers,
    close,
    encoder_decoder_specs,
    encoder_decoders,
    encoder_specs,
    ids,
    masked_heads,
    masks,
    poolers,
    specs,
    taggers,
)
from torch import Tensor
from torch.nn import functional as F

import pellucid
from pellucid.batch import IGNORE, Batch, Source, Tokens
from pellucid.checkpoints.native import load_model, save_model
from pellucid.errors import DataError, UsageError
from pellucid.nn.init import initialise
from pellucid.nn.models import Decoder, Encoder, EncoderDecoder
from pellucid.spec import (
    AlignmentSpec,
    AttentionSpec,
    AttentiveRecurrentSpec,
    BlockSpec,
    DecoderSpec,
    EmbedSpec,
    EncoderDecoderSpec,
    EncoderSpec,
    Full,
    GatedFFNSpec,
    LearnedSpec,
    ModelSpec,
    RecurrentSpec,
    RMSNormSpec,
    StackSpec,
)
from pellucid.taps import Edit
from pellucid.train.objectives import nll
from pellucid.train.optim import build_optimizers
from pellucid.train.step import accumulate, step

few = settings(max_examples=examples(12))
FULL = AttentionSpec(4, 2, 4, Full())
READS = replace(
    as_encoder(EXAMPLE),
    head=None,
    stack=replace(EXAMPLE.stack, blocks=tuple(replace(block, mixer=FULL) for block in EXAMPLE.stack.blocks)),
)
WRITES = replace(
    EXAMPLE, stack=replace(EXAMPLE.stack, blocks=tuple(replace(block, cross=FULL) for block in EXAMPLE.stack.blocks))
)
PLAIN = EncoderDecoderSpec(READS, WRITES, start_id=0)
Rows = list[Tensor]


@st.composite
def spread(draw: st.DrawFn, rows: Rows) -> tuple[Tensor, Tensor]:
    """The rows with padding before, between and behind, (batch, time), and where their tokens are."""
    time = max(map(len, rows)) + draw(st.integers(0, 3))
    kept = [draw(st.permutations([True] * len(row) + [False] * (time - len(row)))) for row in rows]
    valid, text = torch.tensor(kept), torch.full((len(rows), time), VOCAB - 1)
    for i, row in enumerate(rows):
        text[i, valid[i]] = row
    return text, valid


@st.composite
def pairs(draw: st.DrawFn, max_length: int = 6) -> tuple[Rows, Rows]:
    """What is read and what is written, row by row, of several lengths."""
    row = ids(st.just(1), max_length).map(lambda text: text[0])
    n = draw(st.integers(1, 3))
    return draw(st.lists(row, min_size=n, max_size=n)), draw(st.lists(row, min_size=n, max_size=n))


def logits(model: EncoderDecoder, *arguments: Any) -> Tensor:
    with torch.no_grad():
        return model(*arguments)


def alone(model: EncoderDecoder, source: Tensor, target: Tensor) -> Tensor:
    """Logits (time, vocab) of one pair, by itself."""
    return logits(model, source[None], target[None])[0]


# --- what stands beside a pair changes nothing ------------------------------------------------------------------------


@given(encoder_decoders, pairs(), st.data())
@settings(max_examples=examples(20))
def test_padding_and_other_rows_change_nothing(
    model: EncoderDecoder, drawn: tuple[Rows, Rows], data: st.DataObject
) -> None:
    """On both sides, anywhere: so a batch is its rows, and a padded source the source."""
    (source, read), (text, written) = (data.draw(spread(rows)) for rows in drawn)
    together = logits(model, source, text, Tokens.padded(read), Tokens.padded(written))
    assert together.isfinite().all()
    for i, pair in enumerate(zip(*drawn, strict=True)):
        close(together[i, written[i]], alone(model, *pair))


def packed(rows: Rows, room: int) -> tuple[Tensor, Tokens]:
    """The documents one after the other in one row, padding behind."""
    seg = torch.cat([torch.full((len(row),), i) for i, row in enumerate(rows)] + [torch.full((room,), -1)])
    return torch.cat([*rows, torch.zeros(room, dtype=torch.long)])[None], Tokens.packed(seg[None])


@given(encoder_decoders, pairs(), st.integers(0, 2), st.integers(0, 2))
@settings(max_examples=examples(20))
def test_packed_pairs_are_separate(model: EncoderDecoder, drawn: tuple[Rows, Rows], a: int, b: int) -> None:
    """Document i of what is written reads document i of what is read, and no other."""
    (source, places), (text, written) = packed(drawn[0], a), packed(drawn[1], b)
    got = logits(model, source, text, places, written)[0]
    apart = torch.cat([alone(model, *pair) for pair in zip(*drawn, strict=True)])
    close(got[: len(apart)], apart)
    assert got.isfinite().all()


@given(encoder_decoders, ids(st.just(2), max_time=4))
@few
def test_an_empty_source_is_finite(model: EncoderDecoder, text: Tensor) -> None:
    """A row of padding has nothing to be read: zeros, forward and backward, not NaN; and the other row sees its own."""
    places = Tokens.padded(torch.tensor([[True] * 3, [False] * 3]))
    source = torch.tensor([[1, 2, 3]] * 2)
    out = model(source, text, places)
    close(out[0], alone(model, source[0], text[0]))
    grads = torch.autograd.grad(out.sum(), list(model.parameters()), allow_unused=True)
    assert out.isfinite().all() and all(g is None or g.isfinite().all() for g in grads)


# --- who sees whom ----------------------------------------------------------------------------------------------------


def goes_past(model: EncoderDecoder) -> bool:
    """Whether every layer that writes adds to its input; one that replaces it may hide all that came before."""
    return all(block.residual.skip != 0 for block in model.spec.decoder.stack.blocks)


@given(encoder_decoders, ids(max_time=5), ids(min_time=2), st.data())
@few
def test_nothing_of_the_target_comes_from_the_future(
    model: EncoderDecoder, source: Tensor, text: Tensor, data: st.DataObject
) -> None:
    source = source[:1].expand(len(text), -1)
    t = data.draw(st.integers(0, text.shape[1] - 2))
    with model.taps(read="decoder.embed") as acts:
        out = model(source, text)
    (grad,) = torch.autograd.grad(out[:, : t + 1].square().sum(), acts["decoder.embed"])
    assert grad.isfinite().all() and not grad[:, t + 1 :].any()
    assert grad[:, t].any() or not goes_past(model)
    other = text.clone()
    other[:, t + 1 :] = (other[:, t + 1 :] + 1) % VOCAB
    assert (logits(model, source, other) - out)[:, : t + 1].abs().max() <= 1e-9


@given(encoder_decoders, ids(st.just(2), max_time=6), ids(st.just(2), max_time=6))
@few
def test_everything_that_was_read_may_be_seen(model: EncoderDecoder, source: Tensor, text: Tensor) -> None:
    """From the first token that is written on, all of the memory matters: no mask of the decoder's holds for it."""
    with model.taps(read="encoder.final_norm") as acts:
        out = model(source, text)
    (grad,) = torch.autograd.grad(out[:, 0].square().sum(), acts["encoder.final_norm"])
    assert grad.isfinite().all() and (grad.any(-1).all() or not goes_past(model))


def silenced(model: EncoderDecoder) -> dict[str, Edit]:
    """Edits that leave nothing of what the decoder reads from the encoder."""
    points = [name for name in model.point_names() if name.startswith("decoder.") and reads(name)]
    return dict.fromkeys(points, torch.zeros_like)


def reads(name: str) -> bool:
    return name.endswith((".cross_out", ".rnn.z"))


@given(encoder_decoders, ids(st.just(1), max_time=5, min_time=2), ids(st.just(1), max_time=5))
@few
def test_the_source_comes_in_by_cross_attention_alone(model: EncoderDecoder, source: Tensor, text: Tensor) -> None:
    edits = silenced(model)
    assert edits
    with model.taps(edit=edits):
        assert torch.equal(logits(model, source, text), logits(model, (source + 1) % VOCAB, text))


def test_control_the_source_matters() -> None:
    model, text = build(PLAIN), torch.tensor([[0, 4, 2]])
    source = torch.tensor([[1, 2, 3]])
    assert (logits(model, source, text) - logits(model, (source + 1) % VOCAB, text)).abs().max() > 1e-3


# --- over a cache -----------------------------------------------------------------------------------------------------


@given(encoder_decoders, pairs(), ids(st.just(3), max_time=9), st.data())
@settings(max_examples=examples(20))
def test_cached_is_uncached(model: EncoderDecoder, drawn: tuple[Rows, Rows], text: Tensor, data: st.DataObject) -> None:
    """In chunks of any lengths, ragged sources in the cache: read once, and asked ever after."""
    source, read = data.draw(spread(drawn[0]))
    text, places = text[: len(source)], Tokens.padded(read)
    whole = logits(model, source, text, places)
    with torch.no_grad():
        cache = model.new_cache(source, places, text.shape[1] + data.draw(st.integers(0, 2)))
        parts = text.split(data.draw(chunks(text.shape[1])), 1)
        got = [model.decoder(parts[0], cache=cache)]
        kept = [layer.tensors for layer in cache.cross]
        got += [model.decoder(part, cache=cache) for part in parts[1:]]
    close(torch.cat(got, 1), whole)
    assert all(a is b for a, b in zip(kept, (layer.tensors for layer in cache.cross), strict=True))
    readers = [block.reads_memory for block in model.spec.decoder.stack.blocks]
    assert [tensors is not None for tensors in kept] == readers


@given(encoder_decoders, pairs(), ids(st.just(3), max_time=4), st.data())
@few
def test_a_ragged_beginning_goes_on_row_by_row(
    model: EncoderDecoder, drawn: tuple[Rows, Rows], more: Tensor, data: st.DataObject
) -> None:
    (source, read), (text, written) = (data.draw(spread(rows)) for rows in drawn)
    more = more[: len(text)]
    with torch.no_grad():
        cache = model.new_cache(source, Tokens.padded(read), text.shape[1] + more.shape[1])
        first = model.decoder(text, Tokens.padded(written), cache)
        then = torch.cat([model.decoder(part, cache=cache) for part in more.split(1, 1)], 1)
    for i, (was_read, was_written) in enumerate(zip(*drawn, strict=True)):
        close(torch.cat((first[i, written[i]], then[i])), alone(model, was_read, torch.cat((was_written, more[i]))))


def test_control_a_memory_that_is_forgotten_is_seen() -> None:
    model, source, text = build(PLAIN), torch.tensor([[1, 2, 3]]), torch.tensor([[0, 4, 2]])
    whole = logits(model, source, text)
    with torch.no_grad():
        cache, other = (model.new_cache(s, capacity=3) for s in (source, (source + 1) % VOCAB))
        first = model.decoder(text[:, :1], cache=cache)
        model.decoder(text[:, :1], cache=other)
        cache.cross = other.cross
        then = model.decoder(text[:, 1:], cache=cache)
    close(first, whole[:, :1])
    assert (then - whole[:, 1:]).abs().max() > 1e-3


# --- generation -------------------------------------------------------------------------------------------------------


def greedy(model: EncoderDecoder, source: list[int], n: int) -> list[int]:
    """Without a cache: everything again for every token."""
    written = [model.spec.start_id]
    for _ in range(n):
        written.append(int(alone(model, torch.tensor(source), torch.tensor(written))[-1].argmax()))
    return written[1:]


sources = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6), min_size=1, max_size=3)


@given(encoder_decoders, sources, st.integers(1, 8))
@few
def test_greedy_over_a_cache_is_greedy_by_whole_forwards(
    model: EncoderDecoder, prompts: list[list[int]], n: int
) -> None:
    got = pellucid.generate(model, prompts, max_new_tokens=n, sampling=pellucid.Sampling(temperature=0.0))
    for prompt, completion in zip(prompts, got, strict=True):
        assert completion.ids == greedy(model, prompt, n)
        assert completion.n_prompt == len(prompt) and completion.finish_reason == "length"


@given(encoder_decoders, sources, st.integers(0, 9), st.sampled_from([0.0, 1.0]))
@few
def test_a_row_of_a_batch_is_the_same_alone(
    model: EncoderDecoder, prompts: list[list[int]], seed: int, temperature: float
) -> None:
    def run(some: list[list[int]]) -> list[Any]:
        sampling = pellucid.Sampling(temperature=temperature, repetition_penalty=1.2)
        return pellucid.generate(model, some, max_new_tokens=6, seed=seed, sampling=sampling)

    for i, completion in enumerate(run(prompts)):
        if prompts[i] not in prompts[:i]:  # equal prompts are to differ
            (single,) = run([prompts[i]])
            assert completion.ids == single.ids
            close(torch.tensor(completion.logprobs), torch.tensor(single.logprobs))


def test_the_context_of_each_side_is_its_own() -> None:
    """The source may be as long as the encoder's, and what is written as long as the decoder's."""
    model = build(replace(PLAIN, encoder=replace(READS, context=CONTEXT + 3)))
    (got,) = pellucid.generate(model, [[1] * (CONTEXT + 3)], max_new_tokens=99)
    assert got.n_generated == CONTEXT and got.finish_reason == "context"
    with pytest.raises(UsageError, match=f"{CONTEXT + 4} tokens long, but the model's context is {CONTEXT + 3}"):
        pellucid.generate(model, [[1] * (CONTEXT + 4)])


def test_impossible_calls_are_refused() -> None:
    model, text = build(PLAIN), torch.tensor([[0, 4, 2]])
    with pytest.raises(DataError, match="nothing from one"):
        model.decoder(text)
    with pytest.raises(DataError, match="give the batch a source"):
        model.nll_sum(Batch(text, Tokens.plain(1, 3), text.roll(-1)))
    with pytest.raises(UsageError, match="cannot write"):
        pellucid.generate(model.encoder, [[1]])
    with pytest.raises(DataError, match="token id 11 is outside"):
        model(torch.tensor([[11]]), text)


# --- taps -------------------------------------------------------------------------------------------------------------


def cross_points(block: BlockSpec) -> set[str]:
    """What a block's attention to the encoder has to hear."""
    if isinstance(block.mixer, AttentiveRecurrentSpec):
        return {f"rnn.{point}" for point in ("pattern", "z", "h")}
    if block.cross is None:
        return set()
    own = ("q", "k", "v") if isinstance(block.cross, AttentionSpec) else ()
    return {f"cross.{point}" for point in (*own, "scores", "pattern", "z")} | {"cross_out"}


@given(encoder_decoders, pairs(), st.data())
@few
def test_both_sides_are_heard_and_unchanged(
    model: EncoderDecoder, drawn: tuple[Rows, Rows], data: st.DataObject
) -> None:
    (source, read), (text, written) = (data.draw(spread(rows)) for rows in drawn)
    call = (source, text, Tokens.padded(read), Tokens.padded(written))
    plain = logits(model, *call)
    with model.taps(read="*") as acts:
        close(logits(model, *call), plain)
    assert list(acts) == model.point_names() and set(acts) <= {
        name for name in model.point_names() if name.startswith(("encoder.", "decoder."))
    }
    for i, block in enumerate(model.spec.decoder.stack.blocks):
        heard = {name.removeprefix(f"decoder.blocks.{i}.") for name in acts if name.startswith(f"decoder.blocks.{i}.")}
        assert cross_points(block) <= heard
        assert ("resid_cross" in heard) == (block.cross is not None and block.ffn is not None)
        kind = next((k for k in ("cross", "rnn") if f"{k}.pattern" in heard), None)
        if kind is None:
            continue
        pattern = acts[f"decoder.blocks.{i}.{kind}.pattern"]  # (batch, heads, query, key)
        assert pattern.shape[0] == len(text) and pattern.shape[2:] == (text.shape[1], source.shape[1])
        at = written[:, None].expand(-1, pattern.shape[1], -1)
        total = pattern.sum(-1)[at]
        close(total, torch.ones_like(total))
        assert not pattern.transpose(-1, -2)[~read[:, None].expand(-1, pattern.shape[1], -1)].any()
    with model.taps(edit={"*": torch.clone}):
        close(logits(model, *call), plain)


@given(encoder_decoders, ids(st.just(1), max_time=5), ids(st.just(1), max_time=5))
@few
def test_branches_add_up_to_the_stream(model: EncoderDecoder, source: Tensor, text: Tensor) -> None:
    with torch.no_grad(), model.taps(read="decoder.blocks.*") as acts:
        model(source, text)
    for i, spec in enumerate(model.spec.decoder.stack.blocks):
        block, skip = model.decoder.blocks[i], spec.residual.skip
        at = {n.removeprefix(f"decoder.blocks.{i}."): x for n, x in acts.items() if f".blocks.{i}." in n}
        if spec.parallel or spec.cross is None:
            continue
        x = block.mixer_norms.out(skip * at["resid_pre"] + at[f"{block.kind}_out"])  # type: ignore[operator]
        torch.testing.assert_close(x, at["resid_mid"])
        x = block.cross_norms.out(skip * x + at["cross_out"])  # type: ignore[operator]
        if spec.ffn is not None:
            torch.testing.assert_close(x, at["resid_cross"])
            x = block.ffn_norms.out(skip * x + at["ffn_out"])  # type: ignore[operator]
        torch.testing.assert_close(x, at["resid_post"])


# --- saved, shared, copied --------------------------------------------------------------------------------------------

any_head = st.one_of(masked_heads, poolers, classifiers, taggers, st.none())


@given(st.one_of(specs(), encoder_specs(masks, any_head), encoder_decoder_specs()))
@few
def test_saved_and_loaded_is_the_same(spec: ModelSpec) -> None:
    model = build(spec).float()
    with TemporaryDirectory() as folder:
        save_model(model, Path(folder))
        again = load_model(Path(folder))
    assert type(again) is type(model) and again.spec == spec and not again.training
    state = model.state_dict()
    assert list(again.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    text = torch.tensor([[3, 1, 4]])
    call = (text, text) if isinstance(model, EncoderDecoder) else (text,)
    with torch.no_grad():
        assert torch.equal(model(*call), again(*call))


@given(encoder_decoder_specs())
@few
def test_a_shared_table_is_one(spec: EncoderDecoderSpec) -> None:
    """One name in what is saved, one parameter in what is trained, and still one after a copy or a cast."""
    model = build(spec)
    for one in (model, copy.deepcopy(model), copy.deepcopy(model).float(), build(spec).to(torch.bfloat16).double()):
        names = [name for name in one.state_dict() if name.endswith("embed.tokens.weight")]
        assert len(names) == (1 if spec.shared_embedding else 2)
        places = [value.data_ptr() for value in one.state_dict().values() if value.numel()]
        assert len(set(places)) == len(places), "no weight has two names"
        tables = one.encoder.embed.tokens.weight, one.decoder.embed.tokens.weight
        assert (tables[0] is tables[1]) == spec.shared_embedding
        assert {p.dtype for p in one.parameters()} == {tables[1].dtype}
    copied = copy.deepcopy(model)
    assert copied.encoder.embed.tokens.weight is not model.encoder.embed.tokens.weight
    source = text = torch.tensor([[3, 1, 4]])
    with torch.no_grad():
        copied.encoder.embed.tokens.weight.mul_(2.0)
        assert torch.equal(copied.decoder.embed.tokens.weight, copied.encoder.embed.tokens.weight) == (
            spec.shared_embedding
        )
        assert torch.equal(copy.deepcopy(model)(source, text), model(source, text))


@given(encoder_decoder_specs().filter(lambda spec: spec.shared_embedding))
@few
def test_both_sides_teach_a_shared_table(spec: EncoderDecoderSpec) -> None:
    model = build(spec)
    source, text = torch.tensor([[3, 1]]), torch.tensor([[4, 5]])
    model(source, text).square().sum().backward()
    grad = model.encoder.embed.tokens.weight.grad
    assert grad is not None and grad[4].any() and grad[5].any()
    if not spec.decoder.head.tied:  # then only what was read or written is touched
        assert not grad[[0, 2, 6, 7, 8, 9, 10]].any()


# --- training ---------------------------------------------------------------------------------------------------------


def copying(n: int, length: int = 4, seed: int = 0) -> Batch:
    """Read a word, write the same word: after ``start_id`` 0, its letters one by one."""
    word = torch.randint(1, VOCAB, (n, length), generator=torch.Generator().manual_seed(seed))
    written = torch.cat((torch.zeros_like(word[:, :1]), word[:, :-1]), 1)
    return Batch(written, Tokens.plain(n, length), word, source=Source(word, Tokens.plain(n, length)))


@given(encoder_decoders, st.integers(0, 9))
@few
def test_one_step_lowers_the_loss(model: EncoderDecoder, seed: int) -> None:
    """Of any encoder–decoder, along its gradient; which reaches everything that has a part in it."""
    batch = copying(4, seed=seed)
    first = step(model, [torch.optim.SGD(model.parameters(), lr=0.0)], nll, [batch], clip=None)
    assert first.finite and all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert first.grad_norm > 0
    rate = 1e-7 * first.loss / first.grad_norm**2
    step(model, [torch.optim.SGD(model.parameters(), lr=rate)], nll, [batch], clip=None)
    after, _ = accumulate(model, nll, [batch])
    assert float(after.detach()) < first.loss


@given(encoder_decoders, pairs(), st.data())
@few
def test_its_loss_is_cross_entropy(model: EncoderDecoder, drawn: tuple[Rows, Rows], data: st.DataObject) -> None:
    (source, read), (text, written) = (data.draw(spread(rows)) for rows in drawn)
    labels = torch.randint(VOCAB, text.shape, generator=torch.Generator().manual_seed(1)).masked_fill(~written, IGNORE)
    places, tokens = Tokens.padded(read), Tokens.padded(written)
    loss = model.nll_sum(Batch(text, tokens, labels, source=Source(source, places)))
    out = model(source, text, places, tokens)
    expected = F.cross_entropy(out.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(loss, expected, check_dtype=False)


NORM = RMSNormSpec()
EMBED = EmbedSpec(LearnedSpec())


def small(reader: Any, mixer: Any, cross: Any) -> EncoderDecoderSpec:
    """One layer to read and one to write, 16 wide."""
    read, write = BlockSpec(reader, GatedFFNSpec(32), NORM), BlockSpec(mixer, GatedFFNSpec(32), NORM, cross=cross)
    return EncoderDecoderSpec(
        EncoderSpec(VOCAB, 8, EMBED, StackSpec(16, (read,), NORM)),
        DecoderSpec(VOCAB, 8, EMBED, StackSpec(16, (write,), NORM)),
        start_id=0,
    )


COPIERS = {
    "attention": small(AttentionSpec(4, 4, 4, Full()), AttentionSpec(4, 4, 4), AttentionSpec(4, 2, 4, Full())),
    "before 2017": small(
        RecurrentSpec("gru", 32, both_directions=True),  # with 16 it is slower, and seeds differ
        AttentiveRecurrentSpec("lstm", 32, AlignmentSpec("additive", 16)),
        None,
    ),
}


@pytest.mark.parametrize("name", COPIERS)
def test_encoder_decoder_learns_to_copy(name: str) -> None:
    """Words it has never seen; what it writes by itself is what it read."""
    model = initialise(EncoderDecoder(COPIERS[name]), "fan_in", seed=1)
    optimizers = build_optimizers(model, "adamw", learning_rate=0.02, matrix_learning_rate=0.02, weight_decay=0.0)
    losses = [step(model, optimizers, nll, [copying(64, seed=i + 1)]).loss for i in range(150)]
    assert losses[0] > 2.0 and losses[-1] < 0.5, "ln 10 is 2.3"
    word = copying(8).labels.tolist()
    sampling = pellucid.Sampling(temperature=0.0)
    written = [c.ids for c in pellucid.generate(model, word, max_new_tokens=4, sampling=sampling)]
    right = sum(a == b for x, y in zip(written, word, strict=True) for a, b in zip(x, y, strict=True))
    assert right >= 24, "of 32 letters; 3 by chance"


def test_kinds_of_models_are_themselves() -> None:
    assert [type(build(spec)) for spec in (EXAMPLE, READS, PLAIN)] == [Decoder, Encoder, EncoderDecoder]
