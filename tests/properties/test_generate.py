"""Generation over a cache says what the whole forward would say, for every row whatever stands beside it."""

from __future__ import annotations

import gc
from functools import partial
from itertools import islice
from typing import Any, TypeVar
from unittest.mock import patch

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pellucid.batch import Tokens
from pellucid.errors import RunError, UsageError
from pellucid.generate.decode import Completion, Prompt, generate, stream
from pellucid.generate.sample import Sampling
from pellucid.nn.cache import Cache
from pellucid.nn.models import Decoder
from pellucid.spec import (
    AttentionSpec,
    BlockSpec,
    Causal,
    DecoderSpec,
    EmbedSpec,
    FFNSpec,
    LayerNormSpec,
    LearnedSpec,
    RotarySpec,
    StackSpec,
    Window,
)

AnyDecoder = TypeVar("AnyDecoder", bound=Decoder)
CONTEXT = 24
GREEDY = Sampling(temperature=0.0)
WARM = Sampling(temperature=1.5, top_k=12, top_p=0.95, min_p=0.01, repetition_penalty=1.1)
PIECES = [
    b"",
    *(bytes([b]) for b in b"abcde \n"),
    b"ab",
    b"cde",
    "é".encode(),
    b"\xc3",
    b"\xa9",
    b"\xf0\x9f",
    b"\x98\x80",
]


class Pieces:
    """A tokenizer of few tokens, some of which end inside a character; token 0 begins and ends a document."""

    vocab_size = len(PIECES)
    bos_id = eos_id = 0
    stop_ids = (0,)
    never_ids: tuple[int, ...] = ()

    def __init__(self, special: dict[str, int] | None = None):
        self.special = special or {"<end>": 0}

    def encode_prompt(self, text: str) -> list[int]:
        return self.encode(text, bos=True)

    def encode(self, text: str, bos: bool = False) -> list[int]:
        return [self.bos_id] * bos + [PIECES.index(bytes([byte])) for byte in text.encode()]

    def bytes_of(self, token: int) -> bytes:
        return PIECES[token]

    def decode(self, ids: list[int]) -> str:
        return b"".join(PIECES[token] for token in ids).decode("utf-8", "replace")


def build(positions: str = "rotary", kind: type[AnyDecoder] = Decoder) -> AnyDecoder:
    """A random model of two layers, the second one looking back 5 tokens, with weights wide enough to be decided.

    In float64, so that two ways to the same number never differ by enough to turn a draw.
    """
    rotary = RotarySpec() if positions == "rotary" else None
    blocks = tuple(
        BlockSpec(AttentionSpec(2, 1, 8, mask=mask, rotary=rotary), FFNSpec(32), LayerNormSpec())
        for mask in (Causal(), Causal() & Window(5))
    )
    embed = EmbedSpec(LearnedSpec() if positions == "learned" else None)
    model = kind(DecoderSpec(len(PIECES) + 2, CONTEXT, embed, StackSpec(16, blocks, LayerNormSpec())))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    model.tokenizer = Pieces()
    return model.double().eval()


MODELS = {"rotary": build("rotary"), "learned": build("learned")}
models = st.sampled_from(sorted(MODELS)).map(MODELS.__getitem__)
ids = st.lists(st.integers(0, len(PIECES) - 1), max_size=CONTEXT)
texts = st.text(st.sampled_from("abcde "), max_size=8)
prompts = st.lists(ids | texts, min_size=1, max_size=4)
samplings = st.sampled_from([GREEDY, WARM])
stops = st.sampled_from([[], ["a"], ["é", "b c"], ["cd", "bcde"]])
few = settings(max_examples=examples(25))


def facts(completion: Completion) -> tuple[Prompt, str, list[int], str]:
    return completion.prompt, completion.text, completion.ids, completion.finish_reason


def greedy_by_whole_forwards(
    model: Decoder, prompt: list[int], n: int, penalty: float = 1.0
) -> tuple[list[int], list[float]]:
    """Without a cache: read everything again for every token."""
    sequence, logprobs = list(prompt), []
    for _ in range(n):
        with torch.no_grad():
            logits = model(torch.tensor([sequence]))[0, -1, : len(PIECES)]
        penalised = logits.tolist()
        for token in set(sequence):
            penalised[token] = penalised[token] / penalty if penalised[token] > 0 else penalised[token] * penalty
        sequence.append(penalised.index(max(penalised)))
        logprobs.append(float(logits.log_softmax(-1)[sequence[-1]]))
    return sequence[len(prompt) :], logprobs


