"""The loop that writes: read the prompts once, then one token a step for every row, over a cache.

``generate`` and ``stream`` run the same steps; a row's text does not depend on the rows beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from pellucid.batch import Tokens
from pellucid.engine.modes import evaluating
from pellucid.errors import RunError, UsageError
from pellucid.generate.sample import Sampling, generator_for
from pellucid.generate.stop import StopDecoder
from pellucid.nn.cache import Cache, Memory
from pellucid.nn.models import Decoder, EncoderDecoder, Model
from pellucid.spec import EncoderDecoderSpec

Prompt: TypeAlias = str | Sequence[int]
FinishReason: TypeAlias = Literal["stop", "eos", "length", "context"]
NewCache: TypeAlias = Callable[[int, int], Cache]


@dataclass(frozen=True)
class Completion:
    """What was written after one prompt; ``str(completion)`` is the text.

    text: the new text alone, cut before the stop string; empty where the model has no tokenizer.
    ids: every token generated, the ones that ended it (end of text, the stop string's) included.
    logprobs: ln p of each of ``ids`` under the model itself, before any penalty, temperature or filter.
    finish_reason: "stop" (a stop string), "eos" (end of text), "length" (max_new_tokens), or "context": the next token
        would stand farther from the beginning than the model was trained for.
    """

    prompt: Prompt
    text: str
    ids: list[int]
    finish_reason: FinishReason
    n_prompt: int
    logprobs: list[float]

    @property
    def n_generated(self) -> int:
        """How many tokens were generated."""
        return len(self.ids)

    def __str__(self) -> str:
        return self.text

    def __rich_repr__(self) -> Iterator[tuple[str, Any]]:
        yield "prompt", self.prompt
        yield "text", self.text
        yield "finish_reason", self.finish_reason
        yield "n_prompt", self.n_prompt
        yield "n_generated", self.n_generated
        yield "mean_logprob", round(sum(self.logprobs) / len(self.logprobs), 4)

    def __repr__(self) -> str:
        return f"Completion({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


@dataclass
class _Row:
    """One prompt on its way: what was written so far, what is yet to be shown, and why it ended."""

    prompt: Prompt
    read: list[int]  # what an encoder reads; without one the prompt itself
    prompt_ids: list[int]  # what the writing side reads before its first token
    room: int  # how many tokens may still follow before ``full``
    full: Literal["length", "context"]
    generator: torch.Generator
    stop_ids: tuple[int, ...]  # of the tokens that end a text
    bytes_of: Callable[[int], bytes] | None
    decoder: StopDecoder
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    reason: FinishReason | None = None

    def push(self, token: int, logprob: float) -> str:
        """Take one token; returns the text that became certain."""
        if math.isnan(logprob):
            raise RunError(
                f"the model's logits are not finite after {len(self.prompt_ids) + len(self.ids)} tokens",
                "its weights are damaged or its training diverged: use an earlier checkpoint",
            )
        self.ids.append(token)
        self.logprobs.append(logprob)
        text = self.decoder.feed(self.bytes_of(token)) if self.bytes_of else ""
        if self.decoder.stopped is None:
            if token in self.stop_ids:
                self.reason = "eos"
            elif len(self.ids) == self.room:
                self.reason = self.full
            if self.reason is not None:
                text += self.decoder.finish()
        if self.decoder.stopped is not None:  # perhaps only now that nothing can follow
            self.reason = "stop"
        self.pieces.append(text)
        return text

    def completion(self) -> Completion:
        assert self.reason is not None
        return Completion(self.prompt, "".join(self.pieces), self.ids, self.reason, len(self.read), self.logprobs)


def generate(
    model: Model,
    prompts: str | Sequence[Prompt],
    *,
    max_new_tokens: int = 256,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    stop: str | Sequence[str] = (),
    seed: int = 0,
    ignore_eos: bool = False,
    new_cache: NewCache | None = None,
) -> list[Completion]:
    """Continue each prompt: a text (encoded behind the begin-of-text token) or token ids; of one or of unequal lengths.

    An encoder–decoder reads the prompts and writes what answers them, from its ``start_id`` on.

    The same seed gives the same completion, alone or in any batch (up to the rounding of differently shaped matrix
    products): a row's random numbers depend on the seed, its prompt, and how many equal prompts stand before it.
    new_cache: (batch, capacity in columns) -> cache; the model's own choice when None. It may have read the beginning
        of the prompts already, where these are equally long.
    ignore_eos: go on past the end-of-text token.

    Raises UsageError where a prompt exceeds the context or holds an unknown id, and where a text or a stop string meets
    a model without a tokenizer; RunError where logits are not finite. The model's training mode is left as it was. ::

        print(pellucid.generate(model, "Once upon a time", sampling=pellucid.Sampling(temperature=0.0))[0])
    """
    rows = _rows(model, [prompts] if isinstance(prompts, str) else prompts, max_new_tokens, stop, seed, ignore_eos)
    if rows:
        with evaluating(model, inference=True):
            for _ in _steps(model, rows, sampling, new_cache):
                pass
    return [row.completion() for row in rows]


def stream(
    model: Model,
    prompt: Prompt,
    *,
    max_new_tokens: int = 256,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    stop: str | Sequence[str] = (),
    seed: int = 0,
    ignore_eos: bool = False,
    new_cache: NewCache | None = None,
) -> Generator[str, None, Completion]:
    """``generate`` for one prompt, yielding its text in pieces as it becomes certain.

    The pieces, joined, are the text of the Completion, which is the generator's return value. The arguments are checked
    at once, not at the first piece. It may be abandoned or interrupted anywhere: no mode is held while it waits. ::

        for piece in pellucid.stream(model, "Once upon a time"):
            print(piece, end="", flush=True)
    """
    _writer(model)
    if model.tokenizer is None:
        raise UsageError("stream shows text, but the model has no tokenizer", "use generate, and read .ids")
    (row,) = _rows(model, [prompt], max_new_tokens, stop, seed, ignore_eos)
    return _pieces(model, row, _steps(model, [row], sampling, new_cache))


def _pieces(model: Model, row: _Row, steps: Iterator[list[str]]) -> Generator[str, None, Completion]:
    while row.reason is None:
        with evaluating(
            model, inference=True
        ):  # left before every yield: the caller's code must not run in inference mode
            (text,) = next(steps)
        if text:
            yield text
    return row.completion()


def _writer(model: Model) -> Decoder:
    """The part that writes. Raises UsageError for a model that has none."""
    if isinstance(model, EncoderDecoder):
        return model.decoder
    if not isinstance(model, Decoder):
        raise UsageError(
            "an encoder reads whole texts and cannot write",
            "look into it, or call it for its states or its head's logits",
        )
    return model


def _memory(model: EncoderDecoder, rows: list[_Row], device: torch.device) -> Memory:
    """What the encoder makes of all prompts."""
    ids, valid = _left_padded([row.read for row in rows], device)
    return model.encode(ids, None if valid is None else Tokens.padded(valid))


def _steps(model: Model, rows: list[_Row], sampling: Sampling, new_cache: NewCache | None) -> Iterator[list[str]]:
    """Prefill, then token by token until every row has ended; yields each row's newly certain text.

    The prefill stops before the last column and needs no logits: over a whole prompt they cost as much as many layers.
    """
    device = next(model.parameters()).device
    writer, vocab = _writer(model), model.spec.vocab_size
    if model.tokenizer is not None:  # embeddings are often padded to a round number: ids that stand for no text
        vocab = min(vocab, model.tokenizer.vocab_size)
    never = () if model.tokenizer is None else model.tokenizer.never_ids
    refused = torch.tensor([number for number in never if number < vocab], dtype=torch.long, device=device)
    longest = max(len(row.prompt_ids) for row in rows)
    # the last token is never read
    cache = (new_cache or writer.new_cache)(len(rows), longest + max(row.room for row in rows) - 1)
    if isinstance(model, EncoderDecoder):
        cache.memory = _memory(model, rows, device)
    ids, valid = _left_padded([row.prompt_ids for row in rows], device)
    if longest - 1 > cache.length:
        before = None if valid is None else Tokens.padded(valid[:, :-1])
        writer.hidden(ids[:, cache.length : -1], before, cache)
    ids, tokens = ids[:, -1:], None  # None: every row goes on at its own next position
    seen = None
    if sampling.needs_seen:
        seen = torch.zeros(len(rows), model.spec.vocab_size, dtype=torch.bool, device=device)
        for i, row in enumerate(rows):
            seen[i, torch.tensor(row.prompt_ids, device=device)] = True
        seen = seen[:, :vocab]
    generators = [row.generator for row in rows]
    while True:
        logits = writer(ids, tokens, cache)[:, 0, :vocab]
        picked = sampling.pick(logits.index_fill(-1, refused, -torch.inf), seen, generators)[:, None]  # (batch, 1)
        logprobs = logits.float().log_softmax(-1).gather(-1, picked)
        arrived = zip(rows, picked[:, 0].tolist(), logprobs[:, 0].tolist(), strict=True)
        yield [row.push(token, logprob) if row.reason is None else "" for row, token, logprob in arrived]
        going = [row.reason is None for row in rows]
        if not any(going):
            return
        ids = picked
        if seen is not None:
            seen.scatter_(-1, picked, True)
        tokens = None if all(going) else _next_tokens(rows, device)


def _left_padded(
    prompts: list[list[int]], device: torch.device
) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"] | None]:
    """The prompts as one tensor, all ending in its last column, and which of it is prompt (None: all)."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    if all(len(prompt) == longest for prompt in prompts):
        return ids, None
    lengths = torch.tensor([[len(prompt)] for prompt in prompts], device=device)
    return ids, torch.arange(longest, device=device) >= longest - lengths


def _next_tokens(rows: list[_Row], device: torch.device) -> Tokens:
    """Where the tokens just picked stand; those of rows that have ended are padding."""
    positions = [len(row.prompt_ids) + len(row.ids) - 1 if row.reason is None else -1 for row in rows]
    return Tokens(torch.tensor(positions, device=device)[:, None])


# --- what the caller asked for, checked ------------------------------------------------------------------------------


def _rows(
    model: Model,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    stop: str | Sequence[str],
    seed: int,
    ignore_eos: bool,
) -> list[_Row]:
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens is {max_new_tokens}", "it must be at least 1")
    _writer(model)
    tokenizer, context = model.tokenizer, model.spec.context
    stops = [stop] if isinstance(stop, str) else list(stop)
    if stops and tokenizer is None:
        raise UsageError(
            f"stop is {stops!r}, but the model has no tokenizer to turn its tokens into text",
            "load the model from a folder that holds one, or leave stop out",
        )
    rows: list[_Row] = []
    copies: Counter[tuple[int, ...]] = Counter()
    for i, prompt in enumerate(prompts):
        read = ids = _prompt_ids(model, prompt, f"prompt {i}" if len(prompts) > 1 else "the prompt")
        if isinstance(model, EncoderDecoder):
            ids = [model.spec.start_id]
        key = tuple(read)
        left = context - len(ids) + 1  # the last token may be predicted from the last position, and is not read
        rows.append(
            _Row(
                prompt,
                read,
                ids,
                room=min(max_new_tokens, left),
                full="length" if max_new_tokens <= left else "context",
                generator=generator_for(seed, key, copies[key]),
                stop_ids=() if tokenizer is None or ignore_eos else tokenizer.stop_ids,
                bytes_of=None if tokenizer is None else tokenizer.bytes_of,
                decoder=StopDecoder(stops),
            )
        )
        copies[key] += 1
    return rows


def _prompt_ids(model: Model, prompt: Prompt, name: str) -> list[int]:
    """The prompt's token ids, at least one; raises UsageError where they cannot be read by this model."""
    if isinstance(prompt, int):
        raise UsageError(f"{name} is the number {prompt}", "token ids come as a list for each prompt: [[1, 2, 3]]")
    tokenizer, spec = model.tokenizer, model.spec
    spec = spec.encoder if isinstance(spec, EncoderDecoderSpec) else spec  # the side that reads
    if isinstance(prompt, str) or not len(prompt):
        if tokenizer is None:
            raise UsageError(
                f"{name} is {'a text' if len(prompt) else 'empty'}, but the model has no tokenizer",
                "load the model from a folder that holds one, or pass token ids",
            )
        ids: list[int] = tokenizer.encode_prompt(prompt or "")
        if not ids and tokenizer.bos_id is None:
            raise UsageError(f"{name} is empty", "this model has no begin-of-text token: give it a first word")
        ids = ids or [tokenizer.bos_id]
    else:
        ids = [int(token) for token in prompt]
    if len(ids) > spec.context:
        raise UsageError(
            f"{name} is {len(ids):,} tokens long, but the model's context is {spec.context:,}",
            "shorten it, or use a model that was trained on a longer context",
        )
    for place, token in enumerate(ids):
        if not 0 <= token < spec.vocab_size:
            raise UsageError(
                f"{name} has token id {token} at place {place}, but the vocabulary ends at {spec.vocab_size - 1}",
                "encode it with the model's own tokenizer",
            )
    return ids