@few
@given(models, ids.filter(bool), st.booleans(), st.sampled_from([1.0, 1.5]))
def test_greedy_over_a_cache_is_greedy_by_whole_forwards(
    model: Decoder, prompt: list[int], ring: bool, penalty: float
) -> None:
    room = CONTEXT - len(prompt) + 1
    with patch.object(model, "new_cache", partial(model.new_cache, ring=ring)):
        (got,) = generate(
            model,
            [prompt],
            max_new_tokens=room,
            sampling=Sampling(temperature=0.0, repetition_penalty=penalty),
            ignore_eos=True,
        )
    expected, logprobs = greedy_by_whole_forwards(model, prompt, room, penalty)
    assert got.ids == expected
    torch.testing.assert_close(torch.tensor(got.logprobs), torch.tensor(logprobs), atol=1e-4, rtol=1e-4)
    assert got.text == model.tokenizer.decode(got.ids)


class Forgetful(Decoder):
    """A decoder that reads each token as if nothing came before it."""

    def forward(
        self, ids: Tensor, tokens: Tokens | None = None, cache: Cache | None = None, memory: Any = None
    ) -> Tensor:
        return super().forward(ids)


def test_control_a_decoder_that_forgets_its_cache_is_caught() -> None:
    prompt = [0, 1, 4, 2, 7]
    model = build(kind=Forgetful)
    forgetful = generate(model, [prompt], max_new_tokens=10, sampling=GREEDY, ignore_eos=True)[0].ids
    assert forgetful != greedy_by_whole_forwards(build(), prompt, 10)[0]


@few
@given(models, prompts, samplings, stops, st.integers(1, 12), st.integers(0, 9), st.booleans())
def test_a_row_of_a_ragged_batch_is_the_same_alone(
    model: Decoder,
    prompts: list[Prompt],
    sampling: Sampling,
    stop: list[str],
    max_new_tokens: int,
    seed: int,
    ignore_eos: bool,
) -> None:
    def run(some: list[Prompt]) -> list[Completion]:
        return generate(
            model,
            some,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=stop,
            seed=seed,
            ignore_eos=ignore_eos,
        )

    read = [model.tokenizer.encode(p, bos=True) if isinstance(p, str) else p or [0] for p in prompts]
    together = run(prompts)
    assert [c.n_prompt for c in together] == [len(r) for r in read]
    for i, completion in enumerate(together):
        assert completion.n_generated == len(completion.logprobs) <= max_new_tokens
        if read[i] not in read[:i]:  # equal prompts are to differ: the second is another sample
            (alone,) = run([prompts[i]])
            assert facts(completion) == facts(alone)
            torch.testing.assert_close(
                torch.tensor(completion.logprobs), torch.tensor(alone.logprobs), atol=1e-4, rtol=1e-4
            )


@few
@given(models, ids | texts, samplings, stops, st.integers(1, 20), st.integers(0, 9))
def test_streamed_pieces_join_to_the_completion(
    model: Decoder, prompt: Prompt, sampling: Sampling, stop: list[str], max_new_tokens: int, seed: int
) -> None:
    pieces = []

    def collect() -> Completion:
        source = stream(model, prompt, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, seed=seed)
        while True:
            try:
                pieces.append(next(source))
            except StopIteration as end:
                return end.value

    streamed = collect()
    (whole,) = generate(model, [prompt], max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, seed=seed)
    assert all(pieces)
    assert "".join(pieces) == streamed.text == whole.text
    assert facts(streamed) == facts(whole)
    # the text is that of the tokens, cut at the first stop string, and of no token too many
    full = model.tokenizer.decode(whole.ids)
    assert whole.text == full[: min((full.find(s) for s in stop if s in full), default=None)]
    assert (whole.finish_reason == "stop") == any(s in full for s in stop)


def test_equal_prompts_are_different_samples_and_a_seed_reproduces_them() -> None:
    def run(seed: int) -> list[list[int]]:
        return [c.ids for c in generate(MODELS["rotary"], ["ab"] * 3, max_new_tokens=12, sampling=WARM, seed=seed)]

    first = run(1)
    assert run(1) == first
    assert run(2) != first
    assert first[0] != first[1] != first[2]


def test_random_state_outside_is_neither_used_nor_moved() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = generate(MODELS["rotary"], "ab", max_new_tokens=8, sampling=WARM)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert facts(generate(MODELS["rotary"], "ab", max_new_tokens=8, sampling=WARM)[0]) == facts(first[0])


class Scripted(Decoder):
    """Writes a fixed text, whatever it reads: token ``script[position]`` follows the token at ``position``."""

    script: list[int]

    def forward(
        self, ids: Tensor, tokens: Tokens | None = None, cache: Cache | None = None, memory: Any = None
    ) -> Tensor:
        assert cache is not None
        at = cache.next_positions()[:, None] if tokens is None else tokens.pos.clamp(min=0)
        logits = super().forward(ids, tokens, cache)
        following = torch.tensor(self.script)[at]
        return logits.fill_(-9.0).scatter_(-1, following[..., None], 9.0)


def scripted(text: list[bytes]) -> Scripted:
    model = build(kind=Scripted)
    model.script = [PIECES.index(piece) for piece in text] + [1] * CONTEXT
    return model


def test_each_row_ends_for_its_own_reason() -> None:
    model = scripted([b"ab", b"\xc3", b"\xa9", b" ", b"cde", b"", b"a", b"a"])
    prompts = [[1], [1] * 4, [1] * 7, [1] * CONTEXT]  # each row reads the script from its own position
    rows = generate(model, prompts, max_new_tokens=5, sampling=GREEDY, stop="é ")
    assert [(r.text, r.finish_reason) for r in rows] == [
        ("ab", "stop"),
        (" cde", "eos"),
        ("aaaaa", "length"),
        ("a", "context"),
    ]
    assert [r.n_generated for r in rows] == [4, 3, 5, 1]
    assert generate(model, [[1] * 4], max_new_tokens=5, sampling=GREEDY, ignore_eos=True)[0].text == " cdeaa"


def test_stop_strings_are_cut_inside_tokens_and_across_characters() -> None:
    model = scripted([b"ab", b"\xf0\x9f", b"\x98\x80", b"cde", b"ab"])
    for stop, text in {"b😀c": "a", "😀": "ab", "dea": "ab😀c", "e": "ab😀cd"}.items():
        (row,) = generate(model, [[0]], max_new_tokens=5, sampling=GREEDY, stop=stop)
        assert (row.text, row.finish_reason) == (text, "stop")
        assert "".join(stream(model, [0], max_new_tokens=5, sampling=GREEDY, stop=stop)) == text
    (row,) = generate(model, [[0]], max_new_tokens=2, sampling=GREEDY)
    assert row.text == "ab\ufffd"  # the length ran out inside a character


def test_a_stop_string_may_be_a_special_token_or_hold_one() -> None:
    """It is shown as nothing, and ends the text all the same."""
    model = scripted([b"ab", b"e", b"\xc3", b"\xa9", b"cde", b"ab"])
    model.tokenizer = Pieces({"<answer>": PIECES.index(b"e")})
    model.tokenizer.bytes_of = lambda token: b"" if PIECES[token] == b"e" else PIECES[token]  # type: ignore[method-assign]
    for stop, text in {"<answer>": "ab", "b<answer>é": "a", "é<answer>": "abécdeab", "bé": "a"}.items():
        (row,) = generate(model, [[0]], max_new_tokens=6, sampling=GREEDY, stop=stop)
        pieces = "".join(stream(model, [0], max_new_tokens=6, sampling=GREEDY, stop=stop))
        assert (row.text, row.finish_reason, pieces) == (text, "length" if text == "abécdeab" else "stop", text)


def test_the_context_is_used_to_its_last_position_and_no_further() -> None:
    for n in (1, CONTEXT - 1, CONTEXT):
        (row,) = generate(MODELS["learned"], [[1] * n], max_new_tokens=99, sampling=GREEDY, ignore_eos=True)
        assert (row.finish_reason, n + row.n_generated) == ("context", CONTEXT + 1)
    (row,) = generate(MODELS["learned"], [[1] * 4], max_new_tokens=CONTEXT - 3, sampling=GREEDY, ignore_eos=True)
    assert row.finish_reason == "length"


def test_a_row_that_has_ended_is_padding_for_the_others() -> None:
    model = MODELS["learned"]  # which has no position past the context
    prompts: list[Prompt] = [[1] * CONTEXT, [2]]
    ended, going = generate(model, prompts, max_new_tokens=CONTEXT, sampling=GREEDY, ignore_eos=True)
    assert (ended.n_generated, ended.finish_reason) == (1, "context")
    assert going.ids == greedy_by_whole_forwards(model, [2], CONTEXT)[0]


def test_padded_ids_of_the_embedding_are_never_generated() -> None:
    model = build()
    with torch.no_grad():
        assert model.embed.tokens.weight is not None
        model.embed.tokens.weight[len(PIECES) :] *= 50  # tied: these logits are the largest in size
    flat = Sampling(temperature=3.0, top_p=1.0)
    drawn = {t for c in generate(model, ["a"] * 20, max_new_tokens=20, sampling=flat, ignore_eos=True) for t in c.ids}
    assert max(drawn) < len(PIECES)


def test_tokens_that_must_not_be_written_are_not() -> None:
    """The second-best is, in place of the best; one of them the vocabulary has and the model has not."""
    model, greedy = build(), Sampling(temperature=0.0)
    with torch.inference_mode():
        best, second = model(torch.tensor([[1, 2]]))[0, -1, : len(PIECES)].topk(2).indices.tolist()
    assert generate(model, [[1, 2]], max_new_tokens=8, sampling=greedy, ignore_eos=True)[0].ids[0] == best
    model.tokenizer.never_ids = (best, 1000)
    written = generate(model, [[1, 2]], max_new_tokens=8, sampling=greedy, ignore_eos=True)[0].ids
    assert written[0] == second
    assert best not in written


def test_modes_are_left_as_they_were() -> None:
    model = build()
    model.train()
    model.blocks[0].eval()  # a frozen part
    modes = [module.training for module in model.modules()]
    source = stream(model, "ab", max_new_tokens=20, sampling=WARM, ignore_eos=True)
    for _ in islice(source, 2):
        assert not torch.is_inference_mode_enabled()
        assert [module.training for module in model.modules()] == modes
    del source  # abandoned
    gc.collect()
    generate(model, "ab", max_new_tokens=3)
    assert [module.training for module in model.modules()] == modes
    model(torch.tensor([[1, 2, 3]])).sum().backward()  # nothing that inference left behind is in the way of training


def test_stream_lists_the_modules_of_a_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = build(), list[int]()
    modules = model.modules
    monkeypatch.setattr(model, "modules", lambda: calls.append(1) or modules())
    assert len("".join(stream(model, "ab", max_new_tokens=20, sampling=WARM, ignore_eos=True))) > 3
    assert len(calls) == 1


class Interrupted(Decoder):
    """Ctrl-C arrives in the third forward."""

    calls = 0

    def forward(
        self, ids: Tensor, tokens: Tokens | None = None, cache: Cache | None = None, memory: Any = None
    ) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return super().forward(ids, tokens, cache)


def test_an_interrupt_leaves_the_model_as_it_was() -> None:
    model = build(kind=Interrupted)
    model.train()
    with pytest.raises(KeyboardInterrupt):
        list(stream(model, "ab", max_new_tokens=9, ignore_eos=True))
    assert all(module.training for module in model.modules())
    assert not torch.is_inference_mode_enabled()
    expected = generate(build(), "ab", max_new_tokens=9)
    assert facts(generate(model, "ab", max_new_tokens=9)[0]) == facts(expected[0])


def test_a_completion_reads_as_its_text() -> None:
    (row,) = generate(MODELS["rotary"], "ab", max_new_tokens=4, sampling=GREEDY)
    assert str(row) == row.text
    assert repr(row).startswith(f"Completion(prompt='ab', text={row.text!r}, finish_reason=")
    assert generate(MODELS["rotary"], []) == []


def test_a_model_without_a_tokenizer_writes_ids() -> None:
    model = build()
    model.tokenizer = None
    (row,) = generate(model, [[1, 2]], max_new_tokens=5, sampling=GREEDY)
    assert (row.text, row.n_generated, row.finish_reason) == ("", 5, "length")
    for call in (
        lambda: generate(model, "ab"),
        lambda: generate(model, [[]]),
        lambda: generate(model, [[1]], stop="a"),
        lambda: stream(model, [1]),
    ):
        with pytest.raises(UsageError, match="no tokenizer"):
            call()


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (["a" * CONTEXT], {}, f"the prompt is {CONTEXT + 1} tokens long, but the model's context is {CONTEXT}"),
        (["a", [1] * (CONTEXT + 1)], {}, "prompt 1 is 25 tokens long"),
        ([[1, 99]], {}, f"token id 99 at place 1, but the vocabulary ends at {len(PIECES) + 1}"),
        ([[-1]], {}, "token id -1"),
        (["a"], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        (["a"], {"stop": ["x", ""]}, "stop string is empty"),
    ],
)
def test_impossible_requests_are_refused_by_name(
    prompts: list[Prompt], options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        generate(MODELS["rotary"], prompts, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError):  # at once, not at the first piece
        stream(MODELS["rotary"], prompts[-1], **options)  # type: ignore[arg-type]


def test_a_model_that_has_diverged_is_reported() -> None:
    model = build()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    for sampling in (GREEDY, WARM):
        with pytest.raises(RunError, match="not finite after 2 tokens"):
            generate(model, "a", sampling=sampling)
